"""The reference's state dict, name by name, in both directions.

Our names are the reference's, except that the Swin sits in ``vision_encoder.backbone`` and, as in
timm, merges patches at the start of stage i+1 where the reference does at the end of stage i. The
reference also stores buffers that follow from the configuration, and the tied decoder twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from xvlm_data.errors import UserError
from xvlm_train.model.xvlm import XVLM

_OFFICIAL_MERGE = re.compile(r"^vision_encoder\.layers\.(\d+)\.downsample\.")
_OUR_MERGE = re.compile(r"^vision_encoder\.backbone\.layers\.(\d+)\.downsample\.")

#: Entries that repeat a parameter: the decoder is tied to the word embeddings.
ALIASES = {
    "text_encoder.cls.predictions.decoder.weight": (
        "text_encoder.bert.embeddings.word_embeddings.weight"
    ),
    "text_encoder.cls.predictions.decoder.bias": "text_encoder.cls.predictions.bias",
}


def our_name(official: str) -> str:
    """Our name of a parameter of the reference."""
    name = _OFFICIAL_MERGE.sub(
        lambda m: f"vision_encoder.layers.{int(m[1]) + 1}.downsample.", official
    )
    return re.sub(r"^vision_encoder\.(?!backbone\.)", "vision_encoder.backbone.", name)


def official_name(ours: str) -> str:
    """The reference's name of a parameter of ours; undoes :func:`our_name`."""
    name = _OUR_MERGE.sub(
        lambda m: f"vision_encoder.backbone.layers.{int(m[1]) - 1}.downsample.", ours
    )
    return name.replace("vision_encoder.backbone.", "vision_encoder.", 1)


def from_official(state: Mapping[str, Tensor], model: XVLM) -> dict[str, Tensor]:
    """The reference's entries as a state dict of ``model``; every entry is accounted for.

    Floating entries become float32. Buffers and tied duplicates are compared with what our
    configuration and the parameters give, then left out.

    Raises:
        UserError: an entry is missing, unknown, of another shape, or contradicts the configuration.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    derived = _derived(model)
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in derived:
            same = derived[name].shape == value.shape and torch.equal(
                derived[name].to(value.dtype), value
            )
            if not same:
                raise UserError(
                    f"state dict entry {name} does not agree with the configuration",
                    "check image size and window size",
                )
        elif name in ALIASES:
            if ALIASES[name] in state and not torch.equal(value, state[ALIASES[name]]):
                raise UserError(
                    f"state dict entry {name} differs from {ALIASES[name]}",
                    "the two are one parameter here; the weights are of another model",
                )
        elif (our := our_name(name)) not in wanted:
            raise UserError(
                f"state dict entry {name} is not known", "the weights are of another model"
            )
        elif tuple(value.shape) != wanted[our]:
            raise UserError(
                f"state dict entry {name} has shape {list(value.shape)}, not {list(wanted[our])}",
                "check the sizes in the configuration",
            )
        else:
            ours[our] = value.float() if value.is_floating_point() else value
    missing = [official_name(name) for name in wanted if name not in ours]
    if missing:
        raise UserError(
            f"state dict lacks {len(missing)} entries, such as {missing[0]}",
            "the weights are of another model, or incomplete",
        )
    return ours


def to_official(model: XVLM) -> dict[str, Tensor]:
    """All entries of the reference's state dict, buffers and tied duplicates included."""
    state = {official_name(name): value for name, value in model.state_dict().items()}
    return state | {alias: state[name] for alias, name in ALIASES.items()} | _derived(model)


def _derived(model: XVLM) -> dict[str, Tensor]:
    """The reference's buffers, as our configuration gives them."""
    positions = model.config.text.max_positions
    device = model.temp.device
    buffers = {
        "text_encoder.bert.embeddings.position_ids": torch.arange(positions, device=device)[None]
    }
    for name, buffer in model.vision_encoder.backbone.named_buffers():
        if name.endswith((".relative_position_index", ".attn_mask")):
            buffers[f"vision_encoder.{name}"] = buffer
    return buffers
