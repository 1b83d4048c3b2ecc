"""``xvlm-data head``: the first rows, on the terminal or as a manifest."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import click
import numpy as np

from xvlm_data.verbs.options import json_option, manifests_argument, open_all, report

_CONCEPTS_SHOWN = 8


@click.command("head")
@manifests_argument
@click.option("-n", "--rows", type=click.IntRange(1), default=5, show_default=True, help="Rows.")
@click.option("--out", metavar="DIR", help="Write them as a manifest instead.")
@click.option("--force", is_flag=True, help="Replace what lies in --out.")
@json_option
def head_command(
    manifests: tuple[str, ...], rows: int, out: str | None, force: bool, as_json: bool
) -> None:
    """Show the first rows, or write them as a manifest of their own.

    With --json each row is one line; of an embedded image, its number of bytes is told.

    \b
    Examples:
      xvlm-data head manifests/vg
      xvlm-data head manifests/vg -n 100 --json | jq .caption
      xvlm-data head manifests/vg -n 1000 --out manifests/vg_small
    """
    manifest = open_all(manifests)
    rows = min(rows, len(manifest))
    if out is not None:
        from xvlm_data.verbs.choose import derive_rows
        from xvlm_data.verbs.derive import Step

        step = Step("head", {"rows": rows}, [manifest])
        report(derive_rows(manifest, np.arange(rows), out, step, force=force), out, as_json=as_json)
        return
    for row in islice(manifest, rows):
        if as_json:
            click.echo(json.dumps(_without_bytes(row), ensure_ascii=False))
        else:
            _print(row)


def _without_bytes(row: dict[str, Any]) -> dict[str, Any]:
    image = row["image"] or {}
    data = image.get("bytes")
    return row | {"image": image | {"bytes": None if data is None else len(data)}}


def _print(row: dict[str, Any]) -> None:
    from rich.text import Text

    from xvlm_data.console import stdout
    from xvlm_data.inspect.report import printable

    size = f"{row['width']} x {row['height']}" if row["width"] else "size unknown"
    title = f"{_told(row['id'])}  {_told(row['split'])}  {size}"
    stdout.print(Text(printable(title), "bold"), soft_wrap=True)
    concepts = row["concepts"] or []
    for concept in concepts[:_CONCEPTS_SHOWN]:
        stdout.print(Text(printable(f"  {_line(concept)}")), soft_wrap=True)
    if len(concepts) > _CONCEPTS_SHOWN:
        stdout.print(f"  and {len(concepts) - _CONCEPTS_SHOWN} more concepts")


def _line(concept: dict[str, Any] | None) -> str:
    if concept is None:
        return _told(None)
    box = " ".join(_told(value, ".3f") for value in concept["box"] or ())
    attributes = ", ".join(map(_told, concept["attributes"] or ()))
    line = f"{_told(concept['granularity']):6} ({box}) {_told(concept['text'])}"
    return f"{line}  [{attributes}]" if attributes else line


def _told(value: Any, form: str = "") -> str:
    """Rows of other writers may lack anything; to be looked at, they need not be right."""
    return "null" if value is None else format(value, form)
