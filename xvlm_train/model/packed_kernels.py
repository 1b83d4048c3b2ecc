"""Triton kernels of :mod:`.packed_attention`: one program, one group of rows and one head."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _keys(
    kv,
    key_starts,
    key_lengths,
    group,
    channel,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FIRST: tl.constexpr,
):
    """Places, keys and values [BLOCK_K, HEAD] of a group, and which of them there are.

    With FIRST, place 0 is left for the row's own key.
    """
    key = tl.arange(0, BLOCK_K)
    place = key - FIRST
    length = tl.load(key_lengths + group)
    real = (place >= 0) & (place < length)
    at = (tl.load(key_starts + group) + place).to(tl.int64)[:, None] * (2 * WIDTH) + channel
    keys = tl.load(kv + at, mask=real[:, None], other=0.0)
    values = tl.load(kv + at + WIDTH, mask=real[:, None], other=0.0)
    return at, real, keys, values, key < length + FIRST


@triton.jit
def _row(
    q,
    first,
    query_starts,
    query_lengths,
    keys,
    values,
    row,
    channel,
    WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FIRST: tl.constexpr,
):
    """Places of a row's queries, which of them there are, they, and the keys and values it sees."""
    query = tl.arange(0, BLOCK_Q)
    asked = (query < tl.load(query_lengths + row))[:, None]
    at = (tl.load(query_starts + row) + query).to(tl.int64)[:, None] * WIDTH + channel
    queries = tl.load(q + at, mask=asked, other=0.0)
    if FIRST:
        own = (tl.arange(0, BLOCK_K) == 0)[:, None]
        at_first = row.to(tl.int64) * (2 * WIDTH) + channel
        keys = tl.where(own, tl.load(first + at_first), keys)
        values = tl.where(own, tl.load(first + at_first + WIDTH), values)
    return at, asked, queries, keys, values


