"""head, subset, filter, merge, split, diff, stats: streamed, with footers and provenance kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import xvlm_data
from xvlm_data.commands import main
from xvlm_data.errors import UserError
from xvlm_data.inspect.validate import validate
from xvlm_data.journal import Journal
from xvlm_data.manifest import Manifest
from xvlm_data.verbs import derive
from xvlm_data.verbs.choose import subset
from xvlm_data.verbs.filter import matching
from xvlm_data.verbs.merge import merge

from .inspect_manifests import concept, png, row, write_folder

COUNTS = {"image": 20, "region": 20, "object": 20}


def write_manifest(
    folder: Path, numbers: range, source: str = "made", shards: int = 2, **info: Any
) -> Path:
    """Rows ``<source>/<number>`` of width 10 + number, in shards with one footer."""
    rows = [
        row(
            n, id=f"{source}/{n}", source=source, width=10 + n, image={"bytes": png(), "path": None}
        )
        for n in numbers
    ]
    size = -(-len(rows) // shards)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    about = {
        "name": f"{source}-train",
        "source": source,
        "split": "train",
        "licence": f"of {source}",
    }
    concepts = dict.fromkeys(("image", "region", "object"), len(rows))
    return write_folder(folder, *parts, info=about | info, concepts=concepts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "m", range(20))


def run(*args: Any, status: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(arg) for arg in args])
    assert done.exit_code == status, done.output
    return done


def ids(manifest: Any) -> list[str]:
    return [r["id"] for r in manifest]


def check_derived(out: Path, verb: str) -> Manifest:
    """What every verb promises of what it writes."""
    found = xvlm_data.open(out)
    assert validate(found, check_images=False).ok
    summary = found.summary or {}
    assert summary["rows"] == len(found)
    assert summary["name"] == out.name
    said = Counter(c["granularity"] for r in found for c in r["concepts"])
    assert summary["concepts"] == {name: said[name] for name in COUNTS}
    for counts in summary["counts"].values():
        left_out = sum(counts["filtered"].values()) + sum(counts["rejected"].values())
        assert counts["raw"] == counts["kept"] + left_out
    for shard in found.shards:
        assert shard.info["history"][-1]["verb"] == verb
        assert shard.info["licence"]
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith("manifest-")) == [
        "croissant.json",
        "manifest.json",
        "rejects.parquet",
    ]
    return found


def test_head_prints_rows(folder: Path) -> None:
    lines = run("head", folder, "-n", 2, "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["made/0", "made/1"]
    assert json.loads(lines[0])["image"] == {"bytes": len(png()), "path": None}
    told = run("head", folder, "-n", 1).stdout
    assert "made/0  train  10 x 30" in told
    assert "(0.100 0.100 0.200 0.200) circle  [blue]" in told


def test_head_writes_rows(folder: Path, tmp_path: Path) -> None:
    run("head", folder, "-n", 13, "--out", tmp_path / "h")
    found = check_derived(tmp_path / "h", "head")
    assert ids(found) == [f"made/{n}" for n in range(13)]
    assert found[12] == xvlm_data.open(folder)[12]
    assert (found.summary or {})["counts"]["images"]["filtered"] == {"head": 7}


def test_a_subset_does_not_depend_on_the_order_of_the_rows(folder: Path, tmp_path: Path) -> None:
    run("subset", folder, "-n", 6, "--seed", 3, "--out", tmp_path / "s")
    found = ids(check_derived(tmp_path / "s", "subset"))
    assert found == sorted(found, key=lambda id_: int(id_.split("/")[1]))
    assert len(found) == 6
    backwards = write_manifest(tmp_path / "back", range(19, -1, -1), shards=3)
    again = xvlm_data.open(backwards)
    assert {again[i]["id"] for i in subset(again, 6, 3).tolist()} == set(found)
    manifest = xvlm_data.open(folder)
    smaller = {manifest[i]["id"] for i in subset(manifest, 4, 3).tolist()}
    assert smaller < set(found)
    assert {manifest[i]["id"] for i in subset(manifest, 6, 4).tolist()} != set(found)
    assert len(subset(manifest, 99, 0)) == 20


CONDITIONS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "width >= 25 OR id = 'made/0'": lambda r: r["width"] >= 25 or r["id"] == "made/0",
    "len(concepts) > 3": lambda r: False,
    "len(list_filter(concepts, lambda c: c.text = 'circle' AND c.box[3] > 0.1)) > 0": lambda r: (
        True
    ),
    "octet_length(image.bytes) > 10 AND width % 2 = 1 -- odd": lambda r: r["width"] % 2 == 1,
    "nullif(width, 12) > 0": lambda r: r["width"] != 12,
    "concepts[3].attributes[1] = 'blue' AND split = 'train'": lambda r: True,
}


@pytest.mark.parametrize("where", CONDITIONS)
def test_a_condition_finds_the_rows_that_python_finds(folder: Path, where: str) -> None:
    manifest = xvlm_data.open(folder)
    wanted = [number for number, r in enumerate(manifest) if CONDITIONS[where](r)]
    assert matching(manifest, where).tolist() == wanted


def test_filter_writes_what_is_found(folder: Path, tmp_path: Path) -> None:
    run("filter", folder, "--where", "width >= 25", "--out", tmp_path / "f")
    found = check_derived(tmp_path / "f", "filter")
    assert ids(found) == [f"made/{n}" for n in range(15, 20)]
    step = found.info["history"][-1]
    assert step["options"] == {"where": "width >= 25"}
    assert step["inputs"][0]["fingerprint"] == xvlm_data.open(folder).fingerprint
    assert (found.summary or {})["counts"]["objects"]["filtered"] == {"where": 15}
    run("filter", tmp_path / "f", "--where", "width > 26", "--out", tmp_path / "g")
    again = check_derived(tmp_path / "g", "filter")
    assert [s["options"]["where"] for s in again.info["history"]] == ["width >= 25", "width > 26"]
    run("filter", folder, "--where", "false", "--out", tmp_path / "none")
    assert len(xvlm_data.open(tmp_path / "none")) == 0


def test_a_condition_reads_no_picture_that_it_does_not_ask_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    of_manifest = Manifest.read_row_group

    def counted(self: Manifest, shard: int, group: int, columns: Any = None) -> pa.Table:
        read.update(columns)
        return of_manifest(self, shard, group, columns)

    monkeypatch.setattr(Manifest, "read_row_group", counted)
    matching(xvlm_data.open(folder), "width > 3 AND caption IS NOT NULL")
    assert read == {"width", "caption"}


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("wdth > 3", "wdth"),
        ("width >", "syntax error"),
        ("true); COPY (SELECT 1) TO 'x.csv'; SELECT (1", "more than one statement"),
        ("(SELECT count(*) FROM read_csv('manifest.json')) > 0", "disabled by configuration"),
        ("split", "Could not convert"),
        ("sum(width) > 1", "GROUP BY"),
    ],
)
def test_a_condition_that_is_none_is_one_clear_line(
    folder: Path, tmp_path: Path, where: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = run("filter", folder, "--where", where, "--out", tmp_path / "f", status=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --where")
    assert problem in line
    assert not (tmp_path / "f").exists()
    assert not (folder / "x.csv").exists()


def test_merge_keeps_each_footer(folder: Path, tmp_path: Path) -> None:
    other = write_manifest(
        tmp_path / "o",
        range(5),
        "vg",
        1,
        options={"x": 1},
        citation="@misc{vg}",
        image_root="/r/vg",
    )
    run("merge", folder, other, "--out", tmp_path / "both")
    found = check_derived(tmp_path / "both", "merge")
    assert ids(found) == [*(f"made/{n}" for n in range(20)), *(f"vg/{n}" for n in range(5))]
    assert [shard.info["source"] for shard in found.shards] == ["made", "vg"]
    assert found.shards[1].info["options"] == {"x": 1}
    summary = found.summary or {}
    assert summary["source"] == "made+vg"
    assert summary["split"] == "train"
    assert summary["licence"] == "made: of made; vg: of vg"
    assert summary["citation"] == "@misc{vg}"
    assert [part["source"] for part in summary["parts"]] == ["made", "vg"]
    assert derive.common_root(["/r/vg", "/r/coco", None]) == "/r"


def test_an_image_that_comes_again_is_refused_or_left_out(folder: Path, tmp_path: Path) -> None:
    other = write_manifest(tmp_path / "o", range(18, 24))
    done = run("merge", folder, other, "--out", tmp_path / "both", status=2)
    assert "2 images come again, first made/18" in done.stderr
    run("merge", folder, other, "--on-repeat", "first", "--out", tmp_path / "both")
    found = check_derived(tmp_path / "both", "merge")
    assert ids(found) == [f"made/{n}" for n in range(24)]
    assert (found.summary or {})["counts"]["images"]["filtered"] == {"repeated": 2}


def with_column(folder: Path, name: str, values: Any) -> Path:
    for path in folder.glob("manifest-*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column(name, pa.array([values] * len(table))), path)
    return folder


def test_columns_beyond_those_of_every_manifest_come_along(folder: Path, tmp_path: Path) -> None:
    other = with_column(write_manifest(tmp_path / "o", range(20, 22)), "questions", ["why?"])
    merge([xvlm_data.open(folder), xvlm_data.open(other)], tmp_path / "both")
    found = xvlm_data.open(tmp_path / "both")
    assert [found[n]["questions"] for n in (0, 20)] == [None, ["why?"]]
    third = with_column(write_manifest(tmp_path / "t", range(30, 32)), "questions", 3)
    with pytest.raises(UserError, match="column 'questions' is"):
        merge([xvlm_data.open(other), xvlm_data.open(third)], tmp_path / "x")


def test_split_shares_no_image_and_loses_none(tmp_path: Path) -> None:
    folder = write_manifest(tmp_path / "m", range(400))
    args = ["split", folder, "--part", "train=0.75", "--part", "val=0.25"]
    run(*args, "--out", tmp_path / "s")
    parts = {
        name: set(ids(check_derived(tmp_path / "s" / name, "split"))) for name in ("train", "val")
    }
    assert not parts["train"] & parts["val"]
    assert len(parts["train"] | parts["val"]) == 400
    assert 70 < len(parts["val"]) < 130  # 100, with a standard deviation of 9
    fewer = write_manifest(tmp_path / "fewer", range(100, 200))
    run("split", fewer, *args[2:], "--out", tmp_path / "f")
    again = set(ids(xvlm_data.open(tmp_path / "f/val")))
    assert again == {f"made/{n}" for n in range(100, 200)} & parts["val"]
    run("split", folder, "--part", "train=0.75", "--part", "val=0.3", "--out", "x", status=2)


def test_split_by_a_column(folder: Path, tmp_path: Path) -> None:
    merge(
        [xvlm_data.open(folder), xvlm_data.open(write_manifest(tmp_path / "o", range(3), "vg"))],
        tmp_path / "both",
    )
    run("split", tmp_path / "both", "--by", "source", "--out", tmp_path / "s")
    assert ids(check_derived(tmp_path / "s/vg", "split")) == ["vg/0", "vg/1", "vg/2"]
    assert len(check_derived(tmp_path / "s/made", "split")) == 20


def test_diff_tells_what_is_different(folder: Path, tmp_path: Path) -> None:
    rows = list(xvlm_data.open(folder))[::-1]
    same = write_folder(tmp_path / "same", rows, info={"name": "same", "source": "made"})
    assert json.loads(run("diff", folder, same, "--json").stdout)["equal"]
    rows = [*rows[2:], row(77)]  # made/17 down to made/0, and one more
    rows[0] = rows[0] | {"width": 9}
    rows[1] = rows[1] | {"concepts": [*rows[1]["concepts"], concept("new")]}
    rows[2] = rows[2] | {"image": {"bytes": png(colour="black"), "path": None}}
    other = write_folder(tmp_path / "other", rows)
    found = json.loads(run("diff", folder, other, "--json", status=1).stdout)
    assert (found["same"], found["only"], found["changed"]) == (15, [2, 1], 3)
    assert found["columns"] == {"width": 1, "concepts": 1, "image": 1}
    assert found["examples"] == {
        "only_a": ["made/18", "made/19"],
        "only_b": ["made/77"],
        "width": ["made/17"],
        "concepts": ["made/16"],
        "image": ["made/15"],
    }
    told = run("diff", folder, other, "--ignore", "image", status=1).stdout
    assert "in concepts" in told
    assert "in image" not in told


def test_stats_side_by_side(folder: Path, tmp_path: Path) -> None:
    other = write_manifest(tmp_path / "o", range(5), "vg")
    first, second = json.loads(run("stats", folder, other, "--json").stdout)
    assert first["images"] == 20
    assert first["concepts"] == COUNTS
    assert first["words_per_text"] == {"image": 2, "region": 3, "object": 1}
    assert first["box_area"]["object"] == pytest.approx(0.04)
    assert second["licence"] == "of vg"
    table = run("stats", folder, other).stdout.splitlines()
    assert table[-1].split() == ["all", "25", "0", "25", "25", "25", "3.0"]


def test_nothing_is_overwritten_or_left_half_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = run("filter", folder, "--where", "true", "--out", folder, "--force", status=2)
    assert "an input lies there" in done.stderr
    run("head", folder, "--out", tmp_path / "h")
    assert (
        "holds a manifest already" in run("head", folder, "--out", tmp_path / "h", status=2).stderr
    )
    run("head", folder, "-n", 7, "--out", tmp_path / "h", "--force")
    assert len(xvlm_data.open(tmp_path / "h")) == 7
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/thesis.txt").write_text("mine")
    assert "not a manifest" in run("head", folder, "--out", tmp_path / "notes", status=2).stderr

    def dying(self: Any, table: Any, shard: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(derive.Derivation, "write", dying)
    run("filter", folder, "--where", "true", "--out", tmp_path / "f", status=130)
    assert not (tmp_path / "f").exists()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_rows_stream_through(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row group is written before the next is read; and files are cut by rows."""
    log: list[str] = []
    read, write = Manifest.read_row_group, derive.Derivation.write

    def reading(self: Manifest, *args: Any) -> pa.Table:
        log.append("read")
        return read(self, *args)

    def writing(self: derive.Derivation, *args: Any) -> None:
        log.append("write")
        write(self, *args)

    monkeypatch.setattr(Manifest, "read_row_group", reading)
    monkeypatch.setattr(derive.Derivation, "write", writing)
    monkeypatch.setattr(derive, "SHARD_ROWS", 6)
    monkeypatch.setattr("xvlm_data.write.ROW_GROUP_ROWS", 1)
    merge([xvlm_data.open(folder)], tmp_path / "both")
    assert log == ["read", "write"] * 8
    assert [shard.rows for shard in xvlm_data.open(tmp_path / "both").shards] == [6, 7, 6, 1]


