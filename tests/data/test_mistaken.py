"""Globs of manifests, and what a person hears who gives something else than a manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import xvlm_data
from xvlm_data.commands import main
from xvlm_data.errors import ManifestError
from xvlm_data.manifest import _open, open_manifest
from xvlm_data.storage import as_path, is_local

from .inspect_manifests import row, write, write_folder


@pytest.fixture
def manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as our own `manifests`: two manifests, a recipe, and a text."""
    folder = tmp_path / "manifests"
    write_folder(folder / "coco", [row(0), row(1)], [row(2)])
    write_folder(folder / "coco_val", [row(3)])
    (folder / "coco" / "rejects.parquet").write_bytes(b"of another schema")
    (folder / "4m.yaml").write_text("sources: {}")
    (folder / "README.md").write_text("# Manifests")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("manifests/coco*", [0, 1, 2, 3]),
        ("manifests/*/", [0, 1, 2, 3]),
        ("manifests/*", [0, 1, 2, 3]),  # the recipe and the text are passed over
        ("manifests/*_val", [3]),
        ("manifests/coco/*", [0, 1, 2]),  # manifest.json, and the rejects too
        ("manifests/*/manifest-*.parquet", [0, 1, 2, 3]),
        ("manifests/**/*.parquet", [0, 1, 2, 3]),
    ],
)
def test_a_pattern_matches_manifests(manifests: Path, pattern: str, numbers: list[int]) -> None:
    staged = manifests / "coco" / ".building" / "staged"  # a build that goes on in there
    staged.mkdir(parents=True)
    write(staged / "manifest-00000.parquet", [row(9)])
    found = open_manifest(pattern)
    assert [r["id"] for r in found] == [f"made/{number}" for number in numbers]


def test_a_pattern_of_one_folder_is_that_folder(manifests: Path) -> None:
    assert open_manifest("manifests/*_val").summary == open_manifest("manifests/coco_val").summary
    assert open_manifest("manifests/*_val").summary is not None
    assert open_manifest("manifests/co*").summary is None


def test_a_pattern_in_a_store(manifests: Path) -> None:
    remote = as_path("memory://bucket/manifests")
    assert not is_local(remote)
    for path in (path for path in manifests.rglob("*") if path.is_file()):
        place = remote / path.relative_to(manifests).as_posix()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    assert len(open_manifest("memory://bucket/manifests/co*")) == 4
    with pytest.raises(ManifestError, match=r"did you mean memory://bucket/manifests/coco\?"):
        open_manifest("memory://bucket/manifests/cooc")


@pytest.mark.parametrize("command", [["inspect"], ["stats"], ["head"], ["inspect", "--validate"]])
def test_commands_take_patterns(manifests: Path, command: list[str]) -> None:
    done = CliRunner().invoke(main, [*command, "manifests/co*"])
    assert done.exit_code == 0, done.output


def test_a_pattern_that_matches_something_unfinished_is_refused(manifests: Path) -> None:
    """Passing it over would train without it, and nobody would know."""
    (manifests / "cc3m" / ".building").mkdir(parents=True)
    with pytest.raises(ManifestError, match=r"manifests/cc3m: .*did not finish"):
        open_manifest("manifests/*")
    with pytest.raises(ManifestError, match="Invalid pattern"):
        open_manifest("manifests/co**")
    with pytest.raises(ManifestError, match="no file matches"):
        open_manifest("manifests/*.yaml")


def test_the_first_example_of_stats_works(manifests: Path) -> None:
    """As the shell hands it on: every folder, with a slash."""
    shown = CliRunner().invoke(main, ["stats", "--help"]).output
    _, _, examples = shown.partition("Examples:")
    example = examples.split("\n")[1].split()
    assert example[2].endswith("/*/")
    folders = sorted(f"{path}/" for path in Path("manifests").iterdir() if path.is_dir())
    assert example[:2] == ["xvlm-data", "stats"] and len(folders) == 2
    done = CliRunner().invoke(main, ["stats", *folders])
    assert done.exit_code == 0 and "manifests/coco_val/" in done.output


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("manifests/4m.yaml", "a YAML file, such as a recipe, not a manifest; give folders with"),
        ("manifests/README.md", "a text to read, not a manifest"),
        ("manifests/coco/manifest.json", "give its folder, manifests/coco"),
        ("manifests/coco/croissant.json", "give its folder, manifests/coco"),
        ("other.json", "a JSON file, not a manifest"),
        ("list.tsv", "a text file, not a manifest; if it is a list of URLs, see --url-column"),
    ],
)
def test_files_beside_manifests_are_called_what_they_are(
    manifests: Path, given: str, told: str
) -> None:
    Path(given).touch()
    done = CliRunner().invoke(main, ["stats", "manifests/coco", given])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {given}: ") and told in done.stderr


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("manifests/cooc", "manifests/coco"),
        ("manifests/coco_vla/", "manifests/coco_val"),
        ("coco_val", "manifests/coco_val"),
        ("manifest/coco", "manifests/coco"),
        ("manifests/coco_val/manifest.parquet", "manifests/coco_val/manifest-00000.parquet"),
        ("manifests/flickr30k", None),
        ("manifests/coco/x.parquet", None),  # like the others by its ending alone
        ("no/such/place", None),
    ],
)
def test_a_misspelt_manifest_is_told_what_is_like_it(
    manifests: Path, given: str, meant: str | None
) -> None:
    advice = f"did you mean {meant}?" if meant else "build it with `xvlm-data build`"
    with pytest.raises(ManifestError) as caught:
        open_manifest(given)
    assert str(caught.value) == f"{given}: no such manifest; {advice}"
    if meant:
        open_manifest(meant)  # what is suggested is there
    if not given.endswith("/"):
        with pytest.raises(ManifestError) as caught:
            open_manifest(Path(given).absolute())  # as a training run has it
        assert meant is None or str(Path(meant).absolute()) in str(caught.value)


