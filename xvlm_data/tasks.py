"""What worker processes run; importing it imports everything that tasks need."""

from __future__ import annotations

from xvlm_data.reading import run_task
from xvlm_data.shard import run_shard

__all__ = ["run_shard", "run_task"]
