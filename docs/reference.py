"""Writes the reference from docstrings: ``python docs/reference.py site`` (or ``make docs``).

``site/index.html`` leads to the commands of both command lines, with all their options and
examples, and to every module.
"""

from __future__ import annotations

import html
import importlib
import pkgutil
import sys
from pathlib import Path

import click

COMMAND_LINES = {"xvlm-data": "xvlm_data.commands:main", "xvlm-train": "xvlm_train.commands:main"}
_STYLE = "body{font-family:system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"


def commands_page(names: list[str]) -> str:
    """The help of every command of some command lines, as one page."""
    parts = []
    for name in names:
        module, _, attribute = COMMAND_LINES[name].partition(":")
        group: click.Group = getattr(importlib.import_module(module), attribute)
        parts.append(f"<h1>{name}</h1>{_help(group, name, None)}")
        with click.Context(group, info_name=name) as parent:
            for command_name in group.list_commands(parent):
                command = group.get_command(parent, command_name)
                assert command is not None
                title = f"{name} {command_name}"
                anchor = title.replace(" ", "-")
                parts.append(
                    f'<h2 id="{anchor}">{title}</h2>{_help(command, command_name, parent)}'
                )
    return f"<!doctype html><meta charset=utf-8><title>Commands</title><style>{_STYLE}</style>" + (
        "\n".join(parts)
    )


def _help(command: click.Command, name: str, parent: click.Context | None) -> str:
    with click.Context(command, info_name=name, parent=parent, max_content_width=100) as context:
        return f"<pre>{html.escape(command.get_help(context))}</pre>"


def modules_of(package: str) -> list[str]:
    """The package and all modules in it, however deep; not those whose names begin with ``_``."""
    found = [package]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        if not module.name.rpartition(".")[2].startswith("_"):
            found += modules_of(module.name) if module.ispkg else [module.name]
    return found


def write_modules(out: Path, modules: list[str]) -> None:
    """Write a page a module."""
    import pdoc

    out.mkdir(parents=True, exist_ok=True)
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*modules, output_directory=out)


def write(out: Path, names: list[str]) -> None:
    """Write the reference of some command lines and their packages into a folder."""
    # By name: pdoc alone passes over modules that their package's `__all__` does not name.
    modules = [
        module for name in names for module in modules_of(COMMAND_LINES[name].partition(".")[0])
    ]
    write_modules(out, modules)
    (out / "commands.html").write_text(commands_page(names), encoding="utf-8")
    listed = "".join(
        f'<li><a href="{module.replace(".", "/")}.html">{module}</a>' for module in modules
    )
    (out / "index.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>xvlm</title><style>{_STYLE}</style>"
        f'<h1>xvlm</h1><ul><li><a href="commands.html">Commands</a></ul><ul>{listed}</ul>',
        encoding="utf-8",
    )


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "site"), sys.argv[2:] or [*COMMAND_LINES])
