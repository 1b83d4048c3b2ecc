"""Everything that is a pure function of the step: learning rate, which streams, random seeds.

Because nothing here has state, resuming at step k is arithmetic, and all ranks agree without
talking to each other.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

Schedule = Literal["linear", "cosine", "wsd"]


def learning_rate_factor(
    step: int,
    *,
    warmup: int,
    total: int,
    kind: Schedule = "linear",
    final: float = 0.0,
    decay: int = 0,
) -> float:
    """What the base rate is multiplied with at ``step``: linear warm-up, then one of three decays.

    ``linear`` (the paper) and ``cosine`` go from 1 at step ``warmup`` to ``final`` at ``total``;
    ``wsd`` (warm-up, stable, decay) stays at 1 until ``total - decay`` and goes linearly from
    there, so that a run can be continued from any checkpoint of its stable part.

    Args:
        step: zero-based; one image-text batch is one step, so that a multi-grained update of the
            same step uses the same rate.
        warmup: steps until the full rate, which steps ``warmup - 1`` and ``warmup`` have.
        total: steps of the whole run; step ``total`` itself would have ``final``.
        kind: the shape of the decay.
        final: where it ends, as a share of the full rate.
        decay: steps of the decay of ``wsd``.

    The original starts at rate 0; here no update is spent on that, and the ramp is one step ahead.
    """
    if step < warmup:
        return (step + 1) / warmup
    start = max(warmup, total - decay) if kind == "wsd" else warmup
    done = min(1.0, max(0.0, (step - start) / max(1, total - start)))
    left = (1 + math.cos(math.pi * done)) / 2 if kind == "cosine" else 1 - done
    return final + (1 - final) * left


def counter_seed(*keys: int | str) -> int:
    """A 63-bit seed from any number of keys: the same keys give the same seed on every machine."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def is_multi_grained(seed: int, step: int, probability: float) -> bool:
    """Whether a multi-grained update comes before the image-text update of this step."""
    return counter_seed(seed, step, "multi_grained") / 2**63 < probability
