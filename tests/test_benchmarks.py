"""``benchmarks/``: it runs, it measures what it says, and it finds what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of a run at a tiny scale."""
    folder = tmp_path_factory.mktemp("benchmarks")
    done = subprocess.run(
        [
            *(sys.executable, BENCHMARKS / "build.py", "--scale", "0.0005", "--rounds", "1"),
            *("--source", "coco", "--source", "vg", "--kills", "3"),
            *("--data", folder / "data", "--json", folder / "figures.json"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "coco × 0.0005" in done.stdout and "equal the truth" in done.stdout
    assert "[/" not in done.stdout  # markup that nobody reads
    found: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return found


def test_every_method_is_measured(figures: dict[str, Any]) -> None:
    assert figures["problems"] == []
    assert figures["machine"]["versions"]["orjson"]
    assert [build["source"] for build in figures["builds"]] == ["coco", "vg"]
    for build in figures["builds"]:
        methods = {method["name"]: method for method in build["methods"]}
        assert list(methods) == ["parse", "xvlm", "json"]
        for method in methods.values():
            assert method["failed"] is None and method["skipped"] is None
            assert len(method["runs"]) == 1
            assert method["peak_pss"] is not None and method["max_rss"] > 10**6
        assert build["memory_limit"] == 400e6 + 80 * build["boxes"]
        run, base = methods["xvlm"]["runs"][0], methods["parse"]["runs"][0]
        assert build["ratios"] == [pytest.approx(run["wall"] / base["wall"])]
        assert build["counts_equal"]


def test_the_naive_script_keeps_most_of_what_it_reads(figures: dict[str, Any]) -> None:
    for build in figures["builds"]:
        texts = next(m["answer"]["texts"] for m in build["methods"] if m["name"] == "json")
        assert texts > 0.98 * build["boxes"]


def test_killed_builds_end_with_the_same_bytes(figures: dict[str, Any]) -> None:
    kills = figures["kills"]
    assert kills["kills"] == 3 and kills["builds"] >= 1
    assert kills["identical"] and kills["files"] >= 3 and kills["redone"] == 0


MEASURED = """
import multiprocessing, os, sys, time

def work(bytes_):
    held = bytearray(os.urandom(1)) * bytes_
    end = time.process_time() + 0.4
    while time.process_time() < end:
        pass
    time.sleep(0.3)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=work, args=(100_000_000,)) for _ in range(2)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
"""


def test_workers_of_a_fork_server_are_counted(tmp_path: Path) -> None:
    (tmp_path / "measured.py").write_text(MEASURED)
    code = (
        "import json, sys; from dataclasses import asdict; import measure\n"
        "measure.adopt_orphans()\n"
        "cost = measure.measure([sys.executable, sys.argv[1]], sample=True)\n"
        "print(json.dumps(asdict(cost)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "measured.py"],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=True,
    )
    cost = json.loads(done.stdout)
    assert cost["status"] == 0, cost["stderr"]
    assert cost["cpu"] >= 0.8
    assert cost["peak_pss"] >= 200_000_000 > cost["max_rss"] >= 100_000_000


def test_wrong_counts_and_wrong_bytes_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from kills import differing, digests
    from releases import Release, differences

    def row(kept: int, small: int) -> dict[str, Any]:
        return {"raw": 9, "kept": kept, "filtered": {"small": small}, "rejected": {"malformed": 1}}

    truth = {"counts": {"objects": row(5, 3)}, "clipped_boxes": 2, "boxes": 9}
    release = Release("coco", 1.0, tmp_path, (), truth)
    assert differences(release, {"counts": {"objects": row(5, 3)}, "clipped_boxes": 2}) == []
    found = differences(release, {"counts": {"objects": row(4, 3)}, "clipped_boxes": 1})
    assert [line.split(":")[0] for line in found] == ["objects", "objects", "clipped_boxes"]

    for name in ("same", "other", ".hidden/lost"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"a")
    before = digests(tmp_path)
    (tmp_path / "other").write_bytes(b"b")
    (tmp_path / ".hidden/lost").unlink()
    (tmp_path / "new").touch()
    assert differing(before, digests(tmp_path)) == {
        ".hidden/lost": "missing",
        "new": "left over",
        "other": "other bytes",
    }
