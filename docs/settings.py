"""Writes docs/settings.md from the code: ``python docs/settings.py`` (a test compares the two).

Keys, types and choices are those of the dataclasses of the configuration, defaults those of the
presets. What a setting means stands in the code beside it: in a docstring below it, a comment on
its line, or a ``#:`` comment above it.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import sys
import textwrap
import tokenize
import types
import typing
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from xvlm_train.config import PRESETS, PretrainConfig, config_tree, differences, load_config

PAGE = Path(__file__).with_name("settings.md")

INTRODUCTION = """\
# Every setting of a training run

`python docs/settings.py` writes this page from the code. Do not edit it.

```sh
xvlm-train pretrain --preset base --print-config
xvlm-train pretrain --preset base --config mine.yaml --set optim.lr=2e-4 --print-config
```

Settings come from a preset (`--preset`; `tiny` where none is given), then from YAML files
(`--config`, in the form that `--print-config` prints), then one by one (`--set KEY=VALUE`, the
value in YAML: `null`, `[0.9, 0.98]`, `{depth: 2}`). Later ones win. Unknown keys, wrong types and
values outside their range are told in one line. `xvlm-train plan` and `bench` take the same
options. A run keeps its tree in `config.yaml`.

Defaults are those of `base`, the paper's model and recipe. What `small` and `tiny` have instead is
[at the end](#presets).
"""

#: Words that begin small also where a sentence begins.
_NAMES = ("auto", "timm", "torch")


class Setting(typing.NamedTuple):
    """A key of the tree, and what the code says of it."""

    key: str
    takes: str
    meaning: str


def sections() -> list[tuple[str, str, list[Setting]]]:
    """Name, first line of the docstring and settings of every section, in the tree's order."""
    return list(_sections(PretrainConfig, ""))


def _sections(kind: type, prefix: str) -> typing.Iterator[tuple[str, str, list[Setting]]]:
    hints, said = typing.get_type_hints(kind), what_the_code_says(kind)
    settings = []
    inner: list[tuple[str, str, list[Setting]]] = []
    for name in said:
        key, hint = f"{prefix}{name}", hints[name]
        if is_dataclass(hint):
            inner += _sections(typing.cast("type", hint), f"{key}.")
        else:
            meaning = said[name]
            if not meaning.startswith(_NAMES):
                meaning = meaning[:1].upper() + meaning[1:]
            settings.append(Setting(key, takes(hint), meaning))
    if settings:
        yield (
            prefix.removesuffix("."),
            _one_line(inspect.getdoc(kind) or "", kind.__module__),
            settings,
        )
    yield from inner


@cache
def what_the_code_says(kind: type) -> dict[str, str]:
    """What the code says of each field of a dataclass, "" where nothing."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("#: ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    last, group = 0, ""
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        name, first, end = node.target.id, node.lineno, node.end_lineno or node.lineno
        above: list[str] = []
        for number in range(first - 1, last, -1):
            if not lines[number - 1].lstrip().startswith("#:"):
                break
            above.insert(0, comments[number])
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = str(after.value.value)
        elif end in comments:
            text = comments[end]
        elif above:
            text, group = " ".join(above), name
        elif last == first - 1:  # one comment is for all fields right below it
            text = f"see `{group}`" if group else ""
        else:
            text = group = ""
        found[name] = _one_line(text, kind.__module__)
        last = end
    return found


def _one_line(text: str, module: str) -> str:
    """The first paragraph of a docstring or a comment, as Markdown."""
    text = " ".join(text.strip().split("\n\n")[0].split())
    package = module.rpartition(".")[0]
    text = re.sub(r":[a-z]+:`\.", f"`{package}.", text)
    text = re.sub(r":[a-z]+:`", "`", text)
    return text.replace("``", "`").removesuffix(".")


def takes(hint: Any) -> str:
    """What a setting of this type can be, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(takes(part) for part in args)
    if origin is tuple:
        return f"{len(args)} numbers"
    if origin is list:
        return "list of texts"
    if origin is dict:
        return "mapping"
    words = {bool: "`true`, `false`", int: "integer", float: "number", str: "text"}
    return {**words, type(None): "`null`"}[hint]


def value(found: Any) -> str:
    """A value as ``--set`` takes it."""
    if found is None or isinstance(found, bool):
        return {None: "null", True: "true", False: "false"}[found]
    if isinstance(found, list | tuple):
        return f"[{', '.join(value(item) for item in found)}]"
    if isinstance(found, dict):
        return "{" + ", ".join(f"{key}: {value(item)}" for key, item in found.items()) + "}"
    return repr(found).removesuffix(".0") if isinstance(found, float) else str(found)


def _look_up(tree: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    """The whole page."""
    trees = {preset: config_tree(load_config(preset)) for preset in PRESETS}
    base = load_config("base")
    out = [INTRODUCTION]
    keys = []
    for name, about, settings in sections():
        out += [f"## {name}\n", f"{about}.\n", "| key | default | takes | |", "|---|---|---|---|"]
        for key, kind, meaning in settings:
            keys.append(key)
            out.append(_row(f"`{key}`", f"`{value(_look_up(trees['base'], key))}`", kind, meaning))
        out.append("")
    out += ["## Presets\n", "What the presets do not agree in.\n"]
    out += [_row("key", *(f"`{preset}`" for preset in reversed(PRESETS))), "|---" * 4 + "|"]
    for key in keys:
        found = [value(_look_up(trees[preset], key)) for preset in reversed(PRESETS)]
        if len(set(found)) > 1:
            out.append(_row(f"`{key}`", *(f"`{text}`" for text in found)))
    out += ["", "## `--parity official`\n", "What it sets, to follow the released code.\n"]
    out += ["| key | default | official |", "|---|---|---|"]
    official = config_tree(load_config("base", official=True))
    for key in differences(base, load_config("base", official=True)):
        ours, theirs = value(_look_up(trees["base"], key)), value(_look_up(official, key))
        out.append(_row(f"`{key}`", f"`{ours}`", f"`{theirs}`"))
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE).write_text(page(), encoding="utf-8")
