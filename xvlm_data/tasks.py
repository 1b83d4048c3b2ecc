"""What worker processes run; importing it imports everything that tasks need."""

from __future__ import annotations

from xvlm_data.lean import make_lean

make_lean()

from xvlm_data.ranges import run_task  # noqa: E402
from xvlm_data.shard import run_shard  # noqa: E402

__all__ = ["run_shard", "run_task"]
