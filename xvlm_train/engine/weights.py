"""The tensors of a model and of its optimiser by name, out of them and back into them.

Tensors may be sharded over ranks (DTensor); then files are read slice by slice with torch's
distributed checkpoint, which reads whole and sharded safetensors alike and no pickle.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor

from xvlm_data.errors import UserError
from xvlm_train.engine.checkpoint import EMA, MODEL, OPTIMIZER, SUFFIX, Checkpoint, damaged


def model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The model's tensors, each once, and for every further name of one the name it is kept by."""
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), name)
        if kept != name:
            shared[name] = kept
    tensors = {k: v for k, v in model.state_dict().items() if k not in shared}
    return tensors, shared


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def volatile_names(model: nn.Module) -> set[str]:
    """Tensors that a forward pass may change: buffers, and scalars (the clamped temperature)."""
    scalars = {name for name, parameter in model.named_parameters() if parameter.dim() == 0}
    return scalars | {name for name, _ in model.named_buffers()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """``<parameter>.<state>`` of an optimiser whose groups carry ``names``."""
    return {
        f"{name}.{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_model(checkpoint: Checkpoint, model: nn.Module, part: str = MODEL) -> None:
    """Put the checkpoint's weights into ``model``, every one of them.

    Args:
        checkpoint: from :func:`xvlm_train.engine.checkpoint.find`.
        model: sharded or not.
        part: the weights as they were trained, or their average.

    Raises:
        UserError: the checkpoint has no such part; names or shapes that do not fit the model.
    """
    if not checkpoint.has(part):
        raise UserError(
            f"{checkpoint.path}: holds no {part} weights", "the run was made without them"
        )
    shared = checkpoint.state.get("shared_tensors", {})
    expected = {k: v for k, v in model.state_dict().items() if k not in shared}
    path = checkpoint.path / part
    found = _read(path, expected.get)
    check_fit(str(path), found, expected)
    model.load_state_dict(found | {alias: found[name] for alias, name in shared.items()})


def load_average(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Put the checkpoint's averaged weights into ``tensors``.

    Raises:
        UserError: names or shapes that do not fit.
    """
    path = checkpoint.path / EMA
    found = _read(path, tensors.get)
    check_fit(str(path), found, tensors)
    for name, value in tensors.items():
        value.copy_(found[name])


def check_fit(path: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of tensors with those of a model.

    Raises:
        UserError: any of them differs.
    """
    differing = sorted(
        [f"{name} is missing" for name in expected.keys() - found.keys()]
        + [f"{name} is unknown" for name in found.keys() - expected.keys()]
        + [
            f"{name} has shape {list(found[name].shape)}, not {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ]
    )
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{path}: does not fit the model: {', '.join(differing[:3])}{more}",
            "use the model configuration it was trained with",
        )


def load_optimizer(
    checkpoint: Checkpoint,
    optimizer: torch.optim.Optimizer,
    like: Mapping[str, Tensor] | None = None,
) -> None:
    """Put the checkpoint's moments into ``optimizer``, whose groups carry ``names``.

    Args:
        checkpoint: from :func:`xvlm_train.engine.checkpoint.find`.
        optimizer: over plain tensors; of a sharded model, over the local parts.
        like: the sharded parameters by name, where ``optimizer`` works on their local parts.

    Raises:
        UserError: moments of another set of parameters.
    """
    path = checkpoint.path / OPTIMIZER
    parameters = {
        name: (group, parameter)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    whole = {name: (like or {}).get(name, p) for name, (_, p) in parameters.items()}

    def moment_like(key: str) -> Tensor | None:
        name, _, entry = key.rpartition(".")
        return None if entry == "step" else whole.get(name)

    states: dict[str, dict[str, Tensor]] = {}
    for key, value in _read(path, moment_like).items():
        name, _, entry = key.rpartition(".")
        states.setdefault(name, {})[entry] = value
    for name, (group, parameter) in parameters.items():
        # A parameter without gradient so far (the box head, before any box) has no state.
        for entry, value in states.pop(name, {}).items():
            if entry != "step" and value.shape != whole[name].shape:
                raise UserError(
                    f"{path}: {name}.{entry} has shape {list(value.shape)},"
                    f" not {list(whole[name].shape)}",
                    "use the configuration it was trained with",
                )
            if entry == "step":
                device = parameter.device if group.get("fused") else "cpu"
                optimizer.state[parameter][entry] = value.to(device)
                continue
            # Laid out as the parameter is, channels last or not: the fused update walks over their
            # memory side by side.
            moment = torch.empty_like(local_part(parameter), dtype=value.dtype)
            optimizer.state[parameter][entry] = moment.copy_(local_part(value))
    if states:
        raise UserError(
            f"{path}: moments of {len(states)} unknown parameters, such as {min(states)}",
            "use the configuration it was trained with",
        )


def _read(path: Path, like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """The tensors of ``path.safetensors``, or of the shards in the folder ``path``.

    Each is cut and placed as the tensor that ``like`` gives for its name; others come whole.
    """
    file = path.with_name(path.name + SUFFIX)
    try:
        if path.is_dir():
            return _read_shards(path, like)
        return {name: _cut(value, like(name)) for name, value in load_file(file).items()}
    except FileNotFoundError:
        raise damaged(file, "missing") from None
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise damaged(path if path.is_dir() else file, error) from None


def _cut(value: Tensor, like: Tensor | None) -> Tensor:
    if not isinstance(like, DTensor) or like.shape != value.shape:
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _read_shards(folder: Path, like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    reader = HuggingFaceStorageReader(str(folder))
    targets: dict[str, Any] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        model, dtype = like(name), entry.properties.dtype
        if isinstance(model, DTensor) and model.shape == entry.size:
            targets[name] = torch.empty_like(model, dtype=dtype)
        else:
            targets[name] = torch.empty(entry.size, dtype=dtype)
    alone = not dist.is_initialized()
    with warnings.catch_warnings():
        if alone:  # torch wonders whether that is meant
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(targets, storage_reader=reader, no_dist=alone)
    return targets
