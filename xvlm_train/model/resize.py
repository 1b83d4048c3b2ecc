"""Weights of another resolution: tables of positions are interpolated, as timm does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor

from xvlm_train.model.xvlm import XVLM

_RELATIVE = ".relative_position_bias_table"
_ABSOLUTE, _OURS = "vision_encoder.backbone.pos_embed", "vision_encoder.pos_embed"


def resize_positions(
    found: Mapping[str, Tensor], model: XVLM
) -> tuple[dict[str, Tensor], list[str]]:
    """``found`` with every table of positions in the size that ``model`` has.

    Swin's relative-position tables are interpolated in the geometric steps that BEiT and the
    original use, since near positions matter more; a ViT's position embeddings bicubically, the
    class token's apart.

    Args:
        found: weights by our names.
        model: of the wanted resolution and windows.

    Returns:
        All weights, and the names of those that were resized. What cannot be is left as it is.
    """
    wanted = model.state_dict()
    resized = dict(found)
    names = []
    for name, value in found.items():
        if name not in wanted or value.shape == wanted[name].shape:
            continue
        new = _resized(name, value.float(), wanted[name], model)
        if new is not None and new.shape == wanted[name].shape:
            resized[name] = new.to(value.dtype)
            names.append(name)
    return resized, names


def _resized(name: str, value: Tensor, wanted: Tensor, model: XVLM) -> Tensor | None:
    grid = list(model.grid)
    if name.endswith(_RELATIVE):
        if value.shape[1] != wanted.shape[1]:  # other heads: other weights
            return None
        attention: Any = model.get_submodule(name.removesuffix(_RELATIVE))
        result: Tensor = resize_rel_pos_bias_table(value, attention.window_size, wanted.shape)
        return result
    if name == _ABSOLUTE and value.ndim == 3:
        prefix = wanted.shape[1] - grid[0] * grid[1]
        result = resample_abs_pos_embed(value, grid, num_prefix_tokens=prefix)
        return result
    if name == _OURS:
        result = resample_abs_pos_embed(value[None], grid, num_prefix_tokens=0)[0]
        return result
    return None
