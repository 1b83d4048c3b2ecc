"""``xvlm-data merge``: several manifests as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import click
import numpy as np

from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.storage import AnyPath
from xvlm_data.verbs.choose import Advance, write_rows
from xvlm_data.verbs.derive import Derivation, Step
from xvlm_data.verbs.identity import repeated_rows
from xvlm_data.verbs.options import json_option, manifests_argument, out_option, report

#: What becomes of an image that two manifests have.
OnRepeat = Literal["refuse", "first"]


def merge(
    manifests: Sequence[Manifest],
    out: str | AnyPath,
    *,
    on_repeat: OnRepeat = "refuse",
    force: bool = False,
    advance: Advance = lambda rows: None,
) -> dict[str, Any]:
    """All rows of some manifests, one after the other; returns the new ``manifest.json``.

    Files keep the footers of what they come from, so that each row's options, image root and
    licence stay known.

    Args:
        manifests: opened.
        out: folder of the new one.
        on_repeat: an id that comes again is refused, or its first row stays.
        force: replace what lies in ``out``.
        advance: told the rows of each row group.

    Raises:
        UserError: an id comes again, or columns of one name have different types.
    """
    repeated, examples = repeated_rows(manifests)
    if len(repeated) and on_repeat == "refuse":
        id_, here, there = examples[0]
        names = [str(manifests[number].info.get("name")) for number in (here, there)]
        raise UserError(
            f"{len(repeated):,} images come again, first {id_} (in {names[0]} and {names[1]})",
            "--on-repeat first keeps the row that comes first",
        )
    step = Step("merge", {"on_repeat": on_repeat}, manifests, reason="repeated")
    with Derivation(out, step, force=force) as derivation:
        first = 0
        for manifest in manifests:
            keep = np.ones(len(manifest), bool)
            mine = (repeated >= first) & (repeated < first + len(manifest))
            keep[repeated[mine] - first] = False
            write_rows(manifest, np.flatnonzero(keep), derivation, advance)
            first += len(manifest)
        summary = derivation.summary
    return summary()


@click.command("merge")
@manifests_argument
@click.option(
    "--on-repeat",
    type=click.Choice(["refuse", "first"]),
    default="refuse",
    show_default=True,
    help="What to do with an id that comes again.",
)
@out_option
@json_option
def merge_command(
    manifests: tuple[str, ...], on_repeat: OnRepeat, out: str, force: bool, as_json: bool
) -> None:
    """Write several manifests as one.

    Rows stay in the order of the manifests. Each file keeps the footer of the manifest that it
    comes from; manifest.json tells all sources, licences and citations.

    \b
    Examples:
      xvlm-data merge manifests/coco manifests/vg --out manifests/coco_vg
      xvlm-data merge manifests/monday manifests/tuesday --on-repeat first --out manifests/all
    """
    from xvlm_data.console import Bars

    opened = [open_manifest(spec) for spec in manifests]
    rows = sum(len(manifest) for manifest in opened)
    with Bars(quiet=as_json).stage("merging", rows, "rows") as advance:
        summary = merge(opened, out, on_repeat=on_repeat, force=force, advance=advance)
    report(summary, out, as_json=as_json)
