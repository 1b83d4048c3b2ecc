"""The builder as a whole: sums, atomicity, determinism, and what other tools see."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.data.raw_releases import (
    box,
    build_all,
    caption,
    coco_image,
    region,
    write_coco,
    write_json,
    write_vg,
)
from tests.shared import shared_path
from xvlm_data.errors import ManifestError, UserError
from xvlm_data.manifest import open_manifest


def mixed_coco(root: Path, count: int = 30) -> Path:
    """A release with something wrong of every kind."""
    images = [coco_image(number) for number in range(1, count + 1)]
    boxes = [box(100 + n, n % (count + 3) + 1, [n % 90, 5, 30, 30]) for n in range(3 * count)]
    boxes += [box(900, 1, [0, 0, 0, 0]), box(901, 2, [0, 0, 1, 1]), box(902, 3, [1, 2], extra=1)]
    captions = [caption(n, n % count + 1, f"picture {n}") for n in range(2 * count)]
    write_coco(root, images=images, boxes=boxes, captions=captions)
    (root / "train2017/000000000004.jpg").unlink()
    (root / "train2017/000000000005.jpg").write_bytes(b"junk")
    return root


def test_the_sums_add_up_and_every_left_out_record_is_listed(tmp_path: Path) -> None:
    root = mixed_coco(tmp_path / "raw")
    raw = json.loads((root / "annotations/instances_train2017.json").read_text())
    summary, rows, rejects = build_all("coco", root, tmp_path / "m")
    counts = summary["counts"]
    assert counts["objects"]["raw"] == len(raw["annotations"])
    for kind, counted in counts.items():
        left_out = sum(counted["filtered"].values()) + sum(counted["rejected"].values())
        assert counted["raw"] == counted["kept"] + left_out
        assert sum(r["kind"] == kind[:-1] for r in rejects) == left_out
    concepts = [c for row in rows for c in row["concepts"]]
    for kind, granularity in (("captions", "image"), ("objects", "object")):
        assert counts[kind]["kept"] == sum(c["granularity"] == granularity for c in concepts)
    assert summary["rows"] == len(rows) == counts["images"]["kept"]
    assert all(r["source_file"] and r["location"] and r["reason"] for r in rejects)


@pytest.mark.parametrize("images", ["reference", "embed"])
def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path, images: Any) -> None:
    root = mixed_coco(tmp_path / "raw")
    digests = []
    for workers in (1, 2, 3):
        out = tmp_path / f"m{workers}"
        build_all("coco", root, out, workers=workers, images=images, shard_rows=7)
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir()})
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0]) == 5 + 3  # 30 images in shards of 7


def test_shards_are_listed_with_rows_and_checksums(tmp_path: Path) -> None:
    summary, _rows, _ = build_all(
        "coco", mixed_coco(tmp_path / "raw"), tmp_path / "m", shard_rows=10
    )
    assert [shard["rows"] for shard in summary["shards"]] == [8, 10, 10]
    for shard in summary["shards"]:
        data = (tmp_path / "m" / shard["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
    assert json.loads((tmp_path / "m/manifest.json").read_text()) == summary


def test_a_rebuild_replaces_the_manifest_as_a_whole(tmp_path: Path) -> None:
    root = mixed_coco(tmp_path / "raw")
    build_all("coco", root, tmp_path / "m", shard_rows=5)
    summary, _, _ = build_all("coco", root, tmp_path / "m", shard_rows=100)
    assert {p.name for p in (tmp_path / "m").iterdir()} == {
        "croissant.json",
        "manifest-00000.parquet",
        "manifest.json",
        "rejects.parquet",
    }
    # A build that fails leaves the old one in place.
    annotations = root / "annotations/instances_train2017.json"
    annotations.write_text(annotations.read_text()[:-50])
    with pytest.raises(UserError, match="cut off"):
        build_all("coco", root, tmp_path / "m")
    assert json.loads((tmp_path / "m/manifest.json").read_text()) == summary
    assert len(open_manifest(tmp_path / "m")) == 28


def test_other_peoples_folders_are_not_written_into(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "raw")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty and not a manifest"):
        build_all("coco", root, tmp_path / "home")
    build_all("coco", root, tmp_path / "m")
    vg = write_vg(tmp_path / "vg", {1: [region(1, "a thing")]})
    with pytest.raises(UserError, match="another manifest"):
        build_all("vg", vg, tmp_path / "m")
    build_all("vg", vg, tmp_path / "m", force=True)
    with pytest.raises(UserError, match="a file"):
        build_all("coco", root, tmp_path / "home/thesis.tex")


def test_an_empty_release_gives_an_empty_manifest(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "raw", images=[])
    summary, rows, _ = build_all("coco", root, tmp_path / "m")
    assert rows == []
    assert len(open_manifest(tmp_path / "m")) == 0
    assert summary["shards"][0]["rows"] == 0


def test_pandas_duckdb_and_datasets_read_it_and_the_image_shows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    root = shared_path("fixtures/coco")
    for images in ("embed", "reference"):
        build_all("coco", root, tmp_path / images, images=images)
        file = str(tmp_path / images / "manifest-00000.parquet")
        frame = pd.read_parquet(file)
        assert len(frame) == 26
        assert frame["source"].unique().tolist() == ["coco"]
        found = duckdb.sql(
            f"SELECT count(*), sum(len(concepts)), max(len(concepts[1].box)) FROM '{file}'"
        ).fetchall()
        assert found[0] == (26, sum(len(c) for c in frame["concepts"]), 4)
        loaded = datasets.load_dataset(
            "parquet", data_files=file, cache_dir=str(tmp_path / "cache"), split="train"
        )
        row = loaded[0]
        assert row["image"].size == (row["width"], row["height"])
        assert row["image"].convert("RGB").getextrema() != ((0, 0),) * 3
        assert row["concepts"][0]["box"] == [0.5, 0.5, 1.0, 1.0]


def test_many_images_go_through_several_blocks(tmp_path: Path) -> None:
    root = write_coco(
        tmp_path / "raw",
        images=[coco_image(n, 10, 10) for n in range(1, 601)],
        boxes=[box(n, n % 600 + 1, [0, 0, 5 + n % 5, 5]) for n in range(1800)],
    )
    _summary, rows, _ = build_all("coco", root, tmp_path / "m")
    assert [row["id"] for row in rows] == [f"coco/{n}" for n in range(1, 601)]
    for row in rows:
        number = int(row["id"].split("/")[1])
        widths = [5 + n % 5 for n in (number - 1, number + 599, number + 1199)]
        assert [c["box"][2] for c in row["concepts"]] == pytest.approx([w / 10 for w in widths])


def test_row_groups_are_cut_by_rows_and_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import xvlm_data.write as write

    root = mixed_coco(tmp_path / "raw")
    monkeypatch.setattr(write, "ROW_GROUP_ROWS", 6)
    build_all("coco", root, tmp_path / "a", shard_rows=10)
    assert [s.row_groups for s in open_manifest(tmp_path / "a").shards] == [(6, 2), (6, 4), (6, 4)]
    size = (root / "train2017/000000000001.jpg").stat().st_size
    monkeypatch.setattr(write, "ROW_GROUP_BYTES", 3 * size)
    build_all("coco", root, tmp_path / "b", images="embed")
    groups = open_manifest(tmp_path / "b").shards[0].row_groups
    assert groups[:3] == (3, 3, 3)
    assert sum(groups) == 28


def run(*args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xvlm_data", *args], capture_output=True, text=True, **more
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_bad_input_is_one_clear_line(tmp_path: Path) -> None:
    out = str(tmp_path / "m")
    assert "choose from coco" in one_line(run("build", "--source", "nope", "--out", out))
    line = one_line(run("build", "--source", "vg", cwd=tmp_path))
    assert "raw/vg: no such folder" in line
    (tmp_path / "empty").mkdir()
    for source, word in (
        ("coco", "instances"),
        ("vg", "image_data.json"),
        ("sbu", "sbu-captions-all.json"),
        ("cc3m", "GCC-training.tsv"),
        ("objects365", "zhiyuan_objv2_train.json"),
    ):
        done = run("build", "--source", source, "--root", str(tmp_path / "empty"), "--out", out)
        assert word in one_line(done)
    root = write_coco(tmp_path / "raw")
    annotations = root / "annotations/instances_train2017.json"
    text = annotations.read_text()
    for broken, word in ((text[:-9], "cut off"), ("[1, 2]", "not a JSON object"), ("", "empty")):
        annotations.write_text(broken)
        done = run("build", "--source", "coco", "--root", str(root), "--out", out)
        assert word in one_line(done)
        assert annotations.name in one_line(done)
    assert not Path(out).exists()


def test_no_permission_is_one_clear_line() -> None:
    # Root may read everything, so the command gives its rights up first; pytest's own folders
    # would be closed to it then.
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        base.chmod(0o755)
        root = write_coco(base / "raw")
        (base / "out").mkdir()
        (base / "out").chmod(0o777)
        secret = root / "annotations/instances_train2017.json"
        secret.chmod(0)
        code = (
            "import os, sys; import xvlm_data.build, xvlm_data.build_command;"
            "import xvlm_data.console, xvlm_data.sources.coco;"
            "from xvlm_data.commands import main;"
            "os.geteuid() == 0 and os.setuid(65534); main(sys.argv[1:])"
        )
        (base / "closed").mkdir(mode=0o700)
        for target in (root, base / "closed"):
            command = ["build", "--workers", "1", "--source", "coco", "--root", str(target)]
            done = subprocess.run(
                [sys.executable, "-c", code, *command, "--out", str(base / "out/m")],
                capture_output=True,
                text=True,
            )
            assert f"{secret if target == root else target}: not readable" in one_line(done)


def test_no_space_is_one_clear_line_and_leaves_the_old_manifest(tmp_path: Path) -> None:
    root = mixed_coco(tmp_path / "raw")
    out = tmp_path / "m"
    build_all("coco", root, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    # A file size limit fails the write as a full disk does.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from xvlm_data.commands import main; main(sys.argv[1:])"
    )
    command = ["build", "--source", "coco", "--root", str(root), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--images", "embed"], capture_output=True, text=True
    )
    assert "no space left" in one_line(done)
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
    # With room again, the same command goes on.
    assert run(*command, "--images", "embed").returncode == 0
    build_all("coco", root, tmp_path / "other", images="embed")
    other = {p.name: p.read_bytes() for p in (tmp_path / "other").iterdir()}
    assert {p.name: p.read_bytes() for p in out.iterdir()} == other


def test_json_report_equals_the_manifests_own(tmp_path: Path) -> None:
    root = mixed_coco(tmp_path / "raw")
    command = ["build", "--source", "coco", "--root", str(root), "--out", str(tmp_path / "m")]
    done = run(*command, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "m/manifest.json").read_text())
    done = run(*command)
    assert "rejected: missing_image" in done.stdout


def test_every_rule_has_its_flag(tmp_path: Path) -> None:
    root = write_coco(
        tmp_path / "raw",
        images=[coco_image(1), coco_image(2)],
        boxes=[
            box(1, 1, [0, 0, 50, 50]),
            box(2, 1, [0, 0, 5, 5]),
            box(3, 1, [0, 0, 50, 50], iscrowd=1),
        ],
        categories=[{"id": 1, "name": "Handbag/Satchel"}],
    )
    write_json(tmp_path / "captions_val2014.json", {"images": [coco_image(2)], "annotations": []})
    held_out = str(tmp_path / "captions_val2014.json")

    def rows(*flags: str) -> tuple[list[str], list[str]]:
        out = str(tmp_path / "m")
        done = run("build", "--source", "coco", "--root", str(root), "--out", out, *flags)
        (table,) = (pq.read_table(path) for path in (tmp_path / "m").glob("manifest-*.parquet"))
        assert done.returncode == (0 if len(table) else 2), done.stderr
        texts = [c["text"] for row in table["concepts"].to_pylist() for c in row]
        return table["id"].to_pylist(), texts

    both = ["coco/1", "coco/2"]
    assert rows() == (both, ["Handbag"])
    assert rows("--keep-all") == (both, ["Handbag"] * 2)
    assert rows("--min-area", "0") == (both, ["Handbag"] * 2)
    assert rows("--keep-crowd") == (both, ["Handbag"] * 2)
    assert rows("--slashed-names", "last") == (both, ["Satchel"])
    assert rows("--slashed-names", "raw") == (both, ["Handbag/Satchel"])
    assert rows("--exclude", held_out) == (["coco/1"], ["Handbag"])
    assert rows("--exclude", held_out, "--keep-leaks") == (both, ["Handbag"])
    assert rows("--max-pixels", "7999") == ([], [])
    (root / "train2017/000000000002.jpg").write_bytes(b"junk")
    assert rows() == (["coco/1"], ["Handbag"])
    assert rows("--check", "find") == (both, ["Handbag"])
    vg = write_vg(tmp_path / "vg", {1: [region(1, "a red thing"), region(2, "a red thing", 40)]})
    for flags, kept in (((), 1), (("--keep-all",), 2), (("--max-text-overlap", "1"), 2)):
        out = str(tmp_path / "v")
        done = run("build", "--source", "vg", "--root", str(vg), "--out", out, "--json", *flags)
        assert json.loads(done.stdout)["counts"]["regions"]["kept"] == kept


def test_default_folders_make_the_short_command_work(tmp_path: Path) -> None:
    write_vg(tmp_path / "raw/vg", {1: [region(1, "a thing")]})
    assert run("build", "--source", "vg", cwd=tmp_path).returncode == 0
    assert len(open_manifest(tmp_path / "manifests/vg")) == 1


@pytest.mark.parametrize("command", ["build --source coco", "download nowhere --out out"])
def test_a_quality_of_images_that_stay_as_they_are_is_refused(command: str) -> None:
    done = run(*command.split(), "--quality", "50")
    assert done.returncode == 2
    assert "--quality belongs to --shortest-side" in done.stderr


def test_manifests_that_are_none_are_refused(tmp_path: Path) -> None:
    build_all("coco", write_coco(tmp_path / "raw"), tmp_path / "m")
    shard = tmp_path / "m/manifest-00000.parquet"
    table = pq.read_table(shard)

    def refused(spec: Path | str, message: str) -> None:
        with pytest.raises(ManifestError, match=message) as caught:
            manifest = open_manifest(spec)
            list(manifest.batches())
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nothing", "no such manifest")
    refused(str(tmp_path / "*.parquet"), "no file matches")
    refused(tmp_path / "raw", "without manifest.json")
    refused(tmp_path / "m/rejects.parquet", "no xvlm manifest")
    other = tmp_path / "other.parquet"
    pq.write_table(table.replace_schema_metadata({"xvlm.schema_version": "99"}), other)
    refused(other, "schema version 99.*upgrade")
    dropped = table.drop_columns(["concepts"])
    pq.write_table(dropped.replace_schema_metadata(table.schema.metadata), other)
    refused(other, "column 'concepts'")
    other.write_bytes(shard.read_bytes()[:-20])
    refused(other, "not a readable Parquet")
    damaged = bytearray(shard.read_bytes())
    damaged[4:200] = b"\0" * 196
    other.write_bytes(damaged)
    refused(other, "not a readable Parquet")
    summary = json.loads((tmp_path / "m/manifest.json").read_text())
    write_json(tmp_path / "m/manifest.json", summary | {"schema_version": 9})
    refused(tmp_path / "m", "schema version 9")
    write_json(tmp_path / "m/manifest.json", summary | {"shards": [{"file": "../x.parquet"}]})
    refused(tmp_path / "m", "outside the folder")
    write_json(tmp_path / "m/manifest.json", summary)
    shard.unlink()
    refused(tmp_path / "m", "1 of 1 shards are missing")


def test_manifest_opens_as_file_folder_glob_list_and_url(tmp_path: Path) -> None:
    build_all("coco", mixed_coco(tmp_path / "raw"), tmp_path / "m", shard_rows=10)
    shard = tmp_path / "m/manifest-00000.parquet"
    assert len(open_manifest(tmp_path / "m")) == 28
    assert len(open_manifest(shard)) == 8
    assert len(open_manifest(str(tmp_path / "m/*.parquet"))) == 28  # rejects are no shard
    assert len(open_manifest([shard, tmp_path / "m/manifest-00002.parquet"])) == 18
    assert len(open_manifest(f"file://{tmp_path}/m")) == 28
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/m.parquet", shard.read_bytes())
    manifest = open_manifest("memory://bucket/m.parquet")
    assert sum(len(batch) for batch in manifest.batches(["id"])) == 8


def test_a_moved_release_is_found_through_the_image_root(tmp_path: Path) -> None:
    build_all("coco", write_coco(tmp_path / "raw"), tmp_path / "m")
    (tmp_path / "raw").rename(tmp_path / "moved")
    manifest = open_manifest(tmp_path / "m", image_root=str(tmp_path / "moved"))
    (row,) = manifest.read_row_group(0, 0).to_pylist()
    assert Path(row["image"]["path"]).is_file()
    assert str(tmp_path / "moved") in row["image"]["path"]


def test_xvlm_data_imports_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['datasets'] = None;"
        "import xvlm_data.commands, xvlm_data.build, xvlm_data.inspect.command,"
        "xvlm_data.sample.command; from xvlm_data.sources import SOURCES, get_source;"
        "[get_source(name) for name in SOURCES]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
