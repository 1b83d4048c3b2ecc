"""What README and documents tell one to type exists: commands, options, extras, files linked to.

Their meaning is tested elsewhere: tests/train/test_operations.py and tests/test_tour.py run whole
documents, tests/data/test_plugin.py the guide to sources.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from xvlm_data.commands import main as data
from xvlm_train.commands import main as train

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GROUPS = {"xvlm-data": data, "xvlm-train": train}
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: In text: from the program's name to the end of the code.
INLINE = re.compile(r"`((?:xvlm-data|xvlm-train) [a-z]+[^`]*)`")


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def commands_of(text: str) -> list[str]:
    """Commands of the blocks, a line each, with everything that is not ours left out."""
    found = []
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"^.*?-m xvlm_(data|train) ", r"xvlm-\1 ", line.strip())
            line = line.removeprefix("exec ")
            if line.startswith(tuple(GROUPS)):
                found.append(line.removesuffix("'"))
    return found


def command_of(program: str, name: str) -> click.Command:
    command = GROUPS[program].get_command(click.Context(GROUPS[program]), name)
    assert command is not None, f"no command {program} {name}"
    return command


def parse(line: str) -> None:
    """Let click read a command line, and do nothing.

    Raises:
        click.UsageError: an option that is not there, or lacks; a value that it cannot have.
    """
    program, name, *arguments = shlex.split(line, comments=True)
    command_of(program, name).make_context(f"{program} {name}", arguments)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_blocks_are_complete(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether files are there is for who types them.
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: value)
    for line in commands_of(text_of(document)):
        try:
            parse(line)
        except click.UsageError as error:
            pytest.fail(f"{document.name}: {line}: {error.format_message()}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_that_the_text_names_exist(document: Path) -> None:
    for line in INLINE.findall(text_of(document)):
        program, name, *words = line.replace("\n", " ").split()
        parameters = command_of(program, name).params
        known = {option for parameter in parameters for option in parameter.opts} | {"--help"}
        used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= known, f"{document.name}: {line}: {used - known}"


def test_a_command_that_does_not_exist_would_be_told() -> None:
    """The check itself: what users met in these documents, and what they might."""
    lines = commands_of("```sh\nx\n  exec xvlm-data build --sorce coco'\n```\n")
    assert lines == ["xvlm-data build --sorce coco"]
    for wrong in (*lines, "xvlm-data export manifests/vg --to coco", "xvlm-data head -n 0 m"):
        with pytest.raises(click.UsageError):
            parse(wrong)
    assert sum(len(commands_of(text_of(document))) for document in DOCUMENTS) > 50


def test_what_an_export_is_written_to_is_new() -> None:
    """Followed one after the other, no command of the documents meets the folder of another."""
    places = []
    for line in (line for document in DOCUMENTS for line in commands_of(text_of(document))):
        out = re.search(r"--out (\S+)", line)
        if out and line.startswith(("xvlm-data export", "xvlm-data import", "xvlm-data filter")):
            places.append(out[1])
    assert len(places) > 10
    assert len(set(places)) == len(places), sorted(places)
    assert not set(places) & {"manifests/coco", "manifests/vg"}


def test_what_the_readme_trains_on_it_has_built() -> None:
    text = text_of(ROOT / "README.md")
    built, trained = text.split("## Pre-training")
    built = built.replace("$source", "sbu cc3m").replace("${source}_urls", "sbu_urls cc3m_urls")
    for name in set(re.findall(r"manifest manifests/(\w+)", trained)):
        assert re.search(rf"--source {name}\b|--out manifests/.*\b{name}\b", built), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_installed_is_this_checkout(document: Path) -> None:
    """The package is not published; its extras are those of pyproject.toml."""
    text = text_of(document)
    assert not re.search(r"pip\s+install\s+'?xvlm", text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"pip\s+install\s+-e\s+'\.\[([\w,]+)\]'", text):
        assert set(extras.split(",")) <= set(project["optional-dependencies"]), extras


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if "://" not in target and (path := target.partition("#")[0]):
            assert (document.parent / path).exists(), f"{document.name}: {target}"
