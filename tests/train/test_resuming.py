"""Runs that go on: to the bit, with what changed named, and after what went wrong."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.train import small_manifests as small
from tests.train.small_runs import (
    SETTINGS,
    arguments,
    measured,
    refused,
    wait_for,
    xvlm,
)
from xvlm_train.data.entries import recipe_entries
from xvlm_train.engine import checkpoint
from xvlm_train.engine.loop import Trainer
from xvlm_train.engine.metrics import read_metrics
from xvlm_train.evaluator import Evaluator


def test_resuming_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    half = whole / "checkpoints" / "step_00000003"
    out = tmp_path / "rest"
    torch.rand(5)
    result = xvlm("pretrain", "--resume", str(half), "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert "changed" not in result.stderr
    assert measured(out) == measured(whole) != []
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours = load_file(out / "checkpoints" / "step_00000006" / name)
        theirs = load_file(whole / "checkpoints" / "step_00000006" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_resuming_with_convolutions_goes_on_bit_for_bit(data: Path, tmp_path: Path) -> None:
    """Their weights lie channels last, and so must the moments beside them."""
    convolutions = ["model.vision.name=resnet10t", "model.vision.kwargs={}", "train.save_every=2"]
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    settings = [*SETTINGS, *convolutions, "model.vision.image_size=64", "data.image_size=64"]
    result = xvlm(*arguments(data, whole, "--steps", "4", settings=settings))
    assert result.exit_code == 0, result.stderr
    half = whole / "checkpoints" / "step_00000002"
    assert xvlm("pretrain", "--resume", str(half), "--out", str(rest)).exit_code == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours = load_file(rest / "checkpoints" / "step_00000004" / name)
        theirs = load_file(whole / "checkpoints" / "step_00000004" / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def test_ctrl_c_saves_and_resume_auto_goes_on(data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    val = str(data / "val.parquet")
    line = arguments(data, out, "--steps", "6", "--val-manifest", val, "--resume", "auto")

    def interrupt_after_a_step() -> None:
        metrics = out / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_after_a_step)
    thread.start()
    first = xvlm(*line)
    thread.join()
    assert first.exit_code == 130
    stopped = checkpoint.find(out).step
    assert 1 <= stopped < 6
    assert f"stopped after step {stopped}; go on with: xvlm-train pretrain --resume" in first.stderr
    second = xvlm(*line)
    assert second.exit_code == 0, second.stderr
    assert measured(out) == measured(whole)
    assert [row["step"] for row in read_metrics(out) if "lr" in row] == [1, 2, 3, 4, 5, 6]


def test_changed_settings_and_data_are_named(whole: Path, data: Path, tmp_path: Path) -> None:
    half = str(whole / "checkpoints" / "step_00000003")
    out = tmp_path / "longer"
    result = xvlm(
        *("pretrain", "--resume", half, "--out", str(out), "--steps", "4"),
        *("--manifest", str(data / "boxed.parquet"), "--allow-change", "manifests"),
    )
    assert result.exit_code == 0, result.stderr
    assert "changed: train.steps: 6 → 4" in result.stderr
    assert "changed: manifests: those of image_text" in result.stderr


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("data.seed=5", "data.seed"),
        ("data.pool_groups=1", "data.pool_groups"),
        ("model.text.heads=4", "model.text.heads"),  # fits every tensor, and computes otherwise
        ("tokenizer.vocab_size=100", "tokenizer.vocab_size"),
    ],
)
def test_what_would_be_silently_wrong_is_refused_unless_told(
    whole: Path, tmp_path: Path, setting: str, key: str
) -> None:
    half = str(whole / "checkpoints" / "step_00000003")
    line = ["pretrain", "--resume", half, "--out", str(tmp_path / "x"), "--steps", "4"]
    line += ["--set", setting]
    told = refused(*line)
    assert f"{key}: " in told and f"--allow-change {key}" in told
    assert not (tmp_path / "x").exists()
    result = xvlm(*line, "--allow-change", key)
    assert result.exit_code == 0, result.stderr
    assert f"changed: {key}" in result.stderr


def test_other_manifests_are_refused_unless_told(whole: Path, data: Path, tmp_path: Path) -> None:
    half = str(whole / "checkpoints" / "step_00000003")
    told = refused(
        *("pretrain", "--resume", half, "--out", str(tmp_path / "x")),
        *("--manifest", str(data / "boxed.parquet")),
    )
    assert "manifests: those of image_text" in told and "--allow-change manifests" in told


RECIPE = """\
name: two
sources:
  boxed: {manifest: boxed.parquet}
  captions: {manifest: captions.parquet}
streams:
  image_text:
    entries: [{source: captions, granularity: [image]}]
  multi_grained:
    probability: 0.6
    entries: [{source: boxed, granularity: [region], weight: 1}]
