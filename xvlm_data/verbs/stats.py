"""``xvlm-data stats``: manifests side by side, as a training mix is put together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from xvlm_data.inspect.overview import overview
from xvlm_data.inspect.statistics import collect
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.schema import GRANULARITIES
from xvlm_data.verbs.choose import Advance
from xvlm_data.verbs.options import json_option, manifests_argument


def stats(manifest: Manifest, advance: Advance = lambda rows: None) -> dict[str, Any]:
    """The numbers that say how manifests compare: sizes, concepts, texts, boxes.

    Raises:
        ManifestError: a file is damaged.
    """
    found = collect(manifest, examples=0, advance=advance)
    counted = dict(found.granularities.top())
    about = overview(manifest)
    return {
        "name": about["name"],
        "images": found.rows,
        "embedded": found.embedded,
        "bytes": about["bytes"],
        "captioned": found.captions,
        "without_concepts": found.rows_without_concepts,
        "concepts": {name: counted.get(name, 0) for name in GRANULARITIES},
        "distinct_texts": {name: found.texts[name].distinct for name in GRANULARITIES},
        "words_per_text": {name: found.words[name].mean for name in GRANULARITIES},
        "box_area": {
            name: found.box_area[name].mean for name in GRANULARITIES if name in found.box_area
        },
        "concepts_per_image": found.concepts_per_image.mean,
        "licence": manifest.info.get("licence"),
    }


@click.command("stats")
@manifests_argument
@json_option
def stats_command(manifests: tuple[str, ...], as_json: bool) -> None:
    """Count several manifests side by side; the last line is all of them together.

    `xvlm-data inspect` shows one manifest in full, with distributions and examples.

    \b
    Examples:
      xvlm-data stats manifests/*/
      xvlm-data stats manifests/coco manifests/vg --json
    """
    from xvlm_data.console import Bars

    opened = [open_manifest(spec) for spec in manifests]
    bars = Bars(quiet=as_json)
    with bars.stage("counting", sum(map(len, opened)), "rows") as advance:
        found = [stats(manifest, advance) for manifest in opened]
    if as_json:
        named = [{"manifest": spec, **one} for spec, one in zip(manifests, found, strict=True)]
        click.echo(json.dumps(named, ensure_ascii=False))
    else:
        _print(manifests, found)


def _print(specs: Sequence[str], found: Sequence[dict[str, Any]]) -> None:
    from rich.text import Text

    from xvlm_data.console import plain_table, print_whole, stdout
    from xvlm_data.inspect.report import printable

    columns = ("images", "MB", "captions", "regions", "objects", "words", "texts", "an image")
    table = plain_table("", ("manifest", "left"), *((name, "right") for name in columns))
    for spec, one in zip(specs, found, strict=True):
        concepts, words = one["concepts"], one["words_per_text"]
        total = sum(concepts.values())
        mean = sum((words[name] or 0) * concepts[name] for name in concepts) / max(total, 1)
        table.add_row(
            Text(printable(spec)),
            f"{one['images']:,}",
            f"{one['bytes'] / 1e6:,.0f}",
            *(f"{concepts[name]:,}" for name in GRANULARITIES),
            f"{mean:.1f}",
            f"{sum(one['distinct_texts'].values()):,}",
            f"{total / max(one['images'], 1):.1f}",
        )
    if len(found) > 1:
        table.add_section()
        images = sum(one["images"] for one in found)
        sums = [sum(one["concepts"][name] for one in found) for name in GRANULARITIES]
        table.add_row(
            "all",
            f"{images:,}",
            f"{sum(one['bytes'] for one in found) / 1e6:,.0f}",
            *(f"{number:,}" for number in sums),
            "",
            "",
            f"{sum(sums) / max(images, 1):.1f}",
        )
    print_whole(stdout, table)
