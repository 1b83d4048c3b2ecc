"""Trained models on disk: checkpoints of runs, and folders for use in the layout of the Hub.

Such a folder holds ``config.json``, ``model.safetensors``, ``tokenizer.json`` and ``vocab.txt``,
and a ``README.md``; it can be uploaded as it is and is loaded by its path or repository name.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from xvlm_data.errors import UserError
from xvlm_train import __version__
from xvlm_train.config import PretrainConfig, config_tree, load_config, parse_config
from xvlm_train.data.tokenizer import Tokenizer
from xvlm_train.engine import checkpoint
from xvlm_train.engine.checkpoint import EMA, MODEL, OPTIMIZER
from xvlm_train.engine.weights import check_fit, load_model
from xvlm_train.model.resize import resize_positions
from xvlm_train.model.xvlm import XVLM

CONFIG_FILE, TOKENIZER_FOLDER = "config.yaml", "tokenizer"
HUB_CONFIG, HUB_WEIGHTS, HUB_CARD = "config.json", "model.safetensors", "README.md"
_HUB_FILES = (HUB_CONFIG, HUB_WEIGHTS, "tokenizer.json", "vocab.txt")


@dataclass
class Saved:
    """A model with what its use needs."""

    path: Path
    step: int | None
    """Of the run; none for a folder in the Hub's layout."""
    config: PretrainConfig
    tokenizer: Tokenizer | None
    """None where the folder has none (imported weights)."""
    model: XVLM

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a folder in the Hub's layout; see :func:`save_pretrained`."""
        save_pretrained(Path(folder), self.model, self.config, self.tokenizer)


def load_saved(path: Path, device: torch.device, *, average: bool = False) -> Saved:
    """Load a checkpoint, the newest undamaged one of a run, or a folder in the Hub's layout.

    Args:
        path: one of these.
        device: where the model goes, in evaluation mode.
        average: of a run that averages, the averaged weights.

    Raises:
        UserError: nothing there, or something in it is missing or damaged.
    """
    if (path / HUB_CONFIG).is_file() and not (path / checkpoint.STATE).exists():
        if average:
            raise UserError(f"{path}: holds one set of weights", "leave out --ema")
        return from_pretrained(path, device=device)
    found = checkpoint.find(path, unused=(OPTIMIZER, MODEL if average else EMA))
    config = load_config(files=[found.path / CONFIG_FILE])
    model = XVLM(config.model)
    load_model(found, model, EMA if average else MODEL)
    tokenizer = _fitting(Tokenizer.load(found.path / TOKENIZER_FOLDER), config, found.path)
    return Saved(found.path, found.step, config, tokenizer, model.eval().to(device))


