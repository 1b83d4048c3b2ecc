"""The reference's state dict, name by name, in both directions.

Our names are the reference's, except that the Swin sits in ``vision_encoder.backbone`` and, as in
timm, merges patches at the start of stage i+1 where the reference does at the end of stage i. The
reference also stores buffers that follow from the configuration, and the tied decoder twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xvlm_data.errors import UserError
from xvlm_train.model.resize import resize_positions
from xvlm_train.model.xvlm import XVLM

_OFFICIAL_MERGE = re.compile(r"^vision_encoder\.layers\.(\d+)\.downsample\.")
#: Ends of the names of what follows from image and window size.
_BUFFERS = (".relative_position_index", ".attn_mask", ".position_ids")
#: What lies beside our backbones. The reference has none, and some backbones have one inside.
_BESIDE = re.compile(r"^vision_encoder\.(?=pos_embed$|pos_norm\.)")
_OUR_MERGE = re.compile(r"^vision_encoder\.backbone\.layers\.(\d+)\.downsample\.")

#: A row for each token of the vocabulary.
WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"
#: Entries that repeat a parameter: the decoder is tied to the word embeddings.
ALIASES = {
    "text_encoder.cls.predictions.decoder.weight": WORDS,
    "text_encoder.cls.predictions.decoder.bias": "text_encoder.cls.predictions.bias",
}


def our_name(official: str) -> str:
    """Our name of a parameter of the reference."""
    name = _OFFICIAL_MERGE.sub(
        lambda m: f"vision_encoder.layers.{int(m[1]) + 1}.downsample.", official
    )
    name = re.sub(r"^vision_encoder\.(?!backbone\.)", "vision_encoder.backbone.", name)
    return re.sub(r"^vision_position\.", "vision_encoder.", name)


def official_name(ours: str) -> str:
    """The reference's name of a parameter of ours; undoes :func:`our_name`."""
    name = _OUR_MERGE.sub(
        lambda m: f"vision_encoder.backbone.layers.{int(m[1]) - 1}.downsample.", ours
    )
    name = _BESIDE.sub("vision_position.", name)
    return name.replace("vision_encoder.backbone.", "vision_encoder.", 1)


@dataclass
class Imported:
    """Weights of the reference in our names, and what became of all entries."""

    weights: dict[str, Tensor]
    unused: list[str] = field(default_factory=list)
    """Entries that the model has no use for."""
    derived: list[str] = field(default_factory=list)
    """Buffers of another resolution than the model's, which has its own."""
    resized: list[str] = field(default_factory=list)
    """Tables of positions that were interpolated, in our names."""
    missing: list[str] = field(default_factory=list)
    """What the model has and the entries do not, in our names."""


def import_official(state: Mapping[str, Tensor], model: XVLM) -> Imported:
    """The reference's entries as a state dict of ``model``, of another resolution if need be.

    Floating entries become float32. Tied duplicates are compared with what they repeat, and left
    out.

    Raises:
        UserError: tied entries differ; an entry has another shape and is no table of positions.
    """
    wanted = model.state_dict()
    derived = _derived(model)
    report = Imported({})
    for name, value in state.items():
        if name in derived or name.endswith(_BUFFERS):
            if name not in derived or not _same(derived[name], value):
                report.derived.append(name)
        elif name in ALIASES:
            _check_alias(name, state)
        elif (ours := our_name(name)) in wanted:
            report.weights[ours] = value.float() if value.is_floating_point() else value
        else:
            report.unused.append(name)
    report.weights, report.resized = resize_positions(report.weights, model)
    for name, value in report.weights.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"state dict entry {official_name(name)} has shape {list(value.shape)},"
                f" not {list(wanted[name].shape)}",
                "check the sizes in the configuration",
            )
    report.missing = [name for name in wanted if name not in report.weights]
    return report


def from_official(state: Mapping[str, Tensor], model: XVLM) -> dict[str, Tensor]:
    """The reference's entries as a state dict of ``model``; every entry is accounted for.

    Floating entries become float32. Buffers and tied duplicates are compared with what our
    configuration and the parameters give, then left out.

    Raises:
        UserError: an entry is missing, unknown, of another shape, or contradicts the configuration.
    """
    report = import_official(state, model)
    if report.derived or report.resized:
        name = (report.derived or [official_name(name) for name in report.resized])[0]
        raise UserError(
            f"state dict entry {name} does not agree with the configuration",
            "check image size and window size",
        )
    if report.unused:
        raise UserError(
            f"state dict entry {report.unused[0]} is not known", "the weights are of another model"
        )
    if report.missing:
        raise UserError(
            f"state dict lacks {len(report.missing)} entries, such as"
            f" {official_name(report.missing[0])}",
            "the weights are of another model, or incomplete",
        )
    return report.weights


def _check_alias(name: str, state: Mapping[str, Tensor]) -> None:
    if ALIASES[name] in state and not torch.equal(state[name], state[ALIASES[name]]):
        raise UserError(
            f"state dict entry {name} differs from {ALIASES[name]}",
            "the two are one parameter here; the weights are of another model",
        )


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours.to(theirs.dtype), theirs)


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