"""


def begun_with_a_recipe(data: Path, folder: Path, before: str, after: str) -> tuple[Path, str]:
    """A run of one step and what it told; its recipe has been edited since."""
    for name in ("boxed.parquet", "captions.parquet"):
        shutil.copy(data / name, folder)
    recipe, run = folder / "recipe.yaml", folder / "run"
    recipe.write_text(RECIPE)
    settings = [part for setting in SETTINGS[:-1] for part in ("--set", setting)]
    start = ("pretrain", "--recipe", str(recipe), "--out", str(run), *settings, "--steps", "1")
    result = xvlm(*start)
    assert result.exit_code == 0, result.stderr
    assert RECIPE.count(before) == 1
    recipe.write_text(RECIPE.replace(before, after))
    recipe_entries.cache_clear()  # as in another process
    return run, result.stderr


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("[region], weight", "[object], weight", "multi_grained"),
        ("weight: 1", "weight: 1, largest: 1", "multi_grained"),
        ("name: two", "name: again", None),
    ],
)
def test_another_recipe_is_refused(
    data: Path, tmp_path: Path, before: str, after: str, told: str | None
) -> None:
    run, _ = begun_with_a_recipe(data, tmp_path, before, after)
    on = ("pretrain", "--resume", str(run), "--steps", "2")
    if told is None:
        assert xvlm(*on).exit_code == 0
    else:
        assert f"manifests: those of {told} are not the ones" in refused(*on)
        assert xvlm(*on, "--allow-change", "manifests").exit_code == 0


def test_the_share_of_steps_is_the_runs_own(data: Path, tmp_path: Path) -> None:
    """A recipe that asks for another one now is named; the run goes on as it was."""
    run, told = begun_with_a_recipe(data, tmp_path, "probability: 0.6", "probability: 0.1")
    assert "the recipe's" not in told
    result = xvlm("pretrain", "--resume", str(run), "--steps", "2")
    assert result.exit_code == 0
    assert "train.iter_perc is 0.6, and the recipe's probability 0.1" in result.stderr


def test_a_failing_evaluation_ends_no_training(data: Path, tmp_path: Path) -> None:
    val, run = tmp_path / "val.parquet", tmp_path / "run"
    small.write(val, small.boxed(6), row_group_size=2)
    content = bytearray(val.read_bytes())
    columns = pq.read_metadata(val).row_group(2)  # the manifest opens, and this cannot be read
    for number in range(columns.num_columns):
        page = columns.column(number).data_page_offset
        content[page : page + 20] = bytes(20)
    val.write_bytes(content)
    often = ("--set", "train.eval_every=1", "--set", "train.save_every=100")
    result = xvlm(*arguments(data, run, "--steps", "2", "--val-manifest", str(val), *often))
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("not evaluated: ") == 2
    assert (run / "checkpoints" / "step_00000002").is_dir()


@pytest.mark.parametrize(("every", "killed_at", "all_of_them"), [(2, 2, [2, 4]), (0, 4, [4])])
def test_a_run_killed_in_its_evaluation_makes_up_for_it(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    killed_at: int,
    all_of_them: list[int],
) -> None:
    class Killed(BaseException):
        pass

    def killed(self: Evaluator, items: Any) -> dict[str, float]:
        raise Killed

    run, val = tmp_path / "run", str(data / "val.parquet")
    often = ("--set", f"train.eval_every={every}", "--set", f"train.save_every={killed_at}")
    command = arguments(data, run, "--steps", "4", "--val-manifest", val, *often)
    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "measure", killed)
        with pytest.raises(Killed):
            xvlm(*command)
    wait_for(lambda: (run / "checkpoints" / "latest").exists())
    for steps in (4, 4, 6):  # once made up for, it is not done again
        assert xvlm("pretrain", "--resume", str(run), "--steps", str(steps)).exit_code == 0
        evaluated = [line["step"] for line in read_metrics(run) if "eval/images" in line]
        assert evaluated == [*all_of_them, 6][: len(all_of_them) + (steps == 6)]


def test_going_back_leaves_what_came_after_behind(whole: Path, tmp_path: Path) -> None:
    """Killed before it saves again, the run goes on from where it was put."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "_step", killed)
        with pytest.raises(Killed):
            xvlm("pretrain", "--resume", str(run / "checkpoints" / "step_00000003"))
    assert {line["step"] for line in read_metrics(run)} == {1, 2, 3}
    result = xvlm("pretrain", "--resume", str(run))
    assert "going on from step 3" in result.stderr
    steps = [line["step"] for line in read_metrics(run) if "lr" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_passed_over(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    newest = copy / "checkpoints" / "step_00000006"
    (newest / "config.yaml").write_bytes(b"train: {steps: 1}\n")
    line = refused("pretrain", "--resume", str(newest), "--steps", "9")
    assert "step_00000006/config.yaml: damaged" in line
    assert "another checkpoint of the run" in line
    result = xvlm("pretrain", "--resume", str(copy))
    assert result.exit_code == 0, result.stderr
    assert "passed over: " in result.stderr
    assert "config.yaml: damaged" in result.stderr
    assert "going on from step 3" in result.stderr
    assert measured(copy) == measured(whole)
    assert (copy / "checkpoints" / "damaged_step_00000006").is_dir()


def test_a_run_that_has_saved_nothing_yet(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    command = arguments(data, tmp_path / "run", "--steps", "1")
    assert f"--resume auto --out {tmp_path / 'run'}" in refused(*command)
    assert xvlm(*command, "--resume", "auto").exit_code == 0


def test_fewer_steps_than_are_done(whole: Path) -> None:
    assert "3, and 6 steps are done" in refused("pretrain", "--resume", str(whole), "--steps", "3")