def test_an_unfinished_build_is_not_thrown_away(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with suppress(RuntimeError), Journal(out / ".building", {"source": "vg"}) as journal:
        journal.record("task", {"rows": 1})
        raise RuntimeError
    done = run("subset", folder, "-n", 3, "--out", out, status=2)
    assert f"{out}: an unfinished build lies there" in done.stderr
    assert (out / ".building" / "plan.json").exists()
    run("subset", folder, "-n", 3, "--out", out, "--force")
    check_derived(out, "subset")


def test_fewer_rows_than_asked_for_are_noted(folder: Path, tmp_path: Path) -> None:
    done = run("subset", folder, "-n", 1000, "--out", tmp_path / "all", "--json")
    assert done.stderr == "note: -n 1,000, but there are only 20 rows: all of them were taken\n"
    assert json.loads(done.stdout)["rows"] == 20
    assert run("subset", folder, "-n", 20, "--out", tmp_path / "just").stderr == ""


def test_a_condition_that_nothing_meets_is_noted(folder: Path, tmp_path: Path) -> None:
    done = run("filter", folder, "--where", "width < 0", "--out", tmp_path / "none", "--json")
    assert "note: the condition holds for none of the 20 rows" in done.stderr
    assert json.loads(done.stdout)["rows"] == 0
    assert run("filter", folder, "--where", "width = 10", "--out", tmp_path / "one").stderr == ""


@pytest.mark.parametrize("where", ["", " \n"])
def test_an_empty_condition_is_called_so(folder: Path, tmp_path: Path, where: str) -> None:
    with pytest.raises(UserError, match=r"the condition is empty; columns are id, .*for instance"):
        matching(xvlm_data.open(folder), where)
    done = run("filter", folder, "--where", where, "--out", tmp_path / "none", status=2)
    assert "the condition is empty" in done.stderr and "SELECT" not in done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("shares", [("a=nan", "b=0.5"), ("a=inf", "b=-inf"), ("a=nan",)])
def test_parts_are_numbers(folder: Path, tmp_path: Path, shares: tuple[str, ...]) -> None:
    parts = [part for share in shares for part in ("--part", share)]
    done = run("split", folder, *parts, "--out", tmp_path / "s", status=2)
    assert "do not add up to 1" in done.stderr
    assert not (tmp_path / "s").exists()
