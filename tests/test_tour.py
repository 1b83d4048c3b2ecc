"""The notebook of the documentation runs from top to bottom on a fresh folder."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOUR = Path(__file__).parents[1] / "docs/tour.ipynb"


def cells() -> list[dict[str, Any]]:
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """What Jupyter does with a cell: commands after ``!``, and the value of the last line."""
    if source.startswith("!"):
        for line in source.replace("\\\n", " ").splitlines():
            program, *args = shlex.split(line.removeprefix("!"))
            assert program == "xvlm-data"
            command = [sys.executable, "-m", "xvlm_data", *args]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
            assert done.returncode == 0, done.stderr
        return done.stdout
    tree = ast.parse(source)
    last = tree.body[-1] if isinstance(tree.body[-1], ast.Expr) else None
    body = tree.body[:-1] if last else tree.body
    exec(compile(ast.Module(body, []), str(TOUR), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(TOUR), "eval"), names) if last else None


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(TOUR.parents[1]))
    names: dict[str, Any] = {"__name__": "__main__"}
    values = [run_cell("".join(cell["source"]), names) for cell in cells()]
    assert len(values) > 12
    assert len(names["vg"]) > 30
    assert (tmp_path / "manifests/circles/manifest.json").is_file()
    assert len(names["again"]) == len(names["vg"])
