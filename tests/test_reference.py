"""The reference is made from docstrings, and has every command, module and setting."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from xvlm_data.commands import main as data
from xvlm_train.commands import main as train
from xvlm_train.config import TrainConfig
from xvlm_train.data.config import DataConfig
from xvlm_train.model.config import ComputeConfig, TextConfig

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return script("reference")


@pytest.fixture(scope="module")
def settings() -> ModuleType:
    return script("settings")


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


def test_every_module_has_its_page(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages that name a few things in ``__all__`` too, and those in packages."""
    pytest.importorskip("pdoc")
    files = [file for name in ("xvlm_data", "xvlm_train") for file in (ROOT / name).rglob("*.py")]
    names = [file.relative_to(ROOT).with_suffix("") for file in files]
    modules = {name.parent if name.name == "__init__" else name for name in names}
    modules = {name for name in modules if not name.name.startswith("_")}
    asked: list[str] = []
    write_modules = reference.write_modules

    def a_few(out: Path, given: list[str]) -> None:
        """Pages take a while; that pdoc writes all it is given, a few modules show."""
        asked.extend(given)
        write_modules(out, [name for name in given if name.startswith("xvlm_train.data.")])

    monkeypatch.setattr(reference, "write_modules", a_few)
    reference.write(tmp_path, ["xvlm-data", "xvlm-train"])
    assert sorted(asked) == sorted(".".join(name.parts) for name in modules)
    index = (tmp_path / "index.html").read_text()
    for name in modules:
        assert f'href="{name.as_posix()}.html"' in index
        if name.parts[:2] == ("xvlm_train", "data") and len(name.parts) > 2:
            assert (tmp_path / f"{name}.html").is_file(), name


def test_a_package_leads_to_its_modules(reference: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("pdoc")
    reference.write_modules(tmp_path, ["xvlm_train"])
    assert 'href="xvlm_train/objectives.html"' in (tmp_path / "xvlm_train.html").read_text()
    assert (tmp_path / "xvlm_train/engine/loop.html").is_file()


def test_the_page_of_settings_is_what_the_code_says(settings: ModuleType) -> None:
    assert settings.PAGE.read_text(encoding="utf-8") == settings.page(), (
        "run python docs/settings.py, and read what changed"
    )


def test_every_setting_is_there_and_means_something(settings: ModuleType) -> None:
    """The keys are those of the printed tree."""
    printed = CliRunner().invoke(train, ["pretrain", "--preset", "base", "--print-config"])
    assert printed.exit_code == 0

    def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for name, inner in tree.items():
            if isinstance(inner, dict) and inner:
                yield from leaves(inner, f"{prefix}{name}.")
            else:
                yield prefix + name

    found = [setting for _, _, section in settings.sections() for setting in section]
    assert sorted(setting.key for setting in found) == sorted(
        leaves(yaml.safe_load(printed.output))
    )
    for setting in found:
        assert len(setting.meaning.split()) > 1, f"{setting.key} is told nowhere"


def test_meanings_are_found_wherever_they_stand(settings: ModuleType) -> None:
    said = settings.what_the_code_says
    assert said(TextConfig)["fusion_layer"] == "Index of the first layer with cross-attention"
    assert said(TrainConfig)["log_every"] == "metrics are written every so many steps"
    assert said(DataConfig)["flip"] == "Chance of a horizontal flip"
    assert said(DataConfig)["max_masks"] == "see `mask_prob`"
    assert "xvlm_train.model.compiled" in said(ComputeConfig)["compile"]
