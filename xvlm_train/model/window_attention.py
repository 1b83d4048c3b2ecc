"""Swin's window attention in one kernel each way, on GPUs that Triton compiles for.

The usual way copies the image into windows and back (roll, partition, their inverses) and holds a
matrix of 49 x 49 weights a window and head, a size that no kernel for matrix products likes. Here
a program holds one window of one head in registers, and reads and writes pixels where they lie.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

from xvlm_train.model import kernels

#: Tokens of a window that fit into a program's registers.
MOST_TOKENS = 64
#: Programs of the backward pass; each sums the bias gradient of its windows.
_PROGRAMS = 1024
#: Warps of a program, in the forward and in the backward pass.
_WARPS = (4, 4)


def usable(features: Tensor, heads: int, size: tuple[int, int], shift: tuple[int, int]) -> bool:
    """Whether the kernels take images [I, H, W, C], windows of this size and this shift."""
    height, width, channels = features.shape[1:]
    head = channels // heads
    return (
        kernels.run_on(features)
        and features.dtype != torch.float64
        and size[0] == size[1]
        and shift[0] == shift[1]
        and size[0] ** 2 <= MOST_TOKENS
        and not (height % size[0] or width % size[0])
        and head >= 16
        and head & (head - 1) == 0
    )


def window_attention(qkv: Tensor, bias: Tensor, size: int, shift: int) -> Tensor:
    """Attention inside each window of images that are rolled by ``-shift`` (as Swin's are).

    Pairs of tokens that only the roll made neighbours lose 100 from their logit, as in timm.

    Args:
        qkv: [I, H, W, 3 * heads * D], queries, keys and values of every pixel.
        bias: [heads, N, N] float32, N = ``size``², added to the logits.
        size: side of a window, which divides H and W.
        shift: pixels.

    Returns:
        [I, H, W, heads * D].
    """
    mixed: Tensor = _forward(qkv.contiguous(), bias.contiguous(), size, shift)
    return mixed


@library.custom_op("xvlm::window_attention", mutates_args=())
def _forward(qkv: Tensor, bias: Tensor, size: int, shift: int) -> Tensor:
    from xvlm_train.model import window_kernels

    images, height, width, channels = qkv.shape
    mixed = qkv.new_empty(images, height, width, channels // 3)
    windows = images * (height // size) * (width // size)
    heads = bias.shape[0]
    window_kernels.forward[(windows * heads,)](
        qkv, bias, mixed, height, width, **_constants(qkv, heads, size, shift), num_warps=_WARPS[0]
    )
    return mixed


@library.custom_op("xvlm::window_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, qkv: Tensor, bias: Tensor, size: int, shift: int
) -> tuple[Tensor, Tensor]:
    from xvlm_train.model import window_kernels

    images, height, width, _ = qkv.shape
    of_qkv = torch.empty_like(qkv)
    windows = images * (height // size) * (width // size)
    heads = bias.shape[0]
    programs = min(windows, max(1, _PROGRAMS // heads))
    # Summed in a fixed order, so that the gradient is the same every time.
    of_bias = bias.new_empty(programs, *bias.shape)
    window_kernels.backward[(programs * heads,)](
        gradient.contiguous(),
        qkv,
        bias,
        of_qkv,
        of_bias,
        windows,
        height,
        width,
        **_constants(qkv, heads, size, shift),
        num_warps=_WARPS[1],
    )
    return of_qkv, of_bias.sum(0)


@_forward.register_fake
def _(qkv: Tensor, bias: Tensor, size: int, shift: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)


@_backward.register_fake
def _(gradient: Tensor, qkv: Tensor, bias: Tensor, size: int, shift: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv), torch.empty_like(bias)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, bias, ctx.size, ctx.shift = inputs
    ctx.save_for_backward(qkv, bias)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
    of_qkv, of_bias = _backward(gradient, *ctx.saved_tensors, ctx.size, ctx.shift)
    return of_qkv, of_bias, None, None


_forward.register_autograd(_differentiate, setup_context=_remember)


def _constants(qkv: Tensor, heads: int, size: int, shift: int) -> dict[str, Any]:
    head = qkv.shape[-1] // 3 // heads
    return {
        "scale": head**-0.5,
        "HEADS": heads,
        "HEAD": head,
        "SIZE": size,
        "SHIFT": shift,
        "BLOCK": max(16, 1 << (size * size - 1).bit_length()),
        # Reduced float32 would be coarser than what the unfused products do.
        "PRECISION": "ieee" if qkv.dtype == torch.float32 else "tf32",
    }
