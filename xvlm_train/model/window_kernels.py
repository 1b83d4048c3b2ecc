"""Triton kernels of :mod:`.window_attention`: one program, one window of one head."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _window(window, height, width, SIZE: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """Pixel of each token of a window, its part of the rolled image, whether it is one."""
    across = width // SIZE
    windows = across * (height // SIZE)
    image = window // windows
    place = window % windows
    token = tl.arange(0, BLOCK)
    row = (place // across) * SIZE + token // SIZE
    column = (place % across) * SIZE + token % SIZE
    # Windows at the far edge hold pixels of both edges, which do not see each other.
    down = (row >= height - SHIFT).to(tl.int32)
    right = (column >= width - SHIFT).to(tl.int32)
    row = (row + SHIFT) % height
    column = (column + SHIFT) % width
    pixel = (image.to(tl.int64) * height + row) * width + column
    return pixel, down * 2 + right, token < SIZE * SIZE


@triton.jit
def _weights(
    queries,
    keys,
    bias,
    head,
    part,
    inside,
    scale,
    SIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention weights [BLOCK, BLOCK] in float32; zero for keys that are no token."""
    tokens: tl.constexpr = SIZE * SIZE
    token = tl.arange(0, BLOCK)
    both = inside[:, None] & inside[None, :]
    at = head * tokens * tokens + token[:, None] * tokens + token[None, :]
    logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
    logits += tl.load(bias + at, mask=both, other=0.0)
    if SHIFT > 0:
        logits = tl.where(part[:, None] == part[None, :], logits, logits - 100.0)
    logits = tl.where(inside[None, :], logits, float("-inf"))
    powers = tl.exp(logits - tl.max(logits, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
def forward(
    qkv,
    bias,
    mixed,
    height,
    width,
    scale,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    SIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Images [I, H, W, heads * HEAD]; programs: windows * heads, heads of a window side by side."""
    head = tl.program_id(0) % HEADS
    pixel, part, inside = _window(tl.program_id(0) // HEADS, height, width, SIZE, SHIFT, BLOCK)
    channel = head * HEAD + tl.arange(0, HEAD)[None, :]
    at = pixel[:, None] * (3 * HEADS * HEAD) + channel
    real = inside[:, None]
    queries = tl.load(qkv + at, mask=real, other=0.0)
    keys = tl.load(qkv + at + HEADS * HEAD, mask=real, other=0.0)
    values = tl.load(qkv + at + 2 * HEADS * HEAD, mask=real, other=0.0)
    weights = _weights(
        queries, keys, bias, head, part, inside, scale, SIZE, SHIFT, BLOCK, PRECISION
    )
    states = tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    at = pixel[:, None] * (HEADS * HEAD) + channel
    tl.store(mixed + at, states.to(values.dtype), mask=real)


# A kernel for any number of windows: stochastic depth leaves out other images in every step.
@triton.jit(do_not_specialize=["windows"])
def backward(
    gradient,
    qkv,
    bias,
    of_qkv,
    of_bias,
    windows,
    height,
    width,
    scale,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    SIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of queries, keys, values and, one sum a program, of the bias.

    A program takes every P-th window; programs: P * heads, heads of a window side by side.
    """
    program = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    channel = head * HEAD + tl.arange(0, HEAD)[None, :]
    total = tl.zeros([BLOCK, BLOCK], dtype=tl.float32)
    window = program
    while window < windows:
        pixel, part, inside = _window(window, height, width, SIZE, SHIFT, BLOCK)
        real = inside[:, None]
        at = pixel[:, None] * (3 * HEADS * HEAD) + channel
        queries = tl.load(qkv + at, mask=real, other=0.0)
        keys = tl.load(qkv + at + HEADS * HEAD, mask=real, other=0.0)
        values = tl.load(qkv + at + 2 * HEADS * HEAD, mask=real, other=0.0)
        given = tl.load(gradient + pixel[:, None] * (HEADS * HEAD) + channel, mask=real, other=0.0)
        weights = _weights(
            queries, keys, bias, head, part, inside, scale, SIZE, SHIFT, BLOCK, PRECISION
        )
        of_values = tl.dot(tl.trans(weights.to(given.dtype)), given, input_precision=PRECISION)
        of_weights = tl.dot(given, tl.trans(values), input_precision=PRECISION)
        mean = tl.sum(weights * of_weights, 1)[:, None]
        of_logits = weights * (of_weights - mean)
        total += of_logits
        scaled = (of_logits * scale).to(queries.dtype)
        of_queries = tl.dot(scaled, keys, input_precision=PRECISION)
        of_keys = tl.dot(tl.trans(scaled), queries, input_precision=PRECISION)
        tl.store(of_qkv + at, of_queries.to(queries.dtype), mask=real)
        tl.store(of_qkv + at + HEADS * HEAD, of_keys.to(queries.dtype), mask=real)
        tl.store(of_qkv + at + 2 * HEADS * HEAD, of_values.to(queries.dtype), mask=real)
        window += tl.num_programs(0) // HEADS
    tokens: tl.constexpr = SIZE * SIZE
    token = tl.arange(0, BLOCK)
    inside = token < tokens
    at = (program * HEADS + head) * tokens * tokens
    at += token[:, None] * tokens + token[None, :]
    tl.store(of_bias + at, total, mask=inside[:, None] & inside[None, :])
