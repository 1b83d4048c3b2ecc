"""The journal: one job, one plan, one process at a time; and what a build makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.data.raw_releases import (
    box,
    build_all,
    coco_image,
    region,
    vg_image,
    write_coco,
    write_json,
    write_vg,
)
from xvlm_data import shard
from xvlm_data.errors import UserError
from xvlm_data.journal import Journal

ROOT = Path(__file__).resolve().parents[2]


def test_a_task_is_done_once_it_is_recorded_and_for_every_later_run(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", {"a": 1}) as journal:
        assert not journal.resumed
        assert journal.done("x") is None
        journal.record("x", {"rows": 3, "text": "é"})
        assert journal.done("x") == {"rows": 3, "text": "é"}
        (journal.folder / "y.json").write_text('{"rows"')  # no record: a disk that lied
    with Journal(tmp_path / "j", {"a": 1}) as journal:
        assert journal.resumed
        assert journal.done("x") == {"rows": 3, "text": "é"}
        assert journal.done("y") is None
        journal.discard()
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        ({"options": {"size": 2, "rule": 1}}, "options.size: 1 there, 2 now"),
        ({"options": {"rule": 1}}, "options.size: 1 there, None now"),
        ({"options": {"size": 1, "rule": 1}, "root": "/x"}, "root: None there, '/x' now"),
        ({"options": {f"o{n}": n for n in range(9)}}, "…"),
    ],
)
def test_another_plan_is_refused_and_told_apart(
    tmp_path: Path, plan: dict[str, Any], named: str
) -> None:
    with Journal(tmp_path / "j", {"options": {"size": 1, "rule": 1}}) as journal:
        journal.record("x", {})
    with pytest.raises(UserError, match="other settings") as caught, Journal(tmp_path / "j", plan):
        pass
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    # Being refused changes nothing, and the lock is free.
    with Journal(tmp_path / "j", {"options": {"size": 1, "rule": 1}}) as journal:
        assert journal.done("x") == {}
    with Journal(tmp_path / "j", plan, restart=True) as journal:
        assert not journal.resumed
        assert journal.done("x") is None


def test_what_lies_there_without_a_plan_is_not_believed(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", {"a": 1}) as journal:
        journal.record("commit", {"name": "old"})
    # A removal that was cut off.
    (tmp_path / "j/plan.json").unlink()
    with Journal(tmp_path / "j", {"a": 2}) as journal:
        assert journal.done("commit") is None


def test_a_removal_that_is_cut_off_leaves_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step of it: the plan is the first to go, the lock the last."""
    unlink = Path.unlink
    left: list[set[str]] = []

    def watched(self: Path, missing_ok: bool = False) -> None:
        left.append({path.name for path in (tmp_path / "j").iterdir()})
        unlink(self, missing_ok)

    with Journal(tmp_path / "j", {"a": 1}) as journal:
        (journal.folder / "read").mkdir()
        for name in ("a", "commit", "read/x", "z"):
            journal.record(name, {})
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", watched)
            journal.discard()
    assert "plan.json" in left[0]
    assert all("plan.json" not in names and "lock" in names for names in left[1:])
    assert not (tmp_path / "j").exists()


