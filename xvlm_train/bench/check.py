"""Whether two ways of computing a step give the same losses and gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xvlm_train.data.batch import Batch
from xvlm_train.model.config import ComputeConfig, Parity
from xvlm_train.model.xvlm import XVLM
from xvlm_train.objectives import compute_losses

#: Largest difference of a loss, relative to it, and of a parameter's gradient in its L2 norm.
TOLERANCE = 1e-5
#: Gradients below this share of the whole gradient's norm are zero in exact arithmetic (the biases
#: of attention keys): they are compared with the whole.
_NOISE = 1e-6


@dataclass(frozen=True)
class Difference:
    """The largest differences of one batch."""

    loss: float
    """|a - b| / max(1, |b|) of the loss that differs most."""
    gradient: float
    """norm(a - b) / norm(b) of the parameter whose gradient differs most."""
    parameter: str
    """Its name."""

    @property
    def ok(self) -> bool:
        """Both are within :data:`TOLERANCE`."""
        return self.loss <= TOLERANCE and self.gradient <= TOLERANCE


def compare(
    model: XVLM, batch: Batch, one: ComputeConfig, other: ComputeConfig, parity: Parity
) -> Difference:
    """How far ``one`` is from ``other`` on a batch: no dropout, the likeliest negatives, float64.

    The model is left in float64 and in evaluation mode.
    """
    model.double().eval()
    batch = replace(batch, images=batch.images.double())
    losses, gradients = _run(model, batch, one, parity)
    wanted_losses, wanted = _run(model, batch, other, parity)
    worst_loss = max(
        abs(losses[name] - value) / max(1.0, abs(value)) for name, value in wanted_losses.items()
    )
    floor = _NOISE * torch.stack([value.norm() for value in wanted.values()]).norm().item()
    worst, parameter = 0.0, ""
    for name, value in wanted.items():
        if name not in gradients:
            return Difference(worst_loss, float("inf"), name)
        difference = (gradients[name] - value).norm().item() / max(value.norm().item(), floor)
        if difference >= worst:
            worst, parameter = difference, name
    return Difference(worst_loss, worst, parameter)


def _run(
    model: XVLM, batch: Batch, compute: ComputeConfig, parity: Parity
) -> tuple[dict[str, float], dict[str, Tensor]]:
    model.compute_as(compute)
    model.zero_grad(set_to_none=True)
    losses = compute_losses(model(batch, negatives="argmax"), batch, config=parity)
    losses["total"].backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return {name: loss.item() for name, loss in losses.items()}, gradients
