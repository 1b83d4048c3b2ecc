"""Initial weights from timm and from BERT, by hub name or from local safetensors files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xvlm_data.errors import UserError
from xvlm_train.model.vision import VisionEncoder
from xvlm_train.model.xvlm import XVLM

_FILE = "model.safetensors"
_NEW_PARTS = ("temp", "vision_proj.", "text_proj.", "itm_head.", "bbox_head.")


@dataclass
class Initialised:
    """Where the weights of a model came from."""

    sources: dict[str, str] = field(default_factory=dict)
    """Part (vision, text) → the file it was loaded from; absent for a part trained from scratch."""
    new: set[str] = field(default_factory=set)
    """Parameters for the higher learning rate: new by design, or lacking in the checkpoint."""
    dropped: list[str] = field(default_factory=list)
    """Entries of the checkpoints that the model has no use for (classifier, pooler, …)."""


def is_new_by_design(name: str) -> bool:
    """Whether no pre-trained model can give this parameter: cross-attention, projections, heads, τ.

    These are the parameters of the doubled learning rate in the original, also where an encoder
    starts from scratch.
    """
    return (
        name.startswith(_NEW_PARTS)
        or ".crossattention." in name
        or name.startswith("vision_encoder.pos_")
    )


def initialise(model: XVLM) -> Initialised:
    """Load the weights that ``model.config`` names into the vision and the text encoder, in place.

    Raises:
        UserError: not found or offline, no safetensors, or weights of another architecture.
    """
    report = Initialised(new={n for n, _ in model.named_parameters() if is_new_by_design(n)})
    vision, text = model.config.vision.pretrained, model.config.text.pretrained
    if vision:
        name = model.config.vision.name if vision is True else vision
        path = _locate(name, _timm_repository(name), "model.vision.pretrained")
        report.sources["vision"] = str(path)
        report.dropped += load_vision(model.vision_encoder, read_weights(path), str(path))
    if text:
        path = _locate(text, text, "model.text.pretrained")
        report.sources["text"] = str(path)
        _check_heads(model, path)
        missing, dropped = load_text(model, read_weights(path), str(path))
        report.new |= missing
        report.dropped += dropped
    return report


def load_vision(encoder: VisionEncoder, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Load timm weights into the backbone; relative positions are resized to its windows.

    Returns:
        Entries that were left out (the classifier).

    Raises:
        UserError: an entry that the backbone needs is missing or of another shape.
    """
    backbone = encoder.backbone
    adapt = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    try:
        adapted = dict(weights) if adapt is None else adapt(dict(weights), backbone)
    except (AssertionError, AttributeError, KeyError, RuntimeError, ValueError):
        raise _other(source, encoder.name, "timm cannot read them") from None
    wanted: dict[str, Tensor] = dict(backbone.state_dict())
    _check(adapted, wanted, source, encoder.name)
    backbone.load_state_dict({name: adapted[name] for name in wanted})
    return [f"vision: {name}" for name in adapted if name not in wanted]


def load_text(
    model: XVLM, weights: Mapping[str, Tensor], source: str
) -> tuple[set[str], list[str]]:
    """Load BERT weights under Hugging Face's names, with or without the prefix ``bert.``.

    Returns:
        Parameters of the token prediction head that a bare BERT lacks, in our names; and entries
        that were left out (pooler, next-sentence head, tied decoder, layers beyond ours).

    Raises:
        UserError: another embedding or layer entry is missing, or of another shape.
    """
    found = {_bert_name(name): value for name, value in weights.items()}
    bias = "cls.predictions.bias"
    if bias not in found and "cls.predictions.decoder.bias" in found:
        found[bias] = found.pop("cls.predictions.decoder.bias")
    own = {
        name: value
        for name, value in model.text_encoder.state_dict().items()
        if ".crossattention." not in name
    }
    missing = {name for name in own if name.startswith("cls.") and name not in found}
    wanted = {name: value for name, value in own.items() if name not in missing}
    _check(found, wanted, source, "the text encoder")
    model.text_encoder.load_state_dict({name: found[name] for name in wanted}, strict=False)
    dropped = [f"text: {name}" for name in found if name not in wanted]
    return {f"text_encoder.{name}" for name in missing}, dropped


