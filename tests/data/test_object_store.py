"""Builds from and into an object store, against the same build on a disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.object_store import object_store
from tests.data.raw_releases import Silent, build_all
from tests.data.test_build import mixed_coco
from xvlm_data import journal, reading
from xvlm_data.build import build
from xvlm_data.build_options import BuildOptions
from xvlm_data.engines import open_engine
from xvlm_data.errors import UserError
from xvlm_data.journal import Journal
from xvlm_data.manifest import open_manifest
from xvlm_data.sample.annotations.plan import Request
from xvlm_data.sample.annotations.write import write_annotations
from xvlm_data.storage import as_path

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    with object_store("raw", "out") as environment:
        yield environment


@pytest.fixture(scope="module")
def files(store: dict[str, str]) -> Any:
    import s3fs

    return s3fs.S3FileSystem()


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory, files: Any) -> Path:
    """Releases on disk, which lie in the store as well: annotations, and one with images."""
    root = tmp_path_factory.mktemp("raw")
    for source in ("coco", "cc3m"):
        write_annotations(root, Request(0.0005, 2, 0.05), [source], stage=Silent().reading)
    mixed_coco(root / "pictures", 12)
    files.put(f"{root}/", "raw/", recursive=True)
    return root


def build_there(
    source: str, root: str, out: str, workers: int = 1, **options: Any
) -> dict[str, Any]:
    with open_engine("local", workers) as engine:
        return build(
            source,
            as_path(root),
            as_path(out),
            progress=Silent(),
            options=BuildOptions(**options),
            engine=engine,
        )


def names(files: Any, out: str) -> set[str]:
    """The objects below a place, hidden ones included."""
    files.invalidate_cache()
    return {name.removeprefix(f"{out}/") for name in files.find(out)}


def rows(data: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(pa.BufferReader(data)).to_pylist()
    return found


def hold(files: Any, releases: Path, name: str, out: str, local: Path) -> None:
    """The manifest in the store against that on the disk; they differ in where images lie."""
    assert names(files, out) == {path.name for path in local.iterdir()}
    there, here = f"s3://raw/{name}/", f"{(releases / name).resolve()}/"
    for file in local.iterdir():
        data = files.cat_file(f"{out}/{file.name}")
        if file.name == "rejects.parquet":
            assert data == file.read_bytes()
        elif file.suffix == ".parquet":
            ours = rows(file.read_bytes())
            for row in ours:
                row["image"]["path"] = row["image"]["path"].replace(here, there)
            assert rows(data) == ours
    summaries = [
        json.loads(data)
        for data in (files.cat_file(f"{out}/manifest.json"), (local / "manifest.json").read_bytes())
    ]
    for summary in summaries:
        del summary["image_root"]  # and the checksums of files that name it
        for shard in summary["shards"]:
            del shard["sha256"], shard["bytes"]
    assert summaries[0] == summaries[1]


CASES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "references": ("coco", "coco", 2, {"check": "none", "shard_rows": 20}),
    "addresses": ("cc3m", "cc3m", 1, {"images": "url", "shard_rows": 500}),
    "decoded": ("coco", "pictures", 1, {"shard_rows": 5}),
    "embedded": (
        "coco",
        "pictures",
        2,
        {"images": "embed", "shard_rows": 5, "shortest_side": 32},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_build_in_the_store_equals_one_on_the_disk(
    tmp_path: Path, files: Any, releases: Path, case: str
) -> None:
    source, name, workers, options = CASES[case]
    build_all(source, releases / name, tmp_path / "m", **options)
    out = f"out/{case}"
    summary = build_there(source, f"s3://raw/{name}", f"s3://{out}", workers, **options)
    hold(files, releases, name, out, tmp_path / "m")
    manifest = open_manifest(f"s3://{out}")
    assert len(manifest) == summary["rows"] > 0
    read = [row for batch in manifest.batches() for row in batch.to_pylist()]
    here = [row for batch in open_manifest(tmp_path / "m").batches() for row in batch.to_pylist()]
    assert [row["id"] for row in read] == [row["id"] for row in here]
    if options.get("images"):
        # No file names its images by where they lie here: the very same bytes.
        for shard in (tmp_path / "m").iterdir():
            assert files.cat_file(f"{out}/{shard.name}") == shard.read_bytes()


def test_only_the_raw_files_or_only_the_manifest_may_lie_in_the_store(
    tmp_path: Path, files: Any, releases: Path
) -> None:
    options: dict[str, Any] = {"check": "none", "shard_rows": 20}
    build_there("coco", "s3://raw/coco", str(tmp_path / "there"), **options)
    build_there("coco", str(releases / "coco"), "s3://out/mixed", **options)
    build_all("coco", releases / "coco", tmp_path / "here", **options)
    for file in (tmp_path / "here").iterdir():
        # Where images lie is the same for these two, and so is every byte.
        assert files.cat_file(f"out/mixed/{file.name}") == file.read_bytes()
    for file in (tmp_path / "here").glob("manifest-*.parquet"):
        ours, theirs = (
            pq.read_table(folder / file.name).drop_columns("image")
            for folder in (tmp_path / "here", tmp_path / "there")
        )
        assert theirs.equals(ours)


def test_a_rebuild_replaces_what_is_there(files: Any, releases: Path) -> None:
    for size, shards in ((5, 3), (7, 2)):
        build_there("coco", "s3://raw/pictures", "s3://out/again", shard_rows=size)
        found = names(files, "out/again")
        assert len(found) == shards + 3
        assert len(open_manifest("s3://out/again")) == 10


def test_a_build_is_refused_while_another_says_that_it_is_alive(files: Any, releases: Path) -> None:
    arguments = ("coco", "s3://raw/pictures", "s3://out/locked")
    with Journal(as_path("s3://out/locked/.building"), {}):
        before = names(files, "out/locked")
        with pytest.raises(UserError, match="another process is building here") as caught:
            build_there(*arguments)
        assert "\n" not in str(caught.value)
        assert names(files, "out/locked") == before
    assert names(files, "out/locked") == {".building/plan.json"}
    files.rm("out/locked", recursive=True)
    # One that was killed says nothing more.
    dead = {"owner": "gone:1:1", "alive": time.time() - journal._DEAD - 1}
    files.pipe_file("out/locked/.building/lock", json.dumps(dead).encode())
    build_there(*arguments)
    assert not any(name.startswith(".") for name in names(files, "out/locked"))


def test_a_heartbeat_is_renewed_and_ends_with_the_journal(
    files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_HEARTBEAT", 0.05)

    def alive() -> float:
        return float(json.loads(files.cat_file("out/beat/.building/lock"))["alive"])

    with Journal(as_path("s3://out/beat/.building"), {}) as held:
        first = alive()
        deadline = time.monotonic() + 10
        while alive() == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert alive() > first
        held.discard()
    time.sleep(0.2)
    assert names(files, "out/beat") == set()


DRIVER = """
from tests.data.test_object_store import build_there
from xvlm_data import journal, reading
if __name__ == "__main__":
    journal._DEAD = 0.5
    reading.RANGE = 20_000
    build_there("coco", "s3://raw/coco", "s3://out/killed", check="none", shard_rows=12)
