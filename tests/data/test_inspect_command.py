"""`xvlm-data inspect` as people call it."""

from __future__ import annotations

import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

from tests.data.inspect_manifests import concept, png, row, write, write_folder
from xvlm_data.errors import ManifestError, UserError
from xvlm_data.inspect.command import inspect_command
from xvlm_data.inspect.report import print_statistics
from xvlm_data.inspect.statistics import collect
from xvlm_data.manifest import open_manifest
from xvlm_data.schema import VERSION_KEY, manifest_schema

COUNTS = {
    "images": {"raw": 5, "kept": 2, "filtered": {"leak": 1}, "rejected": {"missing_image": 2}},
    "objects": {"raw": 2, "kept": 2, "filtered": {}, "rejected": {}},
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(inspect_command, [str(a) for a in arguments])


def report(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.stdout


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write(tmp_path / "m.parquet", [row(i) for i in range(4)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(
        tmp_path / "folder",
        [row(0)],
        [row(1)],
        counts=COUNTS,
        clipped_boxes=3,
        rows=2,
        concepts={"image": 2, "region": 2, "object": 2},
        images_without_concepts=0,
    )


def test_report_shows_what_is_there(manifest: Path) -> None:
    found = report(manifest, "--top", 1, "--rows", 1)
    squeezed = " ".join(found.split())
    for line in (
        "schema version 1",
        "generator tests",
        "source made 4",
        "split train 4",
        "region 4 4 1 3.0 0",
        "4 a red square",
        "caption: two shapes",
        "[blue]",
    ):
        assert line in squeezed, line
    assert max(map(len, found.splitlines())) <= 80
    assert "\x1b" not in found  # no colours where there is no terminal


def test_terminals_have_colours(manifest: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="256", highlight=False)
    print_statistics(console, collect(open_manifest(manifest)), top=1)
    # Bars of regions and objects are of different colours, and not of the text's.
    colours = set(re.findall("\x1b\\[([0-9;]+)m\N{FULL BLOCK}", out.getvalue()))
    assert len(colours) >= 3 and "0" not in colours


def test_report_of_a_folder_shows_what_the_build_left_out(folder: Path) -> None:
    found = report(folder)
    assert "images     5     2         1         2" in found
    assert "images  rejected: missing_image  2" in found
    assert "clipped boxes: 3" in found
    assert "warning" not in found


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rows": 9}, "manifest.json tells 9 rows, counted 2"),
        ({"concepts": {"object": 3}}, "manifest.json tells 3 object concepts, counted 2"),
        ({"images_without_concepts": 1}, "tells 1 images without concepts, counted 0"),
    ],
)
def test_counts_that_disagree_are_a_warning(
    folder: Path, changes: dict[str, Any], line: str
) -> None:
    summary = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(summary))
    assert line in report(folder)
    (warning,) = json.loads(report(folder, "--json"))["warnings"]
    assert line in warning


def test_json_equals_the_statistics(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "--json", "--validate", "--draw", 1, tmp_path / "out")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    expected = collect(open_manifest(folder)).to_dict()
    assert found["statistics"] == json.loads(json.dumps(expected))
    assert found["manifest"]["rows"] == 2
    assert found["manifest"]["shards"] == 2
    assert found["manifest"]["bytes"] == sum(p.stat().st_size for p in folder.glob("*.parquet"))
    assert found["manifest"]["build"]["counts"] == COUNTS
    assert found["validation"] == {"ok": True, "rows": 2, "offences": {}}
    (drawn,) = found["drawn"]
    assert Path(drawn).is_file()


def test_json_has_no_numbers_that_json_has_not(tmp_path: Path) -> None:
    bad = concept(box=(float("nan"), 0.5, float("inf"), 0.5))
    path = write(tmp_path / "m.parquet", [row(0, caption=None, concepts=[bad])])

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(report(path, "--json", "--validate"), parse_constant=refuse)
    assert found["statistics"]["examples"][0]["concepts"][0]["box"] == [None, 0.5, None, 0.5]
    assert list(found["validation"]["offences"]) == ["box_finite"]


def test_validate_exits_with_1_and_names_the_first_offenders(tmp_path: Path) -> None:
    path = write(tmp_path / "m.parquet", [row(0), row(1, caption="other")])
    result = run(path, "--validate")
    assert result.exit_code == 1
    assert "caption: 1 x broken" in result.stdout
    assert "m.parquet row 1 (made/1): caption 'other', concept 'two shapes'" in result.stdout
    assert run(path).exit_code == 0
    result = run(path, "--validate", "--json")
    assert result.exit_code == 1
    offence = json.loads(result.stdout)["validation"]["offences"]["caption"]
    assert offence["count"] == 1
    assert (offence["first"][0]["row"], offence["first"][0]["id"]) == (1, "made/1")


def test_an_empty_manifest_is_reported_and_fails_validation(tmp_path: Path) -> None:
    path = write(tmp_path / "m.parquet", [])
    assert "rows            0" in report(path)
    result = run(path, "--validate")
    assert result.exit_code == 1
    assert "no_rows" in result.stdout and "0 rows" in result.stdout
    with pytest.raises(UserError, match="no rows"):
        run_raising(path, "--draw", 1, tmp_path / "out")


def test_several_manifests_and_globs_are_one(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", [row(0)])
    b = write(tmp_path / "b.parquet", [row(1), row(2)])
    for spec in ((a, b), (tmp_path / "*.parquet",), (a.as_uri(), b.as_uri())):
        assert json.loads(report(*spec, "--json"))["statistics"]["rows"] == 3


def test_draw_writes_pictures(manifest: Path, tmp_path: Path) -> None:
    assert "drew 3 images into" in report(manifest, "--draw", 3, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_image_root_moves_images(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.png").write_bytes(png())
    moved = row(0, image={"bytes": None, "path": "/gone/a.png"})
    path = write(tmp_path / "m.parquet", [moved], {"name": "x", "image_root": "/gone"})
    with pytest.raises(UserError, match="--image-root"):
        run_raising(path, "--draw", 1, tmp_path / "out")
    arguments = (path, "--image-root", tmp_path / "here", "--draw", 1, tmp_path / "out")
    assert run(*arguments).exit_code == 0
    with Image.open(next((tmp_path / "out").glob("*.png"))) as drawn:
        assert drawn.width == 640


def test_hostile_text_cannot_drive_the_terminal(tmp_path: Path) -> None:
    text = "[bold]red[/bold] \x1b[31m\x07\n\u202ealert"
    concepts = [concept(text, "image"), concept(text)]
    path = write(tmp_path / "m.parquet", [row(0, id=f"made/{text}", caption="", concepts=concepts)])
    found = report(path, "--validate")
    assert not set(found) & {"\x1b", "\x07", "\u202e"}
    assert "[bold]red[/bold] \\x1b[31m" in found


def run_raising(*arguments: object) -> None:
    inspect_command.main([str(a) for a in arguments], standalone_mode=False)


def corrupt(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    return path


def newer(path: Path) -> Path:
    schema = manifest_schema({})
    metadata = dict(schema.metadata) | {VERSION_KEY: b"99"}
    pq.write_table(schema.empty_table().replace_schema_metadata(metadata), path)
    return path


def foreign(path: Path) -> Path:
    pq.write_table(pa.table({"a": [1]}), path)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.with_name("none.parquet"), "no such manifest"),
        (newer, "schema version 99"),
        (foreign, "no xvlm manifest"),
        (cut, "not a readable Parquet file"),
        (corrupt, "m.parquet"),
        (lambda path: path.parent, "without manifest.json"),
        (lambda path: path.with_name("*.pq"), "no file matches"),
    ],
)
@pytest.mark.parametrize("option", [(), ("--validate",), ("--json",)])
def test_bad_manifests_are_one_clear_line(
    manifest: Path, spoil: Any, message: str, option: tuple[str, ...]
) -> None:
    with pytest.raises(ManifestError) as caught:
        run_raising(spoil(manifest), *option)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_of_validation_need_it(manifest: Path) -> None:
    result = run(manifest, "--decode")
    assert result.exit_code == 2
    assert "--validate" in result.stderr


@pytest.mark.parametrize("option", ["--pictures", "--max-rows"])
def test_options_of_pages_need_one(manifest: Path, option: str, tmp_path: Path) -> None:
    result = run(manifest, option, "10")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{option} belongs to --html" in result.stderr
    assert run(manifest, option, "10", "--html", tmp_path / "page.html").exit_code == 0


def test_a_page_goes_where_a_link_leads_and_into_a_pipe(tmp_path: Path) -> None:
    path = write(tmp_path / "made.parquet", [row(0)])
    (tmp_path / "there").mkdir()
    link, pipe = tmp_path / "page.html", tmp_path / "pipe"
    link.symlink_to(tmp_path / "there" / "page.html")
    assert run(path, "--html", link).exit_code == 0
    assert link.is_symlink() and (tmp_path / "there" / "page.html").stat().st_size > 1000
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as threads:
        reader = threads.submit(pipe.read_bytes)
        assert run(path, "--html", pipe).exit_code == 0
        assert reader.result() == link.read_bytes()
    assert pipe.is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "made.parquet",
        "page.html",
        "pipe",
        "there",
    ]
