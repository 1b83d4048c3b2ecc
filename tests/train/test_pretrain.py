"""The whole command on a few small images: streams, losses, files, resuming, ranks, errors."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from tests.train import small_manifests as small
from tests.train.test_evaluate import SHRUNK
from xvlm_train.commands import main
from xvlm_train.data.entries import recipe_entries
from xvlm_train.engine import checkpoint, saving
from xvlm_train.engine.loop import Trainer
from xvlm_train.engine.metrics import read_metrics
from xvlm_train.evaluator import Evaluator

LOSSES = {"contrastive", "matching", "mlm", "total"}
BOX_LOSSES = {"box_l1", "box_giou"}
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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    small.write(folder / "boxed.parquet", small.boxed(12))
    small.write(folder / "captions.parquet", small.captioned(9), name="captions")
    small.write(folder / "val.parquet", small.boxed(5, seed=1))
    return folder


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


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    val = str(data / "val.parquet")
    result = xvlm(*arguments(data, out, "--steps", "6", "--val-manifest", val))
    assert result.exit_code == 0, result.stderr
    return out


def test_all_losses_of_both_streams_are_there_and_finite(whole: Path) -> None:
    lines = read_metrics(whole)
    steps = [line for line in lines if "lr" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    streams: dict[str, set[str]] = {"image_text": set(), "multi_grained": set()}
    for line in steps:
        for name, value in line.items():
            stream, _, loss = name.partition("/")
            if stream in streams and loss in LOSSES | BOX_LOSSES:
                streams[stream].add(loss)
                assert math.isfinite(value), name
                assert value > 0, name
    assert streams == {"image_text": LOSSES, "multi_grained": LOSSES | BOX_LOSSES}
    # The coin of 0.6 lets some steps have no multi-grained batch, and then no entry stands for it.
    shares = ["multi_grained/mlm" in line for line in steps]
    assert any(shares) and not all(shares)
    for line in steps:
        assert line["image_text/total"] == pytest.approx(
            sum(line[f"image_text/{loss}"] for loss in ("contrastive", "matching", "mlm")), rel=1e-5
        )
    factors = [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert [line["lr"] / 1e-3 for line in steps] == pytest.approx(factors)
    (held_out,) = (line for line in lines if "eval/grounding_accuracy" in line)
    assert held_out["eval/images"] == 5 and held_out["eval/phrases"] > 0


def test_a_checkpoint_is_complete_and_free_of_pickles(whole: Path) -> None:
    newest = whole / "checkpoints" / "step_00000006"
    assert sorted(str(p.relative_to(newest)) for p in newest.rglob("*") if p.is_file()) == [
        "SHA256SUMS",
        "config.yaml",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "tokenizer/tokenizer.json",
        "tokenizer/vocab.txt",
    ]
    assert (whole / "checkpoints" / "latest").read_text().strip() == "step_00000006"
    assert list((whole / "tensorboard").iterdir())


def measured(run: Path) -> list[dict[str, Any]]:
    """The lines after step 3 without what depends on the clock."""
    clock = ("time", "samples_per_second", "data_wait", "save_wait", "memory_gb")
    lines = [line for line in read_metrics(run) if line["step"] > 3]
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


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


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("[region], weight", "[object], weight", "multi_grained"),
        ("weight: 1", "weight: 1, largest: 1", "multi_grained"),
        ("probability: 0.6", "probability: 0.1", "recipe"),
        ("name: two", "name: again", None),
    ],
)
def test_another_recipe_is_refused(
    data: Path, tmp_path: Path, before: str, after: str, told: str | None
) -> None:
    for name in ("boxed.parquet", "captions.parquet"):
        shutil.copy(data / name, tmp_path)
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    settings = [part for setting in SETTINGS[:-1] for part in ("--set", setting)]
    start = ("pretrain", "--recipe", str(recipe), "--out", str(run), *settings, "--steps", "1")
    assert xvlm(*start).exit_code == 0
    assert RECIPE.count(before) == 1
    recipe.write_text(RECIPE.replace(before, after))
    recipe_entries.cache_clear()  # as in another process
    on = ("pretrain", "--resume", str(run), "--steps", "2")
    if told is None:
        assert xvlm(*on).exit_code == 0
    else:
        assert f"manifests: those of {told} are not the ones" in refused(*on)
        assert xvlm(*on, "--allow-change", "manifests").exit_code == 0


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


def test_a_run_killed_in_its_evaluation_makes_up_for_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(self: Evaluator, items: Any) -> dict[str, float]:
        raise Killed

    run, val = tmp_path / "run", str(data / "val.parquet")
    every = ("--set", "train.eval_every=2", "--set", "train.save_every=2")
    command = arguments(data, run, "--steps", "4", "--val-manifest", val, *every)
    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "measure", killed)
        with pytest.raises(Killed):
            xvlm(*command)
    wait_for(lambda: (run / "checkpoints" / "latest").exists())
    assert xvlm("pretrain", "--resume", str(run)).exit_code == 0
    evaluated = [line["step"] for line in read_metrics(run) if "eval/images" in line]
    assert evaluated == [2, 4]
    assert xvlm("pretrain", "--resume", str(run), "--steps", "6").exit_code == 0
    evaluated = [line["step"] for line in read_metrics(run) if "eval/images" in line]
    assert evaluated == [2, 4, 6]


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


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_two_ranks_train_one_model(data: Path, tmp_path: Path) -> None:
    """gloo, the real command under torchrun, ranks with different numbers of concepts."""
    out = tmp_path / "two"
    line = arguments(data, out, "--steps", "3")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--local-addr", "127.0.0.1"),  # whatever this machine's name leads to
            *("--nproc_per_node", "2", "-m", "tests.train.ranks", *line),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (load_file(out / f"rank{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    saved = load_file(out / "checkpoints" / "step_00000003" / "model.safetensors")
    assert all(torch.equal(first[name], saved[name]) for name in first)
    lines = read_metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert any("multi_grained/box_giou" in line for line in lines)
    losses = [v for line in lines for k, v in line.items() if "/" in k]
    assert all(math.isfinite(value) for value in losses)
    assert json.loads((checkpoint.find(out).path / "state.json").read_text())["world_size"] == 2


def test_the_command_ends_and_so_do_its_workers(data: Path, tmp_path: Path) -> None:
    """Workers let a SIGTERM pass, which is all that multiprocessing does to end them."""
    settings = [*SETTINGS, "data.workers=2"]
    line = arguments(data, tmp_path / "run", "--steps", "2", settings=settings)
    command = [sys.executable, "-m", "xvlm_train", *line]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        started: set[psutil.Process] = set()
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psutil.NoSuchProcess):
                started |= set(psutil.Process(process.pid).children(recursive=True))
            time.sleep(0.02)
        ended = process.poll()
        for left in [*started, process] if ended is None else ():
            left.kill()
        assert ended == 0, process.communicate()[1]
    assert len(started) >= 3  # two workers of the server that forks them
    assert psutil.wait_procs(started, timeout=20)[1] == []


def test_evaluate_and_curves_of_the_run(whole: Path, data: Path, tmp_path: Path) -> None:
    val = str(data / "val.parquet")
    pictures = tmp_path / "pictures"
    result = xvlm(
        *("evaluate", str(whole), "--manifest", val, "--json", "--pictures", "2", str(pictures))
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    (trained,) = (line for line in read_metrics(whole) if "eval/images" in line)
    for name, value in trained.items():
        if name.startswith("eval/"):
            assert report[name.removeprefix("eval/")] == pytest.approx(value, abs=1e-6), name
    assert report["step"] == 6
    assert len(list(pictures.glob("*.png"))) == 2
    table = xvlm("evaluate", str(whole), "--manifest", val, "--images", "3")
    assert table.exit_code == 0 and "chance" in table.stdout
    curves = tmp_path / "curves.png"
    assert xvlm("curves", str(whole), str(curves)).exit_code == 0
    assert curves.stat().st_size > 0


def refused(*args: str) -> str:
    result = xvlm(*args)
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr
    return line


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("manifest.json", "holds a manifest"),
        ("annotations/instances_train2017.json", "holds the raw release of coco"),
    ],
)
def test_no_run_is_written_among_data(data: Path, tmp_path: Path, file: str, told: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert told in refused(*arguments(data, tmp_path, "--steps", "1"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / file]


def test_fewer_steps_than_are_done(whole: Path) -> None:
    assert "3, and 6 steps are done" in refused("pretrain", "--resume", str(whole), "--steps", "3")


def test_a_folder_with_a_run_is_not_overwritten(whole: Path, data: Path) -> None:
    line = refused(*arguments(data, whole))
    assert "already holds a run" in line and f"--resume {whole}" in line


def test_streams_without_rows_are_told(data: Path, tmp_path: Path) -> None:
    captions = str(data / "captions.parquet")
    boxed = str(data / "boxed.parquet")
    shrunk = [part for setting in SETTINGS for part in ("--set", setting)]
    common = ["--out", str(tmp_path / "x"), "--steps", "1", *shrunk]
    line = refused("pretrain", "--image-text", boxed, "--multi-grained", captions, *common)
    assert "captions has no regions or objects" in line
    line = refused("pretrain", "--manifest", captions, *common)
    assert "--set train.iter_perc=0" in line
    alone = xvlm("pretrain", "--manifest", captions, *common, "--set", "train.iter_perc=0")
    assert alone.exit_code == 0, alone.stderr


def test_wrong_input_is_one_line(data: Path, whole: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "x")]
    assert "give at least one --manifest" in refused("pretrain", *out)
    assert "not found" in refused("pretrain", "--resume", str(tmp_path / "nothing"), *out)
    assert "did you mean" in refused(
        *arguments(data, tmp_path / "x", "--set", "optim.weightdecay=1")
    )
    assert "not a device" in refused(*arguments(data, tmp_path / "x", "--set", "train.device=x"))
    fp16 = arguments(data, tmp_path / "x", "--set", "train.precision=fp16")
    assert "needs a GPU" in refused(*fp16)
    missing = str(tmp_path / "no.parquet")
    assert missing in refused("pretrain", "--manifest", missing, *out)
    assert missing in refused("evaluate", str(whole), "--manifest", missing)
    assert "no checkpoint" in refused("evaluate", str(data), "--manifest", missing)
    assert "not found" in refused("curves", str(data), str(tmp_path / "a.png"))
    file = tmp_path / "file"
    file.write_text("")
    assert str(file) in refused(*arguments(data, file / "run"))


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


def test_a_full_disk_ends_with_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr(saving, "save_file", full)
    line = refused(*arguments(data, tmp_path / "x", "--steps", "1"))
    assert line == (
        "error: somewhere: No space left on device; free some space and run it again;"
        " a training run goes on with --resume"
    )
    assert not list((tmp_path / "x" / "checkpoints").glob("*"))


def test_print_config_needs_nothing_else() -> None:
    result = xvlm("pretrain", "--preset", "base", "--print-config")
    assert result.exit_code == 0 and "swin_base" in result.stdout


def test_help_lists_the_commands_without_importing_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from xvlm_train.commands import main\n"
        "for args in (['--help'], ['pretrain', '--help'], ['evaluate', '--help']):\n"
        "    result = CliRunner().invoke(main, args)\n"
        "    assert result.exit_code == 0, result.output\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