def read_weights(path: Path) -> dict[str, Tensor]:
    """All entries of a safetensors file, floating ones as float32.

    Raises:
        UserError: the file is corrupt.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})", "download it again") from None
    return {
        name: value.to(torch.float32) if value.is_floating_point() else value
        for name, value in weights.items()
    }


def _bert_name(name: str) -> str:
    """Today's name of an entry: published BERTs call LayerNorm's two gamma and beta."""
    if name.endswith(("LayerNorm.gamma", "LayerNorm.beta")):
        name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"


def _check(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, part: str
) -> None:
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise _other(source, part, f"{len(lacking)} entries lack, such as {lacking[0]}")
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            shapes = f"{list(found[name].shape)}, here {list(value.shape)}"
            raise _other(source, part, f"{name} has shape {shapes}")


def _other(source: str, part: str, why: str) -> UserError:
    return UserError(
        f"{source}: not weights of {part} as configured ({why})",
        "give weights of this architecture, or change its sizes under model",
    )


def _check_heads(model: XVLM, path: Path) -> None:
    """The number of heads does not show in shapes, but the file's neighbour tells it."""
    config = path.with_name("config.json")
    try:
        heads = json.loads(config.read_text(encoding="utf-8")).get("num_attention_heads")
    except (OSError, ValueError, AttributeError):
        return
    if heads is not None and heads != model.config.text.heads:
        raise _other(
            str(path),
            "the text encoder",
            f"{heads} attention heads, here {model.config.text.heads}",
        )


def _timm_repository(name: str) -> str | None:
    """The hub repository of a timm model name, or the name itself where it is a repository."""
    if "/" in name:
        return name.removeprefix("hf-hub:").removeprefix("hf_hub:")
    if not timm.is_model(name):
        return None
    repository: str | None = timm.get_pretrained_cfg(name).hf_hub_id
    return repository


def _locate(name: str, repository: str | None, key: str) -> Path:
    """The safetensors file of a local path, else of a hub repository (cached or downloaded)."""
    local = Path(name).expanduser()
    if local.is_file() and local.suffix == ".safetensors":
        return local
    if local.exists():
        if (local / _FILE).is_file():
            return local / _FILE
        raise UserError(
            f"{key}: {local} holds no {_FILE}",
            "pickles (.bin, .pt, .pth) are never loaded; convert them to safetensors",
        )
    if repository is None:
        raise UserError(
            f"{key}: {name!r} is neither a local path nor a model with published weights",
            "give a hub name, a folder with model.safetensors, or false",
        )
    return _download(repository, key)


def _download(repository: str, key: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    elsewhere = (
        f"download {_FILE} and config.json of {repository} elsewhere and give their folder as {key}"
    )
    try:
        path = Path(hf_hub_download(repository, _FILE))
    except LocalEntryNotFoundError:
        raise UserError(
            f"{key}: {repository} is not here and the hub is offline", elsewhere
        ) from None
    except EntryNotFoundError:
        raise UserError(
            f"{key}: {repository} publishes no {_FILE}, and pickles are never loaded",
            "convert its weights to safetensors elsewhere and give their folder",
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{key}: no repository {repository!r} on the hub",
            "check the name, or give a local folder",
        ) from None
    except Exception as error:  # whatever a network can raise, the advice is the same
        raise UserError(
            f"{key}: {repository} cannot be downloaded ({type(error).__name__})", elsewhere
        ) from None
    if key.startswith("model.text"):
        try:
            hf_hub_download(repository, "config.json")
        except Exception:  # only a cross-check of the number of heads depends on it
            return path
    return path
