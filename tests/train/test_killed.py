"""Runs that are killed with SIGKILL, and go on with the same command as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train import small_manifests as small
from tests.train.test_pretrain import SETTINGS, arguments
from xvlm_train.engine.metrics import read_metrics

STEPS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    small.write(folder / "boxed.parquet", small.boxed(12))
    small.write(folder / "captions.parquet", small.captioned(9), name="captions")
    return folder


def drive(data: Path, folder: Path, kills: int) -> dict[str, Any]:
    out = folder / f"run_{kills}"
    settings = [*SETTINGS, "train.save_every=2", "optim.ema=0.9"]
    line = arguments(data, out, "--steps", str(STEPS), "--resume", "auto", settings=settings)
    plan = folder / "plan.json"
    log = folder / "log"
    plan.write_text(
        json.dumps(
            {
                **{"arguments": line, "out": str(out), "log": str(log), "kills": kills},
                **{"steps": STEPS, "seed": 1, "step_seconds": 0.05},
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.kill_driver", str(plan)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == [0, 0], log.read_text()[-2000:]
    return {**result, "out": out}


def measured(run: Path) -> list[dict[str, Any]]:
    clock = ("time", "samples_per_second", "data_wait", "save_wait", "memory_gb")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_metrics(run)]


def test_ten_kills_leave_no_trace_in_the_weights(data: Path, tmp_path: Path) -> None:
    whole = drive(data, tmp_path, kills=0)["out"]
    killed = drive(data, tmp_path, kills=10)
    kills, out = killed["kills"], killed["out"]
    assert len(kills) == 10
    assert all(kill["status"] == [-9, -9] for kill in kills), kills
    # Some of them while a checkpoint was half written.
    assert sum(kill["saving"] and bool(kill["partial"]) for kill in kills) >= 3, kills
    last = f"checkpoints/step_{STEPS:08d}"
    for name in ("model", "optimizer", "ema"):
        path = f"{last}/{name}.safetensors"
        assert (out / path).read_bytes() == (whole / path).read_bytes(), name
    assert measured(out) == measured(whole)
    assert not list((out / "checkpoints").glob(".*"))
