"""Options that several of the verbs have."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click

from xvlm_data.manifest import Manifest, open_manifest

#: A command's function.
Command = Callable[..., Any]

MANIFEST_HELP = "MANIFEST is a .parquet file, a folder with manifest.json, a glob, or a URL."


def manifests_argument(command: Command) -> Command:
    """One manifest or several, as one."""
    return click.argument("manifests", metavar="MANIFEST...", nargs=-1, required=True)(command)


def out_option(command: Command) -> Command:
    """Where a manifest is written, and that it may replace what is there."""
    command = click.option("--force", is_flag=True, help="Replace what lies in --out.")(command)
    return click.option("--out", required=True, metavar="DIR", help="Folder of the new manifest.")(
        command
    )


def json_option(command: Command) -> Command:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def open_all(manifests: Sequence[str]) -> Manifest:
    """What was named, as one manifest."""
    return open_manifest(manifests[0] if len(manifests) == 1 else list(manifests))


def report(summary: dict[str, Any], out: str, *, as_json: bool, note: str | None = None) -> None:
    """Say what was written; a note on the call, which says nothing of the manifest, beside it."""
    if note:
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
        return
    concepts = ", ".join(f"{n:,} {name}" for name, n in summary["concepts"].items() if n)
    click.echo(f"{out}: {summary['rows']:,} images ({concepts or 'no concepts'})")
    for kind, counts in summary["counts"].items():
        for reason, number in counts["filtered"].items():
            click.echo(f"  left out by {reason}: {number:,} {kind}")
    for note in summary.get("notes", ()):
        click.echo(f"note: {note}")
