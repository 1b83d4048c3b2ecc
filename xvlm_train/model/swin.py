"""timm's Swin blocks, computed with less work: the same weights, the same results.

Stochastic depth leaves out images instead of multiplying their branch by zero, and on GPUs window
attention is one kernel (:mod:`.window_attention`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from xvlm_train.model.window_attention import usable, window_attention


def compute_blocks_as(backbone: nn.Module, *, skip_dropped: bool, window_kernel: bool) -> None:
    """Replace what the Swin blocks of a backbone, if it has any, do in their forward pass.

    Args:
        backbone: a timm model.
        skip_dropped: leave out images whose branch stochastic depth drops.
        window_kernel: attention in one kernel where the device and the sizes allow.
    """
    for block in backbone.modules():
        if isinstance(block, SwinTransformerBlock):
            block.__dict__.pop("forward", None)
            if skip_dropped or window_kernel:
                block.forward = partial(_block, block, skip_dropped, window_kernel)


def _block(block: Any, skip_dropped: bool, window_kernel: bool, x: Tensor) -> Tensor:
    """One block on [I, H, W, C]."""
    attend = block._attn
    heads, size, shift = block.attn.num_heads, block.window_size, block.shift_size
    if window_kernel and not block.attn.attn_drop.p and usable(x, heads, size, shift):
        attend = partial(_attend, block.attn, size[0], shift[0])
    add = _add_kept if skip_dropped else _add
    x = add(x, block.drop_path1, lambda part: attend(block.norm1(part)))
    return add(x, block.drop_path2, lambda part: block.mlp(block.norm2(part)))


def _attend(attention: Any, size: int, shift: int, x: Tensor) -> Tensor:
    """Window attention with its projections, on images [I, H, W, C] as they lie."""
    bias = attention._get_rel_pos_bias()[0].float()
    mixed = window_attention(attention.qkv(x), bias, size, shift)
    projected: Tensor = attention.proj_drop(attention.proj(mixed))
    return projected


def _add(x: Tensor, drop_path: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
    added: Tensor = x + drop_path(branch(x))
    return added


def _add_kept(x: Tensor, drop_path: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
    """x + branch(x) / (1 - p) in the images that keep the branch, each with probability 1 - p.

    timm computes it for all and multiplies by zero. Which are dropped is drawn on the host.
    """
    chance = float(getattr(drop_path, "drop_prob", 0.0) or 0.0)
    if not drop_path.training or not chance:
        return x + branch(x)
    kept = (torch.rand(len(x), device="cpu") >= chance).nonzero()[:, 0]
    scale = 1 / (1 - chance)
    if len(kept) == len(x):
        return torch.add(x, branch(x), alpha=scale)
    if not len(kept):
        return x
    kept = kept.to(x.device, non_blocking=True)
    part = branch(x.index_select(0, kept))
    return x.index_add(0, kept, part.to(x.dtype), alpha=scale)