def save_pretrained(
    folder: Path, model: XVLM, config: PretrainConfig, tokenizer: Tokenizer | None
) -> None:
    """Write a model for use, complete or not at all.

    Args:
        folder: must not exist, or be empty.
        model: its weights are written as float32, without pickle.
        config: of which model and texts are used.
        tokenizer: none: whoever loads it has to bring one.

    Raises:
        UserError: something is in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists", "give another --out")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        document = {
            "architectures": ["XVLM"],
            "model_type": "xvlm",
            "xvlm_version": __version__,
            "config": config_tree(config),
        }
        text = json.dumps(document, indent=1) + "\n"
        (partial / HUB_CONFIG).write_text(text, encoding="utf-8")
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, partial / HUB_WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(partial)
        (partial / HUB_CARD).write_text(_card(model), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except SafetensorError as error:  # safetensors wraps the operating system's errors
        raise OSError(f"{partial}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def from_pretrained(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    image_size: int | None = None,
) -> Saved:
    """Load a folder in the Hub's layout, in evaluation mode.

    Args:
        name: its path, or a repository of the Hub.
        device: where the model goes.
        image_size: other than the folder's; tables of positions are interpolated.

    Raises:
        UserError: not found, incomplete, damaged, or weights of another model.
    """
    folder = locate(name)
    config = read_config(folder)
    if image_size is not None:
        config = at_image_size(config, image_size)
    model = XVLM(config.model)
    load_weights(folder, model)
    has_tokenizer = (folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists()
    tokenizer = _fitting(Tokenizer.load(folder), config, folder) if has_tokenizer else None
    return Saved(folder, None, config, tokenizer, model.eval().to(device))


def _fitting(tokenizer: Tokenizer, config: PretrainConfig, folder: Path) -> Tokenizer:
    """The tokenizer, all of whose ids the model knows."""
    if tokenizer.vocab_size > config.model.text.vocab:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its model"
            f" {config.model.text.vocab}",
            "put back the tokenizer that it was trained with",
        )
    return tokenizer


def locate(name: str | Path) -> Path:
    """The folder of that path, or of the Hub's repository, downloaded if it is not here.

    Raises:
        UserError: neither.
    """
    return Path(name) if Path(name).exists() else _download(str(name))


def load_weights(folder: Path, model: XVLM) -> list[str]:
    """Load the weights of a folder into ``model``; the tables of positions that were resized.

    Raises:
        UserError: damaged, or weights of another model.
    """
    path = folder / HUB_WEIGHTS
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error})", "export or download it again"
        ) from None
    weights, resized = resize_positions(found, model)
    check_fit(str(path), weights, model.state_dict())
    model.load_state_dict(weights)
    return resized


def at_image_size(config: PretrainConfig, size: int) -> PretrainConfig:
    """The configuration for images of another size; a Swin's windows grow with the images.

    Swin-B at 384 pixels so has windows of 12, as the original's configuration for that size.
    """
    vision = config.model.vision
    kwargs = dict(vision.kwargs)
    if "window7_224" in vision.name:
        window = kwargs.get("window_size", 7) * size / vision.image_size
        if window != int(window):
            raise UserError(
                f"images of {size} pixels do not divide into windows of {vision.name}",
                f"use a multiple of {vision.image_size // 7}",
            )
        kwargs["window_size"] = int(window)
    vision = replace(vision, image_size=size, kwargs=kwargs)
    return replace(
        config,
        model=replace(config.model, vision=vision),
        data=replace(config.data, image_size=size),
    )


def read_config(folder: Path) -> PretrainConfig:
    """The configuration of a folder.

    Raises:
        UserError: it is not there, or that of something else.
    """
    path = folder / HUB_CONFIG
    fix = "give a folder that `xvlm-train export` or `import` wrote"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        kind, tree = document["model_type"], document["config"]
    except FileNotFoundError:
        raise UserError(f"{path}: not found", fix) from None
    except (ValueError, KeyError, TypeError) as error:
        what = f"{path}: no configuration of an X-VLM ({type(error).__name__}: {error})"
        raise UserError(what, fix) from None
    if kind != "xvlm" or not isinstance(tree, dict):
        raise UserError(f"{path}: a model of the type {kind!r}", fix)
    return parse_config(tree, str(path))


def dictated(folder: Path) -> dict[str, Any]:
    """The settings of a run that starts with a folder's weights: its model, and its tokenizer."""
    tree = config_tree(read_config(folder))
    if (folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists():
        tree["tokenizer"]["name"] = str(folder.absolute())
    chosen = {name: tree[name] for name in ("model", "tokenizer")}
    # The weights are in the folder, those that it once began with are of no use.
    chosen["model"]["vision"]["pretrained"] = False
    chosen["model"]["text"]["pretrained"] = None
    return chosen | {"data": {"image_size": tree["data"]["image_size"]}}


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # offline, unknown, gated: each layer raises its own
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{repository}: neither a folder here nor to be had from the Hub ({line})",
            "give a folder that `xvlm-train export` or `import` wrote",
        ) from None


def _card(model: XVLM) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"""---
library_name: xvlm
tags: [vision-language, x-vlm]
---
# X-VLM

{model.config.vision.name} at {model.config.vision.image_size} pixels, {parameters:,} parameters.

```python
from xvlm_train.saved import from_pretrained

saved = from_pretrained("this repository or folder")
saved.model, saved.tokenizer, saved.config
```
"""