"""


def test_a_killed_build_goes_on_to_the_same_bytes(
    files: Any, releases: Path, store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "RANGE", 20_000)
    build_there("coco", "s3://raw/coco", "s3://out/whole", check="none", shard_rows=12)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            cwd=ROOT,
            env=os.environ | store,
            start_new_session=True,
            stderr=subprocess.PIPE,
        )

    # Once while it reads, and once while it writes shards.
    for sign in ("read/0004-00000.json", "shards/00002.json"):
        process = start()
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            files.invalidate_cache()
            if files.exists(f"out/killed/.building/{sign}"):
                break
            time.sleep(0.01)
        assert process.poll() is None, "it was to be killed before its end"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(0.6)  # until it counts as dead
    assert ".building/plan.json" in names(files, "out/killed")
    process = start()
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert names(files, "out/killed") == names(files, "out/whole")
    for name in names(files, "out/whole"):
        assert files.cat_file(f"out/killed/{name}") == files.cat_file(f"out/whole/{name}")


@pytest.mark.parametrize("root", ["s3://raw/nothing", "s3://no-bucket/coco"])
def test_a_release_that_is_not_there_is_one_clear_line(store: dict[str, str], root: str) -> None:
    command = ["build", "--source", "coco", "--root", root, "--out", "s3://out/none"]
    done = subprocess.run(
        [sys.executable, "-m", "xvlm_data", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | store,
    )
    assert done.returncode == 2, done
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {root}: no such folder")


def test_a_bucket_that_is_not_there_is_not_made(files: Any, releases: Path) -> None:
    with pytest.raises(UserError, match=r"typo: no such bucket.*check its name"):
        build_there("cc3m", str(releases / "cc3m"), "s3://typo/cc3m", images="url")
    files.invalidate_cache()
    assert sorted(files.ls("")) == ["out", "raw"]
