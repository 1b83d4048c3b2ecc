"""Everything that is a pure function of the step: learning rate, which streams, random seeds.

Because nothing here has state, resuming at step k is arithmetic, and all ranks agree without
talking to each other.
"""

from __future__ import annotations

import hashlib


def learning_rate_factor(step: int, *, warmup: int, total: int) -> float:
    """Linear warm-up, then linear decay; what the base rate is multiplied with at ``step``.

    Args:
        step: zero-based; one image-text batch is one step, so that a multi-grained update of the
            same step uses the same rate.
        warmup: steps until the full rate, which steps ``warmup - 1`` and ``warmup`` have.
        total: steps of the whole run; the last has ``1 / (total - warmup)``, step ``total`` 0.

    The original starts at rate 0; here no update is spent on that, and the ramp is one step ahead.
    """
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def counter_seed(*keys: int | str) -> int:
    """A 63-bit seed from any number of keys: the same keys give the same seed on every machine."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def is_multi_grained(seed: int, step: int, probability: float) -> bool:
    """Whether a multi-grained update comes before the image-text update of this step."""
    return counter_seed(seed, step, "multi_grained") / 2**63 < probability
