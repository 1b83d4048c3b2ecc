"""Small runs of the whole command, for tests of what it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from tests.train.test_evaluate import SHRUNK
from xvlm_train.commands import main
from xvlm_train.engine.metrics import read_metrics

SETTINGS = [
    *SHRUNK,
    "tokenizer.vocab_size=200",
    "data.batch_size=4",
    "data.max_images=3",
    "data.max_texts=8",
    "data.workers=0",
    "train.log_every=1",
    "train.save_every=3",
    "train.eval_every=0",
    "schedule.warmup=2",
    # Dropout and a coin: random numbers that resuming must find again.
    "model.text.dropout=0.1",
    "train.iter_perc=0.6",
]


def arguments(data: Path, out: Path, *more: str, settings: list[str] = SETTINGS) -> list[str]:
    manifests = ["--manifest", str(data / "boxed.parquet"), "--manifest"]
    chosen = [part for setting in settings for part in ("--set", setting)]
    return [
        "pretrain",
        *manifests,
        str(data / "captions.parquet"),
        "--out",
        str(out),
        *chosen,
        *more,
    ]


def xvlm(*args: str) -> Result:
    return CliRunner().invoke(main, args, catch_exceptions=False)


def measured(run: Path) -> list[dict[str, Any]]:
    """The lines after step 3 without what depends on the clock."""
    clock = ("time", "samples_per_second", "data_wait", "save_wait", "memory_gb")
    lines = [line for line in read_metrics(run) if line["step"] > 3]
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def refused(*args: str) -> str:
    result = xvlm(*args)
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr
    return line


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
