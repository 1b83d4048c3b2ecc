"""A folder of reference tensors (a parity case): configuration, weights and inputs, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xvlm_data.errors import UserError
from xvlm_train.data.batch import Batch
from xvlm_train.model.config import ModelConfig, TextConfig, VisionConfig
from xvlm_train.model.xvlm import XVLM

FIX = "give a complete parity folder"


def read_config(path: Path) -> ModelConfig:
    """The model of a parity folder's ``config.json``.

    Raises:
        UserError: no such file, not JSON, a size is missing or they contradict each other.
    """
    values = read_json(path)
    try:
        vision, text = values["vision"], values["text"]
        if text.get("hidden_act", "gelu") != "gelu":
            raise UserError(f"{path}: hidden_act {text['hidden_act']!r}", "only gelu is supported")
        config = ModelConfig(
            VisionConfig(
                name="swin_base_patch4_window7_224",
                kwargs={
                    "embed_dim": int(vision["embed_dim"]),
                    "depths": [int(depth) for depth in vision["depths"]],
                    "num_heads": [int(heads) for heads in vision["num_heads"]],
                    "window_size": int(vision["window_size"]),
                },
                image_size=int(vision["image_res"]),
            ),
            TextConfig(
                hidden=int(text["hidden_size"]),
                layers=int(text["num_hidden_layers"]),
                fusion_layer=int(text["fusion_layer"]),
                heads=int(text["num_attention_heads"]),
                intermediate=int(text["intermediate_size"]),
                vocab=int(text["vocab_size"]),
                max_positions=int(text["max_position_embeddings"]),
                token_types=int(text.get("type_vocab_size", 2)),
                pad_id=int(text.get("pad_token_id", 0)),
                layer_norm_eps=float(text.get("layer_norm_eps", 1e-12)),
            ),
            embed_dim=int(values["embed_dim"]),
        )
        sizes = [*vision["depths"], *vision["num_heads"], *config.vision.kwargs.values()]
        sizes += [config.vision.image_size, config.embed_dim, *asdict(config.text).values()]
        if any(isinstance(size, int) and size < 0 for size in sizes):
            raise UserError(f"{path}: a size below 0", FIX)
        if len(vision["depths"]) != len(vision["num_heads"]):
            raise UserError(f"{path}: vision depths and num_heads differ in length", FIX)
        width = config.vision.kwargs["embed_dim"] * 2 ** (len(vision["depths"]) - 1)
        for given in (vision.get("vision_width", width), text.get("encoder_width", width)):
            if given != width:
                raise UserError(f"{path}: vision width {given}, not {width}", FIX)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: {type(error).__name__} {error}", FIX) from None
    return config


def make_batch(
    images: Tensor, inputs: Mapping[str, Tensor], multi_grained: bool, model: XVLM, name: str
) -> Batch:
    """A batch of the case's inputs.

    Args:
        images: [I, 3, R, R] float32, as the model wants them.
        inputs: entries of ``<name>_inputs.safetensors``.
        multi_grained: which batch it is.
        model: its sizes bound what inputs may hold.
        name: of the batch, for messages.

    Raises:
        UserError: an entry is missing, or does not fit the model or the others.
    """

    def entry(key: str) -> Tensor:
        return entry_of(inputs, key, f"{name}_inputs")

    rows = len(entry("text_ids"))
    tokens = 1 + model.grid[0] * model.grid[1]
    if multi_grained:
        index, mask = entry("idx_to_group_img"), entry("image_atts")
        boxes, whole = entry("target_bbox"), entry("is_image").bool()
    else:
        index, mask = torch.arange(rows), torch.ones(rows, tokens, dtype=torch.int64)
        boxes, whole = torch.tensor([0.5, 0.5, 1, 1]).repeat(rows, 1), torch.ones(rows).bool()
    batch = Batch(
        images=images,
        image_index=index,
        patch_mask=mask,
        text_ids=entry("text_ids"),
        text_mask=entry("text_atts"),
        masked_ids=entry("text_ids_masked"),
        masked_positions=entry("masked_pos"),
        masked_labels=entry("masked_ids"),
        boxes=boxes,
        whole_image=whole,
        multi_grained=multi_grained,
        record_ids=[],
    )
    _check_batch(batch, model, tokens, name)
    return batch


def _check_batch(batch: Batch, model: XVLM, tokens: int, name: str) -> None:
    """Refuse inputs of other sizes than the configuration's, which torch would refuse at length."""
    rows, length = batch.text_ids.shape
    text, side = model.config.text, model.config.vision.image_size
    slots = batch.masked_positions.shape[-1]
    shapes = {
        "image_u8": (batch.images, (len(batch.images), 3, side, side)),
        "text_atts": (batch.text_mask, (rows, length)),
        "text_ids_masked": (batch.masked_ids, (rows, length)),
        "masked_pos": (batch.masked_positions, (rows, slots)),
        "masked_ids": (batch.masked_labels, (rows, slots)),
        "idx_to_group_img": (batch.image_index, (rows,)),
        "image_atts": (batch.patch_mask, (rows, tokens)),
        "target_bbox": (batch.boxes, (rows, 4)),
        "is_image": (batch.whole_image, (rows,)),
    }
    for key, (value, shape) in shapes.items():
        if tuple(value.shape) != shape:
            raise UserError(
                f"{name} inputs: {key} has shape {list(value.shape)}, not {list(shape)}", FIX
            )
    ranges = {
        "text_ids": (batch.text_ids, 0, text.vocab),
        "text_ids_masked": (batch.masked_ids, 0, text.vocab),
        "masked_pos": (batch.masked_positions, 0, length),
        "masked_ids": (batch.masked_labels, -100, text.vocab),
        "idx_to_group_img": (batch.image_index, 0, len(batch.images)),
        "text_ids (places)": (batch.text_ids.new_tensor([length - 1]), 0, text.max_positions),
    }
    for key, (value, low, high) in ranges.items():
        if value.is_floating_point() or not bool(((value >= low) & (value < high)).all()):
            raise UserError(f"{name} inputs: {key} outside [{low}, {high})", FIX)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All entries of a safetensors file; a UserError when there is none or it is corrupt."""
    if not path.is_file():
        raise UserError(f"{path}: not found", FIX)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})", FIX) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; a UserError when there is no such file or it holds something else."""
    if not path.is_file():
        raise UserError(f"{path}: not found", FIX)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})", FIX) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object", FIX)
    return values


def entry_of(tensors: Mapping[str, Tensor], key: str, file: str) -> Tensor:
    """One entry; a UserError naming ``file`` when it is not there."""
    if key not in tensors:
        raise UserError(f"{file}.safetensors has no entry {key}", FIX)
    return tensors[key]