def test_a_folder_that_is_no_manifest_is_called_what_it_is(manifests: Path) -> None:
    shutil.copytree(manifests / "coco", "shards")
    Path("shards/manifest.json").unlink()
    Path("empty").mkdir()
    Path("unfinished/.building").mkdir(parents=True)
    Path("texts").mkdir()
    Path("texts/notes.docx").touch()
    expected = {
        "manifests": "it holds manifests (coco, coco_val): give manifests/coco, say",
        "shards/": "give its 2 file(s): 'shards/*.parquet'",
        "empty": "build a manifest there",
        "unfinished": "the build did not finish: run the same command again",
        "texts": "give a folder that `xvlm-data build` wrote",
    }
    for folder, told in expected.items():
        with pytest.raises(ManifestError) as caught:
            open_manifest(folder)
        assert str(caught.value).startswith(f"{folder}: a folder without manifest.json")
        assert told in str(caught.value)
        assert ("did not finish" in str(caught.value)) == (folder == "unfinished")
    assert len(open_manifest("shards/*.parquet")) == 3  # as it says


def test_raw_releases_are_known_by_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that `xvlm-data sample` writes; what is advised there works."""
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(main, ["sample", "--out", "raw", "--images", "4"])
    assert made.exit_code == 0, made.output
    releases = [path.name for path in Path("raw").iterdir() if not path.name.endswith("_val")]
    assert {"coco", "vg", "sbu", "cc3m"} <= set(releases)
    for name in releases:
        done = CliRunner().invoke(main, ["inspect", f"raw/{name}"])
        advice = f"xvlm-data build --source {name} --root raw/{name} --out manifests/{name}"
        assert done.exit_code == 2 and f"build it: `{advice}`" in done.stderr, done.output
        assert "did not finish" not in done.stderr
    built = CliRunner().invoke(main, [*advice.split()[1:], "--workers", "1"])
    assert built.exit_code == 0, built.output


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        _open(str(tmp_path))  # a folder where a file was a moment ago
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_python_takes_patterns_too(manifests: Path) -> None:
    assert len(xvlm_data.open(str(manifests / "co*"))) == 4


@pytest.mark.parametrize(
    ("name", "line", "told"),
    [
        (
            "Train_GCC-training.tsv",
            "a dog\thttp://x.org/1.jpg",
            "--url-column 2 --caption-column 1",
        ),
        ("cc12m.tsv", "http://x.org/1.jpg\ta dog", "--url-column 1 --caption-column 2"),
        ("urls.txt", "https://x.org/1.jpg", "by its first line: --url-column 1\n"),
        ("list.csv", "link,text", "its columns seem to be link, text"),
    ],
)
def test_a_list_of_addresses_wants_its_columns(
    tmp_path: Path, name: str, line: str, told: str
) -> None:
    path = tmp_path / name
    path.write_text(f"{line}\n")
    done = CliRunner().invoke(main, ["download", str(path), "--out", str(tmp_path / "out")])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "with --url-column" in done.stderr and told in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_misspelt_source_is_told_what_is_like_it() -> None:
    done = CliRunner().invoke(main, ["build", "--source", "cocoo"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: unknown source 'cocoo'; did you mean coco?")
    done = CliRunner().invoke(main, ["build", "--source", "qqq"])
    assert "did you mean" not in done.stderr and "choose from coco, vg" in done.stderr


def test_a_glob_with_a_slash_is_of_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", [row(0, id="a/0")])
    write(tmp_path / "b.parquet", [row(0, id="b/0")])
    assert len(open_manifest(f"{tmp_path}/*/")) == 1
    assert len(open_manifest(f"{tmp_path}/*")) == 2
