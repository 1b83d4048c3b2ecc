"""FSDP2: parameters, gradients and moments in parts, one on each rank.

The optimiser works on each rank's parts as plain tensors, which is all that AdamW needs and keeps
its update (fused, and skipped on the device) the same as without sharding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from xvlm_train.engine.weights import local_part, model_tensors

ShardingDtype = Literal["fp32", "bf16"]


@torch.no_grad()
def copy_from_main(model: nn.Module) -> None:
    """Give rank 0's weights and buffers to all, as DDP does when it is made."""
    for tensor in model_tensors(model)[0].values():
        dist.broadcast(tensor, 0)


@torch.no_grad()
def copy_buffers_from_main(model: nn.Module) -> None:
    """Give rank 0's buffers to all, as DDP does before each pass.

    The running statistics of batch norms are of each rank's own batches; a checkpoint has one.
    """
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)


def shard(
    root: nn.Module,
    units: Iterable[nn.Module],
    *,
    device: torch.device,
    dtype: ShardingDtype,
) -> None:
    """Shard ``root`` over all ranks, in place.

    Args:
        root: the module that the loop calls.
        units: submodules that are gathered and freed one by one, in the order of the forward pass;
            each is called by its ``forward`` and no more than once in a pass.
        device: of this rank.
        dtype: of the parameters while they are gathered; gradients are summed in float32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if dtype == "bf16" else None,
        reduce_dtype=torch.float32,
        # Boxes and losses stay in float32; autocast knows which inputs may be less.
        cast_forward_inputs=False,
    )
    # FSDP2 takes contiguous parameters alone; those of convolutions may lie channels last.
    for parameter in root.parameters():
        parameter.data = parameter.data.contiguous()
    # It shards the first dimension, which a scalar does not have.
    scalars = {p for p in root.parameters() if p.dim() == 0}
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(root, mesh=mesh, mp_policy=policy, ignored_params=scalars)


class ShardedGradients:
    """Parameters of a sharded model as the optimiser sees them: this rank's parts.

    Args:
        parameters: names and parameters of the model, sharded; some (scalars) may be whole.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        self.named_local: list[tuple[str, nn.Parameter]] = []
        self.sharded: dict[str, Tensor] = {}
        """The parameters by name, as they are in the model."""
        for name, parameter in parameters:
            local = parameter
            if isinstance(parameter, DTensor):
                # The same memory, so that what the optimiser changes is the model's.
                local = nn.Parameter(parameter.to_local(), requires_grad=parameter.requires_grad)
            self._pairs.append((parameter, local))
            self.named_local.append((name, local))
            self.sharded[name] = parameter

    def clip(self, most: float) -> Tensor:
        """Bring the norm of all gradients down to ``most``; what it was, equal on all ranks."""
        self._hand_over()
        parts: list[Tensor] = []
        whole: list[Tensor] = []
        for parameter, local in self._pairs:
            if local.grad is not None:
                (parts if isinstance(parameter, DTensor) else whole).append(local.grad)
        squares = nn.utils.get_total_norm(parts).square()
        dist.all_reduce(squares)
        norm = (squares + nn.utils.get_total_norm(whole).square().to(squares.device)).sqrt()
        nn.utils.clip_grads_with_norm_([local for _, local in self._pairs], most, norm)
        return norm

    def forget(self) -> None:
        """Free the gradients."""
        for parameter, local in self._pairs:
            parameter.grad = local.grad = None

    def as_parts(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's moments (``<parameter>.<state>``) as parts of whole tensors."""
        parts = {}
        for key, value in moments.items():
            name, _, entry = key.rpartition(".")
            whole = self.sharded[name]
            if entry != "step" and isinstance(whole, DTensor):
                value = DTensor.from_local(
                    value,
                    whole.device_mesh,
                    whole.placements,
                    run_check=False,
                    shape=whole.shape,
                    stride=whole.stride(),
                )
            parts[key] = value
        return parts

    @torch.no_grad()
    def _hand_over(self) -> None:
        """Gradients of the parameters to their local parts."""
        world = dist.get_world_size()
        for parameter, local in self._pairs:
            if parameter.grad is None:
                continue
            if isinstance(parameter, DTensor):
                local.grad = local_part(parameter.grad)
            else:  # not sharded, so FSDP2 did not sum it
                dist.all_reduce(parameter.grad)
                parameter.grad /= world


@torch.no_grad()
def gather_model(model: nn.Module, into: nn.Module | None) -> None:
    """Copy a sharded model's weights, tensor by tensor, into a whole one; a collective.

    Args:
        model: sharded.
        into: a whole model of the same kind, on the rank that wants it.
    """
    targets = {} if into is None else into.state_dict()
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if name in targets:
            targets[name].copy_(whole)


def blocks_of(model: nn.Module, is_block: Callable[[str], object]) -> list[nn.Module]:
    """The submodules whose names ``is_block`` accepts, in order, none inside another."""
    found: list[nn.Module] = []
    taken: list[str] = []
    for name, module in model.named_modules():
        if not any(name.startswith(f"{outer}.") for outer in taken) and is_block(name):
            found.append(module)
            taken.append(name)
    return found