def test_inputs_are_the_same_ones_in_the_same_order(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_text("x")

    @contextmanager
    def run() -> Iterator[Journal]:
        with Journal(tmp_path / "j", {}) as journal:
            yield journal

    with run() as journal:
        for file in (*files[:2], files[0]):
            journal.check_input(file)
    with run() as journal:  # cut off earlier, or later
        journal.check_input(files[0])
        with pytest.raises(UserError, match="b: no longer read"):
            journal.check_all_inputs()
        for file in files[1:]:
            journal.check_input(file)
        journal.check_all_inputs()
    with run() as journal, pytest.raises(UserError, match="a: no longer read"):
        journal.check_input(files[1])
    (tmp_path / "new").write_text("x")
    with run() as journal, pytest.raises(UserError, match="new: not read when"):
        journal.check_input(files[0])
        journal.check_input(tmp_path / "new")
    for change in (lambda: files[1].write_text("xy"), lambda: os.utime(files[1], (1, 1))):
        change()
        with run() as journal, pytest.raises(UserError, match="b: changed since") as caught:
            journal.check_input(files[0])
            journal.check_input(files[1])
        assert "--restart" in str(caught.value)
        files[1].write_text("x")


HOLDER = """
import sys, time
from pathlib import Path
from xvlm_data.journal import Journal
with Journal(Path(sys.argv[1]), {}):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the journal in a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_killed_holder_frees_the_lock_at_once(tmp_path: Path) -> None:
    with holder(tmp_path / "j") as other:
        for restart in (False, True):
            with (
                pytest.raises(UserError, match="another process is building here"),
                Journal(tmp_path / "j", {}, restart=restart),
            ):
                pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with Journal(tmp_path / "j", {}) as journal:
            assert journal.resumed


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xvlm_data", "build", *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_a_second_build_into_the_same_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "raw", boxes=[box(1, 1, [0, 0, 50, 50])])
    build_all("coco", root, tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    command = ["--source", "coco", "--root", str(root), "--out", str(tmp_path / "m")]
    with holder(tmp_path / "m/.building"):
        for more in ([], ["--restart"], ["--force"], ["--keep-all"]):
            line = one_line(run(*command, *more))
            assert f"{tmp_path / 'm'}: another process is building here" in line
        with pytest.raises(UserError, match="another process"):
            build_all("coco", root, tmp_path / "m")
        now = {
            path.name: path.read_bytes() for path in (tmp_path / "m").iterdir() if path.is_file()
        }
        assert now == before


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A COCO release, and the folder of a build of it that stopped after one shard of three."""
    root = write_coco(
        tmp_path / "raw",
        images=[coco_image(number) for number in (1, 2, 3)],
        boxes=[box(number, number, [0, 0, 50, 50]) for number in (1, 2, 3)],
    )
    stop_after_one_shard(monkeypatch, "coco", root, tmp_path / "m", shard_rows=1)
    return root, tmp_path / "m"


def stop_after_one_shard(
    monkeypatch: pytest.MonkeyPatch, source: str, root: Path, out: Path, **options: Any
) -> None:
    rows = shard._rows

    def stops(plan: shard.ShardPlan, number: int) -> dict[str, Any]:
        if number:
            raise KeyboardInterrupt
        return rows(plan, number)

    with monkeypatch.context() as patch:
        patch.setattr(shard, "_rows", stops)
        with pytest.raises(KeyboardInterrupt):
            build_all(source, root, out, **options)
    assert (out / ".building/shards/00000.json").exists()


def test_an_interrupted_build_goes_on_where_it_was(
    interrupted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root, out = interrupted
    done: list[int] = []
    rows = shard._rows

    def counted(plan: shard.ShardPlan, number: int) -> dict[str, Any]:
        done.append(number)
        return rows(plan, number)

    monkeypatch.setattr(shard, "_rows", counted)
    build_all("coco", root, out, shard_rows=1)
    assert done == [1, 2]
    build_all("coco", root, tmp_path / "other", shard_rows=1)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "other").iterdir()
    }


def test_other_options_and_inputs_are_told_in_one_line(
    interrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    root, out = interrupted
    command = ["--source", "coco", "--root", str(root), "--out", str(out)]
    line = one_line(run(*command))
    assert "options.shard_rows: 1 there, 5000 now" in line
    command += ["--shard-rows", "1"]
    line = one_line(run(*command, "--min-area", "0.5"))
    assert "options.rules.min_area: 0.01 there, 0.5 now" in line
    line = one_line(run(*command, "--keep-crowd"))
    assert "options.rules.keep_crowd" in line
    line = one_line(run(*command, "--exclude", str(root / "annotations/captions_train2017.json")))
    assert "options.exclude" in line
    moved = root.rename(tmp_path / "moved")
    line = one_line(run(*command[:3], str(moved), *command[4:]))
    assert "root: " in line
    moved.rename(root)
    file = root / "annotations/captions_train2017.json"
    before = file.stat()
    os.utime(file, (before.st_atime, before.st_mtime + 1))
    line = one_line(run(*command))
    assert f"{file}: changed since this build began; add --restart" in line
    assert run(*command, "--restart").returncode == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "croissant.json",
        *(f"manifest-0000{number}.parquet" for number in range(3)),
        "manifest.json",
        "rejects.parquet",
    ]