@triton.jit
def _weights(
    queries,
    keys,
    seen,
    mask,
    mask_rows,
    row,
    scale,
    BLOCK_K: tl.constexpr,
    MASKED: tl.constexpr,
    MASK_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention weights [BLOCK_Q, BLOCK_K] in float32; zero for keys that are not seen."""
    logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
    visible = seen
    if MASKED:
        at = tl.load(mask_rows + row) * MASK_WIDTH + tl.arange(0, BLOCK_K)
        visible = visible & (tl.load(mask + at, mask=seen, other=0) != 0)
    logits = tl.where(visible[None, :], logits, float("-inf"))
    powers = tl.exp(logits - tl.max(logits, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
def _kept(
    seed,
    row,
    head,
    dropout,
    HEADS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Which weights dropout keeps: the same in both passes, whatever the order of programs."""
    key = tl.load(seed).to(tl.uint32)
    query = tl.arange(0, BLOCK_Q)[:, None]
    place = ((row * HEADS + head) * BLOCK_Q + query) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    drawn = _hash(_hash(place.to(tl.uint32) + key) ^ _hash(key))
    return drawn.to(tl.float32) * (1.0 / 4294967296.0) >= dropout


@triton.jit
def _hash(x):
    """A 32-bit integer mixed so that each bit depends on all (lowbias32 by C. Wellons).

    The generator that Triton brings takes three times as long as all else in the kernel.
    """
    x = (x ^ (x >> 16)) * tl.cast(0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 15)) * tl.cast(0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def forward(
    q,
    kv,
    first,
    mask,
    seed,
    mixed,
    query_starts,
    query_lengths,
    key_starts,
    key_lengths,
    order,
    row_starts,
    mask_rows,
    scale,
    dropout,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FIRST: tl.constexpr,
    MASKED: tl.constexpr,
    MASK_WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """States of the queries of a group's rows; programs: (groups, heads)."""
    group = tl.program_id(0)
    head = tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * HEAD
    channel = head * HEAD + tl.arange(0, HEAD)[None, :]
    _, _, keys, values, seen = _keys(
        kv, key_starts, key_lengths, group, channel, WIDTH, BLOCK_K, FIRST
    )
    number = tl.load(row_starts + group)
    end = tl.load(row_starts + group + 1)
    while number < end:
        row = tl.load(order + number)
        at_q, asked, queries, row_keys, row_values = _row(
            q, first, query_starts, query_lengths, keys, values, row, channel,
            WIDTH, BLOCK_Q, BLOCK_K, FIRST,
        )  # fmt: skip
        weights = _weights(
            queries, row_keys, seen, mask, mask_rows, row, scale,
            BLOCK_K, MASKED, MASK_WIDTH, PRECISION,
        )  # fmt: skip
        if DROPOUT:
            kept = _kept(seed, row, head, dropout, HEADS, BLOCK_Q, BLOCK_K)
            weights = tl.where(kept, weights / (1 - dropout), 0.0)
        states = tl.dot(weights.to(row_values.dtype), row_values, input_precision=PRECISION)
        tl.store(mixed + at_q, states.to(row_values.dtype), mask=asked)
        number += 1


@triton.jit
def backward(
    gradient,
    q,
    kv,
    first,
    mask,
    seed,
    of_q,
    of_kv,
    of_first,
    query_starts,
    query_lengths,
    key_starts,
    key_lengths,
    order,
    row_starts,
    mask_rows,
    scale,
    dropout,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FIRST: tl.constexpr,
    MASKED: tl.constexpr,
    MASK_WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of queries, keys and values; those of keys summed over the rows of the group.

    Programs: (groups, heads).
    """
    group = tl.program_id(0)
    head = tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * HEAD
    channel = head * HEAD + tl.arange(0, HEAD)[None, :]
    at, real, keys, values, seen = _keys(
        kv, key_starts, key_lengths, group, channel, WIDTH, BLOCK_K, FIRST
    )
    own = (tl.arange(0, BLOCK_K) == 0)[:, None]
    of_keys = tl.zeros([BLOCK_K, HEAD], dtype=tl.float32)
    of_values = tl.zeros([BLOCK_K, HEAD], dtype=tl.float32)
    number = tl.load(row_starts + group)
    end = tl.load(row_starts + group + 1)
    while number < end:
        row = tl.load(order + number)
        at_q, asked, queries, row_keys, row_values = _row(
            q, first, query_starts, query_lengths, keys, values, row, channel,
            WIDTH, BLOCK_Q, BLOCK_K, FIRST,
        )  # fmt: skip
        given = tl.load(gradient + at_q, mask=asked, other=0.0)
        weights = _weights(
            queries, row_keys, seen, mask, mask_rows, row, scale,
            BLOCK_K, MASKED, MASK_WIDTH, PRECISION,
        )  # fmt: skip
        of_weights = tl.dot(given, tl.trans(row_values), input_precision=PRECISION)
        used = weights
        if DROPOUT:
            kept = _kept(seed, row, head, dropout, HEADS, BLOCK_Q, BLOCK_K)
            used = tl.where(kept, weights / (1 - dropout), 0.0)
            of_weights = tl.where(kept, of_weights / (1 - dropout), 0.0)
        of_logits = weights * (of_weights - tl.sum(weights * of_weights, 1)[:, None]) * scale
        # Places after a row's last query hold weights of no query.
        of_logits = tl.where(asked, of_logits, 0.0).to(queries.dtype)
        used = tl.where(asked, used, 0.0).to(given.dtype)
        tl.store(
            of_q + at_q,
            tl.dot(of_logits, row_keys, input_precision=PRECISION).to(queries.dtype),
            mask=asked,
        )
        row_of_keys = tl.dot(tl.trans(of_logits), queries, input_precision=PRECISION)
        row_of_values = tl.dot(tl.trans(used), given, input_precision=PRECISION)
        if FIRST:
            at_first = row.to(tl.int64) * (2 * WIDTH) + channel
            of_own = tl.sum(tl.where(own, row_of_keys, 0.0), 0)[None, :]
            tl.store(of_first + at_first, of_own.to(queries.dtype))
            of_own = tl.sum(tl.where(own, row_of_values, 0.0), 0)[None, :]
            tl.store(of_first + at_first + WIDTH, of_own.to(queries.dtype))
        of_keys += row_of_keys
        of_values += row_of_values
        number += 1
    tl.store(of_kv + at, of_keys.to(keys.dtype), mask=real[:, None])
    tl.store(of_kv + at + WIDTH, of_values.to(keys.dtype), mask=real[:, None])
