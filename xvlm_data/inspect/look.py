"""Everything that a page tells of a manifest, as one JSON document without pictures.

The same document is shown by the page of ``xvlm-data inspect --html`` and by ``xvlm-data serve``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvlm_data.inspect.concepts import choose_sample
from xvlm_data.inspect.distributions import Frequencies
from xvlm_data.inspect.duplicates import BYTES_LIMIT, Duplicates, find_duplicates
from xvlm_data.inspect.duplicates import KINDS as DUPLICATES
from xvlm_data.inspect.expected import expected
from xvlm_data.inspect.left_out import left_out
from xvlm_data.inspect.overview import disagreements, mapping, overview
from xvlm_data.inspect.statistics import Statistics, collect
from xvlm_data.inspect.suspicious import KINDS, Suspicious
from xvlm_data.manifest import Manifest
from xvlm_data.schema import GRANULARITIES, IMAGE, OBJECT, REGION
from xvlm_data.verify.compare import SourceReport

Stage = Callable[[str, int | None, str], AbstractContextManager[Callable[[int], None]]]

MAX_ROWS = 400_000
TOP, TAIL = 40, 12
_TEXT = 200
_SHOWN = (
    *("rows", "images", "sources", "splits", "captions", "rows_without_concepts", "concepts"),
    *("attributes", "concepts_per_image", "concepts_of", "words", "box_area", "box_aspect"),
    *("box_centres", "box_sides", "further_columns"),
)
_QUANTITIES = {"images": None, "captions": IMAGE, "regions": REGION, "objects": OBJECT}


@dataclass(frozen=True)
class Look:
    """What was found.

    Attributes:
        document: plain JSON values.
        examples: rows that the document refers to, as something to look at.
    """

    document: dict[str, Any]
    examples: list[int]


def look(
    manifest: Manifest,
    specs: Sequence[str],
    *,
    recipe: Path | None = None,
    max_rows: int = MAX_ROWS,
    stage: Stage,
) -> Look:
    """Look at a manifest.

    Args:
        manifest: opened from ``specs``.
        specs: the manifests, as they were given.
        recipe: whose counts are expected; without, one that lies beside the manifest.
        max_rows: of a larger manifest so many are counted, in evenly spread row groups; 0 for all.
        stage: opens a progress display.

    Raises:
        ManifestError: a file is damaged.
        UserError: the recipe is not one, or knows nothing of the manifest.
    """
    name, reports = expected(specs, recipe)
    sample = choose_sample(manifest, max_rows) if max_rows else None
    counted = len(manifest) if sample is None else sample.rows
    suspicious = Suspicious()
    with stage("counting", counted, "rows") as advance:
        statistics = collect(
            manifest, examples=0, sample=sample, watchers=[suspicious], advance=advance
        )
    with stage("duplicates", counted, "rows") as advance:
        duplicates = find_duplicates(
            manifest,
            sample=sample,
            bytes_limit=BYTES_LIMIT if max_rows else None,
            advance=advance,
        )
    about = overview(manifest)
    about["licence"] = manifest.info.get("licence")
    warnings = [] if sample else disagreements(manifest, statistics)
    warnings += [f"{report.name}: {line}" for report in reports for line in report.warnings]
    build = mapping(about.pop("build"))
    kinds = _suspicious(suspicious, duplicates)
    document = {
        "about": about,
        "counted": {"rows": counted, "of": len(manifest)},
        "recipe": name,
        "expected": [
            {"name": report.name, "lines": [line.to_dict() for line in report.expect]}
            for report in reports
            if len(reports) > 1
        ],
        "figures": _figures(manifest, statistics, reports, counted),
        "warnings": list(dict.fromkeys(warnings)),
        "build": {
            "counts": mapping(build.get("counts")),
            "clipped_boxes": build.get("clipped_boxes"),
            "inputs": _listed(build.get("inputs")),
        },
        "statistics": _statistics(statistics),
        "left_out": left_out(manifest),
        "suspicious": kinds,
    }
    examples = {row for kind in kinds for row in kind["examples"]}
    return Look(document, sorted(examples))


def _figures(
    manifest: Manifest, statistics: Statistics, reports: Sequence[SourceReport], counted: int
) -> list[dict[str, Any]]:
    """How many of each quantity, and what a recipe expects, where it knows the only manifest."""
    found = dict(statistics.granularities.top())
    told = mapping(mapping(manifest.summary).get("concepts"))
    lines = {line.quantity: line.to_dict() for line in reports[0].expect} if reports else {}
    figures = []
    for quantity, granularity in _QUANTITIES.items():
        exact = True
        if granularity is None:
            number, images = len(manifest), None
        else:
            number, images = found.get(granularity, 0), statistics.rows_with[granularity]
            if counted < len(manifest):
                exact = isinstance(told.get(granularity), int)
                share = len(manifest) / counted
                number = told[granularity] if exact else round(number * share)
                images = round(images * share)
        line = lines.get(quantity) if len(reports) == 1 else None
        # What the recipe compares is what manifest.json tells; ours is what was counted.
        figures.append(
            {
                "quantity": quantity,
                "granularity": granularity,
                "number": number,
                "exact": exact,
                "images": images,
                "expected": line,
            }
        )
    return figures


def _listed(value: Any) -> list[str]:
    """``value`` as texts if it is a list: people edit ``manifest.json``."""
    return [str(item) for item in value] if isinstance(value, list) else []


def _statistics(statistics: Statistics) -> dict[str, Any]:
    whole = statistics.to_dict(0)
    texts = {}
    for name in GRANULARITIES:
        frequencies = statistics.texts[name]
        if frequencies.total:
            texts[name] = _texts(frequencies)
    return {name: whole[name] for name in _SHOWN} | {"texts": texts}


def _texts(frequencies: Frequencies) -> dict[str, Any]:
    def listed(pairs: Sequence[tuple[str, int]]) -> list[list[Any]]:
        return [[text[:_TEXT], number] for text, number in pairs]

    return {
        "total": frequencies.total,
        "distinct": frequencies.distinct,
        "exact": frequencies.exact,
        "undercount": frequencies.undercount,
        "once": frequencies.once,
        "top": listed(frequencies.top(TOP)),
        "tail": listed(frequencies.tail(TAIL)),
        "ranks": frequencies.ranks(),
    }


def _suspicious(
    suspicious: Suspicious, duplicates: Mapping[str, Duplicates | None]
) -> list[dict[str, Any]]:
    """Every kind, the empty ones too: that nothing was found is worth knowing."""
    entries: list[dict[str, Any]] = []
    for kind, (title, about) in KINDS.items():
        entries.append(
            {
                "kind": kind,
                "title": title,
                "about": about,
                "unit": "concepts",
                "number": suspicious.concepts[kind],
                "rows": suspicious.rows[kind],
                "examples": suspicious.examples(kind),
            }
        )
    for kind, title in DUPLICATES.items():
        found = duplicates[kind]
        groups = [] if found is None else found.examples
        entries.append(
            {
                "kind": kind,
                "title": title,
                "about": "on several rows"
                if found is not None
                else "not compared: more image bytes than are read for this (--max-rows 0 does)",
                "unit": "values",
                "number": None if found is None else found.groups,
                "rows": None if found is None else found.rows,
                "examples": [row for _, rows in groups[:3] for row in rows[:2]],
                "groups": groups,
            }
        )
    return entries