def test_restart_begins_anew(interrupted: tuple[Path, Path], tmp_path: Path) -> None:
    root, out = interrupted
    (out / ".building/shards/00000.json").write_text('{"counts": "poison"}')
    build_all("coco", root, out, restart=True)
    build_all("coco", root, tmp_path / "other")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "other").iterdir()
    }


def test_a_file_that_appears_in_the_meantime_is_told(
    interrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    root, out = interrupted
    write_json(root / "dataset_coco.json", {"images": [], "dataset": "coco"})
    with pytest.raises(UserError, match=r"dataset_coco\.json: not read when"):
        build_all("coco", root, out, shard_rows=1)


def test_a_file_that_is_gone_in_the_meantime_is_told(interrupted: tuple[Path, Path]) -> None:
    root, out = interrupted
    (root / "annotations/captions_train2017.json").unlink()
    with pytest.raises(UserError, match=r"captions_train2017\.json: no longer read"):
        build_all("coco", root, out, shard_rows=1)


def test_an_evaluation_file_that_changes_in_the_meantime_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [vg_image(1, coco_id=20), vg_image(2, coco_id=21)]
    root = write_vg(tmp_path / "raw/vg", {n: [region(n, "a thing")] for n in (1, 2)}, images=images)

    def held_out(*numbers: int) -> None:
        found = [{"cocoid": n, "split": "test", "filename": "x"} for n in numbers]
        write_json(tmp_path / "raw/coco/dataset_coco.json", {"images": found, "dataset": "coco"})

    held_out(20)
    stop_after_one_shard(monkeypatch, "vg", root, tmp_path / "m", shard_rows=1)
    held_out(20, 21)
    with pytest.raises(UserError, match=r"dataset_coco\.json: changed since"):
        build_all("vg", root, tmp_path / "m", shard_rows=1)


def test_a_build_that_was_cut_off_in_its_last_step_is_not_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_coco(tmp_path / "raw", boxes=[box(1, 1, [0, 0, 5, 5])])

    def cut_off(self: Journal) -> None:
        (self.folder / "plan.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "discard", cut_off)
        with pytest.raises(KeyboardInterrupt):
            build_all("coco", root, tmp_path / "m")
    assert json.loads((tmp_path / "m/manifest.json").read_text())["concepts"]["object"] == 0
    summary, _, _ = build_all("coco", root, tmp_path / "m", keep_leaks=True, shard_rows=7)
    assert summary["options"]["shard_rows"] == 7
    assert not (tmp_path / "m/.building").exists()


def test_a_lock_whose_folder_was_removed_by_its_holder_is_taken_anew(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", {}) as first:
        first.discard()
        # The first still holds a lock on a file that is gone.
        with Journal(tmp_path / "j", {}) as second:
            second.record("x", {})
        assert (tmp_path / "j/x.json").exists()
    with Journal(tmp_path / "j", {}) as third:
        assert third.done("x") == {}


def test_a_build_is_refused_where_files_would_be_cut_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another version may read in larger pieces: going on would lose lines, or repeat them.
    from xvlm_data import reading, shard

    root = tmp_path / "raw"
    root.mkdir()
    lines = [f"picture {n}\thttp://example.org/{n}.jpg\n" for n in range(300)]
    (root / "GCC-training.tsv").write_text("".join(lines))

    def cut_off(*_: object) -> None:
        raise OSError("the disk went away")

    def run(**more: Any) -> dict[str, Any]:
        return build_all("cc3m", root, tmp_path / "m", images="url", check="none", **more)[0]

    with monkeypatch.context() as patch:
        patch.setattr(reading, "RANGE", 1_000)
        patch.setattr(shard, "_rows", cut_off)
        with pytest.raises(UserError, match="goes on where it was"):
            run()
    monkeypatch.setattr(reading, "RANGE", 3_000)
    with pytest.raises(UserError, match="range: 1000 there, 3000 now"):
        run()
    assert run(restart=True)["rows"] == 300
