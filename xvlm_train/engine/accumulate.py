"""A batch larger than memory, computed in parts whose gradients add up to that of the whole.

A plain sum over parts would be wrong for a loss that compares all rows of a batch with each other.
So the objective first looks at all parts without a graph (:meth:`Partial.whole`), and then gives
each part its share of what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn


class Partial(Protocol):
    """An objective that can be computed in parts."""

    def whole(self, parts: Sequence[Any], begin: Callable[[int], None]) -> Any:
        """What each part has to know of all; ``begin(n)`` comes before the n-th part's forward."""


def backward(
    model: nn.Module,
    parts: Sequence[Any],
    *,
    in_parts: bool,
    begin: Callable[[int], None],
    autocast: Callable[[], AbstractContextManager[Any]],
    scale: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Add the gradients of a batch to the parameters; its values.

    Args:
        model: batch → values with ``total``, or (batch, (n, whole)) → the n-th part's share of
            them; DDP around it exchanges gradients once, with the last part.
        parts: of the batch, on the device.
        in_parts: whether the run computes in parts; else there is one, the batch itself. Not to be
            told from their number, which may differ between ranks that have to do alike.
        begin: seeds the random numbers of the n-th part, so that both of its passes are the same.
        autocast: the context of a forward pass.
        scale: of the loss, for fp16.
    """
    if not in_parts:
        begin(0)
        with autocast():
            values: dict[str, Tensor] = model(parts[0])
        scale(values["total"]).backward()
        return values
    objective = cast("Partial", getattr(model, "module", model))
    with torch.no_grad(), autocast():
        whole = objective.whole(parts, begin)
    sums: dict[str, Tensor] = {}
    for place, part in enumerate(parts):
        begin(place)
        silent = getattr(model, "no_sync", None) if place + 1 < len(parts) else None
        with silent() if silent is not None else nullcontext():
            with autocast():
                values = model(part, (place, whole))
            scale(values["total"]).backward()
        for name, value in values.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()
    return sums
