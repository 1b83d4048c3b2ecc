"""The reference is made from docstrings, and has every command and every public name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import click
import pytest

from xvlm_data.commands import main as data
from xvlm_train.commands import main as train

SCRIPT = Path(__file__).parents[1] / "docs/reference.py"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_is_there(reference: ModuleType) -> None:
    page = reference.commands_page(["xvlm-data", "xvlm-train"])
    for name, group in (("xvlm-data", data), ("xvlm-train", train)):
        for command in group.list_commands(click.Context(group)):
            _, _, rest = page.partition(f'<h2 id="{name}-{command}">')
            section, _, _ = rest.partition("<h2")
            assert f"Usage: {name} {command}" in section
            assert section.rstrip().endswith("</pre>")
            if name == "xvlm-data":
                assert "Examples:" in section, f"{name} {command} has no examples"


def test_modules_are_documented(reference: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("pdoc")
    reference.write_modules(tmp_path, ["xvlm_data.rows", "xvlm_data.schema"])
    page = (tmp_path / "xvlm_data/rows.html").read_text()
    assert "All rows of a manifest, or a slice of them." in page
    assert "streaming" in page
