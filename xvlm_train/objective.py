"""The model with its losses: what the loop calls and DDP wraps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from xvlm_train.data.batch import Batch
from xvlm_train.model.config import Parity
from xvlm_train.model.xvlm import XVLM
from xvlm_train.objectives import (
    Whole,
    compute_losses,
    concept_keys,
    matching_accuracy,
    same_pairs,
    whole_of,
)
from xvlm_train.telemetry import measures


class Objective(nn.Module):
    """The model with its losses: batch → scalars, as the loop and DDP want it."""

    def __init__(self, model: XVLM, parity: Parity) -> None:
        super().__init__()
        self.model = model
        self.parity = parity

    def forward(self, batch: Batch, part: tuple[int, Whole] | None = None) -> dict[str, Tensor]:
        """The losses, their ``total``, and what is worth a curve beside them.

        Args:
            batch: the batch, or a part of it.
            part: which part, of what; the sums over parts are the values of the batch.
        """
        keys = self._keys(batch, part[0] if part else 0)
        outputs = self.model(batch, same=None if keys is None else same_pairs(keys))
        values = compute_losses(outputs, batch, config=self.parity, keys=keys, part=part)
        share = 1 / part[1].parts if part else 1
        values["matching_accuracy"] = matching_accuracy(outputs) * share
        values["temperature"] = outputs.temperature.detach() * share
        return values | measures(outputs, batch)

    def whole(self, parts: Sequence[Batch], begin: Callable[[int], None]) -> Whole:
        """What the parts of a batch have to know of each other; without gradients."""
        found = []
        for place, part in enumerate(parts):
            begin(place)
            encoded = self.model.encode(part)
            found.append((part, encoded.image_features, encoded.text_features))
        keys = [self._keys(part, place) for place, part in enumerate(parts)]
        return whole_of(found, self.model.clamped_temperature(), keys, self.parity)

    def _keys(self, batch: Batch, place: int) -> Tensor | None:
        keep = self.parity.same_text_negatives == "keep"
        return None if keep else concept_keys(batch, place)
