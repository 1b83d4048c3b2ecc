"""The whole command on a few small images: streams, losses, files, resuming, ranks, errors."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.train.small_runs import (
    SETTINGS,
    arguments,
    refused,
    xvlm,
)
from xvlm_train.engine import checkpoint, saving
from xvlm_train.engine.metrics import read_metrics

LOSSES = {"contrastive", "matching", "mlm", "total"}
BOX_LOSSES = {"box_l1", "box_giou"}


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
