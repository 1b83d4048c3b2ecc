"""Checkpoints: safetensors and plain text only, complete or absent.

Layout of ``RUN/checkpoints/step_00001000/``:

    model.safetensors      every parameter and persistent buffer once, under the model's own names
    optimizer.safetensors  ``<parameter>.<state>`` (exp_avg, exp_avg_sq, step)
    state.json             step, seed, loss scaler, which names share a tensor, format version,
                           and the size of every other file, so that a cut one is noticed
    config.yaml            the whole configuration
    tokenizer/             what turns text into ids for this model

A checkpoint is written beside its final name and renamed; then ``RUN/checkpoints/latest`` is
replaced by a file with its name. Random numbers and the position in both streams are functions of
(seed, step), so these two are the whole of that state.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from xvlm_data.errors import UserError

FOLDER, LATEST = "checkpoints", "latest"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_FORMAT = 1


@dataclass
class Checkpoint:
    """A complete checkpoint on disk and its plain state."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done when it was written."""
        return int(self.state["step"])


def save(
    run: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    write_extras: Callable[[Path], None],
    keep_last: int,
) -> Path:
    """Write ``run``'s checkpoint of step ``state["step"]`` and forget all but the newest.

    Args:
        run: the run's folder.
        model: without any wrapper.
        optimizer: with ``names`` in its groups (:func:`xvlm_train.engine.optim.parameter_groups`).
        state: plain JSON values; ``step`` is required.
        write_extras: writes the configuration and the tokenizer into the given folder.
        keep_last: how many checkpoints stay, at least 1.

    Raises:
        OSError: no space, no permission; what was there before is untouched.
    """
    folder = run / FOLDER
    final = folder / f"step_{state['step']:08d}"
    partial, replaced = folder / f".{final.name}.partial", folder / f".{final.name}.replaced"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tensors, shared = _unique_tensors(model)
        save_file(tensors, partial / MODEL)
        save_file(_optimizer_tensors(optimizer), partial / OPTIMIZER)
        write_extras(partial)
        document = {
            "format": _FORMAT,
            "files": _sizes(partial),
            "shared_tensors": shared,
            **state,
        }
        (partial / STATE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        _sync(partial)
        if final.exists():  # the same step of a run that was resumed from before it
            final.rename(replaced)
        partial.rename(final)
    except SafetensorError as error:  # safetensors wraps the operating system's errors
        raise OSError(f"{partial}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    pointer = folder / f".{LATEST}.partial"
    pointer.write_text(final.name + "\n", encoding="utf-8")
    pointer.replace(folder / LATEST)
    shutil.rmtree(replaced, ignore_errors=True)
    # Later steps than this one belong to a past that the run was resumed from before.
    past = sorted(path for path in folder.glob("step_*") if path.name <= final.name)
    for old in past[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _sync(folder: Path) -> None:
    """Bytes to the disk before the rename: a power cut must not leave a named, empty checkpoint."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file, by its path in ``folder``."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _unique_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The model's tensors, each once, and for every further name of one the name it is kept by."""
    tensors: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in first:
            shared[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor.contiguous()
    return tensors, shared


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.contiguous()
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def find(path: Path) -> Checkpoint:
    """The checkpoint at ``path``: itself a checkpoint, or a run's folder (its latest).

    Raises:
        UserError: nothing is there, or it is incomplete or unreadable.
    """
    if not path.exists():
        raise UserError(f"{path}: not found", "name a run's folder or one of its checkpoints")
    folder = path
    if (path / FOLDER).is_dir():
        path = path / FOLDER
    if (path / LATEST).is_file():
        folder = path / (path / LATEST).read_text(encoding="utf-8").strip()
    if not (folder / STATE).is_file():
        raise UserError(
            f"{folder}: no checkpoint ({STATE} is missing)",
            "name a run's folder or one of its checkpoints",
        )
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        version, step, sizes = state["format"], state["step"], dict(state["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / STATE, error) from None
    if version != _FORMAT or not isinstance(step, int):
        raise UserError(
            f"{folder / STATE}: checkpoint format {version!r}, known is {_FORMAT}",
            "use the version of xvlm that wrote it",
        )
    there = _sizes(folder)
    for name, size in sizes.items():
        if name not in there:
            raise _damaged(folder / name, "missing")
        if there[name] != size:
            raise _damaged(folder / name, f"{there[name]} bytes, {size} were written")
    return Checkpoint(folder, state)


def has_run(run: Path) -> bool:
    """Whether a run has left something in this folder that a new one would overwrite."""
    return (run / FOLDER).exists() or (run / "metrics.jsonl").exists()


def load_model(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Put the checkpoint's weights into ``model``, every one of them.

    Raises:
        UserError: file missing or damaged; names or shapes that do not fit the model.
    """
    path = checkpoint.path / MODEL
    tensors = _read(path)
    for alias, name in checkpoint.state.get("shared_tensors", {}).items():
        if name in tensors:
            tensors[alias] = tensors[name]
    expected = model.state_dict()
    differing = sorted(
        [f"{name} is missing" for name in expected.keys() - tensors.keys()]
        + [f"{name} is unknown" for name in tensors.keys() - expected.keys()]
        + [
            f"{name} has shape {list(tensors[name].shape)}, not {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ]
    )
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{path}: does not fit the model: {', '.join(differing[:3])}{more}",
            "use the model configuration it was trained with",
        )
    model.load_state_dict(tensors)


def load_optimizer(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Put the checkpoint's moments into ``optimizer``, whose groups carry ``names``.

    Raises:
        UserError: file missing or damaged, or of another set of parameters.
    """
    path = checkpoint.path / OPTIMIZER
    tensors = _read(path)
    states: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition(".")
        states.setdefault(name, {})[entry] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            # A parameter without gradient so far (the box head, before any box) has no state.
            entries = states.pop(name, {})
            for entry, value in entries.items():
                if entry != "step" and value.shape != parameter.shape:
                    raise UserError(
                        f"{path}: {name}.{entry} has shape {list(value.shape)},"
                        f" not {list(parameter.shape)}",
                        "use the configuration it was trained with",
                    )
                device = parameter.device if entry != "step" or _fused(group) else "cpu"
                optimizer.state[parameter][entry] = value.to(device)
    if states:
        raise UserError(
            f"{path}: moments of {len(states)} unknown parameters, such as {min(states)}",
            "use the configuration it was trained with",
        )


def _fused(group: dict[str, Any]) -> bool:
    return bool(group.get("fused"))


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise _damaged(path, "missing") from None
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, why: object) -> UserError:
    line = str(why).splitlines()[0] if str(why) else type(why).__name__
    return UserError(f"{path}: damaged ({line})", "resume from another checkpoint of the run")
