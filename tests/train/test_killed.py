"""Runs that are killed with SIGKILL, and go on with the same command as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

from tests.train.killing import measured, run_on_two_ranks
from tests.train.small_runs import SETTINGS, arguments

STEPS = 60


def test_ten_kills_leave_no_trace_in_the_weights(data: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, "train.save_every=2", "optim.ema=0.9"]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    more = ("--steps", str(STEPS), "--resume", "auto")
    lines = [arguments(data, folder, *more, settings=settings) for folder in (whole, out)]
    plan = {"kills": 10, "out": str(out), "steps": STEPS, "seed": 1, "step_seconds": 0.05}
    kills = run_on_two_ranks(tmp_path, lines, **plan)
    assert len(kills) == 10
    # The other rank may find out that it is alone before its own signal comes.
    assert all(kill["status"][0] == -9 and kill["status"][1] for kill in kills), kills
    # Some of them while a checkpoint was half written.
    assert sum(kill["saving"] and bool(kill["partial"]) for kill in kills) >= 3, kills
    last = f"checkpoints/step_{STEPS:08d}"
    for name in ("model", "optimizer", "ema"):
        path = f"{last}/{name}.safetensors"
        assert (out / path).read_bytes() == (whole / path).read_bytes(), name
    assert measured(out) == measured(whole)
    assert not list((out / "checkpoints").glob(".*"))
