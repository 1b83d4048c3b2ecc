"""Promises about every command line of ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from xvlm_data.commands import main
from xvlm_train.commands import main as train

ROOT = Path(__file__).resolve().parents[1]


def raised() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(ROOT.glob("xvlm_*/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_error_names_the_next_step() -> None:
    """Errors that are written down here say what to do; what is handed on has said it before."""
    silent = [
        where
        for where, call in raised()
        if isinstance(call.func, ast.Name)
        and call.func.id in ("UserError", "ManifestError")
        and len(call.args) < 2
        and not call.keywords
        and isinstance(call.args[0], ast.Constant | ast.JoinedStr)
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("group", "word", "meant"),
    [(main, "biuld", "build"), (main, "sub-set", "subset"), (train, "train", "pretrain")],
)
def test_a_misspelt_command_is_told_what_is_like_it(
    group: click.Group, word: str, meant: str
) -> None:
    found = CliRunner().invoke(group, [word])
    assert found.exit_code == 2
    assert f"No such command '{word}'. Did you mean '{meant}'?" in found.stderr
    assert "Did you mean" not in CliRunner().invoke(group, ["qqq"]).stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("xvlm-data ins", ["plain,inspect"]),
        ("xvlm-data serve --allow", ["plain,--allow-host"]),
        ("xvlm-data inspect --ht", ["plain,--html"]),
    ],
)
def test_the_shell_completes(words: str, expected: list[str]) -> None:
    parts = words.split()
    environment = {
        "_XVLM_DATA_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(parts) - 1),
    }
    found = CliRunner().invoke(main, prog_name="xvlm-data", env=environment)
    assert found.output.split() == expected
