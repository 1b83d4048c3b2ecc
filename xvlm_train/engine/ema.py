"""An exponential moving average of the weights, for evaluation and for use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xvlm_train.engine.weights import local_part, model_tensors


class WeightAverage:
    """``average ← decay · average + (1 - decay) · weights`` after each update.

    So after n updates it is ``decay^n · θ0 + (1 - decay) · Σ decay^(n-k) · θk``. Buffers (running
    statistics) are copied. Updates that were skipped do not count, without asking the device.

    Args:
        model: without any wrapper, its weights being θ0; sharded or not.
        decay: below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        # Detached, but the same memory as the weights: what an update changes shows here.
        self._weights = model_tensors(model)[0]
        self.tensors = {name: value.clone() for name, value in self._weights.items()}
        trained = {name for name, p in model.named_parameters() if p.is_floating_point()}
        self._averaged = [name for name in self.tensors if name in trained]
        self._copied = [name for name in self.tensors if name not in trained]

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """Take in the weights as they are.

        Args:
            counts: scalar on the model's device; 0 where the update was skipped.
        """
        averages = [local_part(self.tensors[name]) for name in self._averaged]
        weights = [local_part(self._weights[name]) for name in self._averaged]
        steps = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(steps, counts.to(torch.float32) * (1 - self.decay))
        torch._foreach_add_(averages, steps)
        for name in self._copied:
            self.tensors[name].copy_(self._weights[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Meanwhile the model has the averaged weights; afterwards its own again, to the bit."""
        own = {name: value.clone() for name, value in self._weights.items()}
        self._put(self.tensors)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, value in self._weights.items():
            value.copy_(tensors[name])
