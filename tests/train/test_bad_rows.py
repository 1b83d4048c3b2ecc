"""Rows that a run cannot use are named in its folder, once for each time that they were met."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.train import small_manifests as small
from tests.train.small_runs import arguments, xvlm
from tests.train.test_checkpoint import build, trainer
from xvlm_data.errors import UserError
from xvlm_train.engine.bad_rows import BadRows
from xvlm_train.engine.metrics import REJECTS_FILE, Log, read_metrics


def named(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / REJECTS_FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 12 rows with boxes every fifth image is cut off; of 9 captions one says nothing."""
    folder = tmp_path_factory.mktemp("data")
    boxed, captioned = small.boxed(12), small.captioned(9)
    for row in boxed[::5]:
        row["image"] = {"bytes": row["image"]["bytes"][:-30], "path": None}
    captioned[4]["concepts"][0]["text"] = "?!"
    small.write(folder / "boxed.parquet", boxed)
    small.write(folder / "captions.parquet", captioned, name="captions")
    small.write(folder / "val.parquet", boxed[4:7])
    return folder


def test_each_is_named_and_their_number_is_that_of_the_metrics(data: Path, tmp_path: Path) -> None:
    result = xvlm(*arguments(data, tmp_path / "run", "--steps", "8"))
    assert result.exit_code == 0, result.stderr
    lines = named(tmp_path / "run")
    records = {
        "corrupt_image": {"toy/00000", "toy/00005", "toy/00010"},
        "empty_text": {"toy/00004"},
    }
    for line in lines:
        assert line["record"] in records[str(line["reason"])]
        assert line["stream"] in ("image_text", "multi_grained")
        assert "truncated" in str(line["detail"]) or line["reason"] == "empty_text"
    assert {str(line["reason"]) for line in lines} == set(records)
    counted = Counter[str]()
    for step in read_metrics(tmp_path / "run"):  # one line a step
        for name, number in step.items():
            if name.startswith("skipped/") and not name.startswith("skipped/concept_"):
                counted[f"{step['step'] - 1} {name.removeprefix('skipped/')}"] += int(number)
    assert Counter(f"{line['step']} {line['reason']}" for line in lines) == counted


def test_a_resumed_run_names_the_same(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    arguments_of = arguments(data, first, "--steps", "8", "--set", "data.workers=1")
    assert xvlm(*arguments_of).exit_code == 0
    shutil.copytree(first, second)
    for late in (second / "checkpoints").glob("step_00000008"):
        shutil.rmtree(late)
    (second / "checkpoints" / "latest").write_text("step_00000006\n")
    with (second / REJECTS_FILE).open("a") as file:
        file.write('{"step": 7, "rec')  # a crash in the middle of a line
    result = xvlm("pretrain", "--resume", "auto", "--out", str(second))
    assert result.exit_code == 0, result.stderr
    assert named(second) == named(first)
    assert {line["step"] for line in named(first)} & {6, 7}  # those that were done again


def test_evaluation_names_what_it_leaves_out(data: Path, tmp_path: Path) -> None:
    run, val = tmp_path / "run", str(data / "val.parquet")
    result = xvlm(*arguments(data, run, "--steps", "1", "--val-manifest", val))
    assert "1 images left out (corrupt_image 1; toy/00005: " in " ".join(result.stderr.split())
    found = json.loads(xvlm("evaluate", str(run), "--manifest", val, "--json").stdout)
    assert found["images"] == 2
    assert [(r["record"], r["reason"]) for r in found["rejects"]] == [
        ("toy/00005", "corrupt_image")
    ]


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    rows = BadRows(0.01)
    rows.add(3 - rank, "image_text", [(f"row/{rank}", "corrupt_image", "cut off")])
    found = rows.close(1000.0)
    Path(folder, f"{rank}.json").write_text(json.dumps([found, rows.state()]))
    dist.destroy_process_group()


def test_all_ranks_count_and_name_the_rows_of_all(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one == two
    lines, state = one
    assert [(line["step"], line["record"]) for line in lines] == [(2, "row/1"), (3, "row/0")]
    assert state == {"read": 1000.0, "bad": 2.0}


def test_too_many_end_the_run_with_their_reasons() -> None:
    rows = BadRows(0.05, read=900.0, bad=40.0)
    rows.add(4, "image_text", [("a/1", "truncated", "")] * 3)
    rows.close(40.0)
    rows.judge(5)  # 43 of 983
    rows.add(5, "image_text", [("a/1", "truncated", "")] * 17)
    rows.close(0.0)
    with pytest.raises(
        UserError, match=r"60 of 1000 rows could not be used \(lately: truncated 17"
    ):
        rows.judge(6)
    BadRows(0.05, read=10.0, bad=10.0).judge(1)  # too few to judge


def test_concepts_left_out_are_no_bad_rows(tmp_path: Path) -> None:
    run = trainer(tmp_path, *build(), log_every=1, steps=3, iter_perc=0.0)
    stream = run.streams["image_text"]

    def with_skips():  # type: ignore[no-untyped-def]
        for batch in stream:
            batch.rejects[:] = [("a/1", "truncated", "")] * 2
            batch.skipped = {"truncated": 2, "concept_bad_box": 7}
            yield batch

    run.streams["image_text"] = with_skips()
    with Log(tmp_path, resume_step=0, total_steps=3) as log:
        run.log = log
        run.fit()
    assert run.state()["rows"] == {"read": 3.0, "bad": 6.0}
    assert [line["step"] for line in named(tmp_path)] == [0, 0, 1, 1, 2, 2]
