"""The terminal report: tables and bars, plain and narrow where there is no terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xvlm_data.inspect.distributions import Frequencies, Histogram
from xvlm_data.inspect.overview import mapping
from xvlm_data.inspect.statistics import Statistics
from xvlm_data.inspect.validate import RULES, Findings
from xvlm_data.schema import GRANULARITIES, IMAGE, OBJECT, REGION

Label = Callable[[float], str]

BAR = 12
_COLOURS = {IMAGE: "green", REGION: "dark_orange", OBJECT: "dodger_blue1"}
BUILD_COLUMNS = ("raw", "kept", "filtered", "rejected")
TEXT_SHOWN = 60
EXAMPLE_CONCEPTS = 8


def print_overview(console: Console, overview: Mapping[str, Any]) -> None:
    """Where the manifest comes from, and what its build left out."""
    _heading(console, f"Manifest {overview['name'] or ''}".strip())
    table = _table(("", "left"), ("", "left"), header=False)
    for key in ("schema_version", "source", "split", "generator", "image_root"):
        if overview[key] is not None:
            table.add_row(key.replace("_", " "), _text(overview[key], 0))
    for key, value in mapping(overview["options"]).items():
        table.add_row(_text(f"option {key}"), _text(value, 0))
    table.add_row("shards", f"{overview['shards']:,}")
    table.add_row("rows", f"{overview['rows']:,}")
    table.add_row("size", _bytes(overview["bytes"]))
    console.print(table)


def print_build(console: Console, build: Mapping[str, Any]) -> None:
    """What the build read, kept and left out, as ``manifest.json`` has it."""
    table = _table(("", "left"), *((name, "right") for name in BUILD_COLUMNS))
    reasons = _table(("", "left"), ("", "left"), ("", "right"), header=False)
    for kind, counts in mapping(build.get("counts")).items():
        counts = mapping(counts)
        left_out = {part: mapping(counts.get(part)) for part in ("filtered", "rejected")}
        table.add_row(
            _text(kind),
            *(_text(counts.get(name)) for name in ("raw", "kept")),
            *(_text(sum(n for n in of.values() if isinstance(n, int))) for of in left_out.values()),
        )
        for part, of in left_out.items():
            for reason, number in of.items():
                reasons.add_row(_text(kind), _text(f"{part}: {reason}"), _text(number))
    if not table.row_count:
        return
    _heading(console, "The build (manifest.json)")
    console.print(table)
    if isinstance(clipped := build.get("clipped_boxes"), int):
        console.print(f"clipped boxes: {clipped:,}")
    if reasons.row_count:
        _heading(console, "Left out by the build")
        console.print(reasons)


def print_statistics(console: Console, statistics: Statistics, *, top: int) -> None:
    """Counts, histograms, the most frequent texts and example rows."""
    _heading(console, "Counts")
    table = _table(("", "left"), ("", "right"), header=False)
    table.add_row("images", f"{statistics.rows:,}")
    table.add_row("  embedded", f"{statistics.embedded:,}")
    table.add_row("  referenced", f"{statistics.referenced:,}")
    if statistics.sizes_unknown:
        table.add_row("  of unknown size", f"{statistics.sizes_unknown:,}")
    for title, frequencies in (("source", statistics.sources), ("split", statistics.splits)):
        for name, number in frequencies.top(top):
            table.add_row(_text(f"{title} {name}"), f"{number:,}")
    table.add_row("images with a caption", f"{statistics.captions:,}")
    table.add_row("images without concepts", f"{statistics.rows_without_concepts:,}")
    table.add_row("concepts", f"{statistics.concepts:,}")
    table.add_row("attributes", f"{statistics.attributes:,}")
    console.print(table)
    _print_granularities(console, statistics)
    _print_further(console, statistics)
    _print_histograms(console, "Concepts per image", {"images": statistics.concepts_per_image})
    _print_histograms(console, "Words per text", statistics.words)
    _print_histograms(console, "Box area, part of the image", statistics.box_area, _percent)
    _print_histograms(console, "Box width : height", statistics.box_aspect, _ratio)
    for name, frequencies in statistics.texts.items():
        _print_texts(console, name, frequencies, top)
    _print_examples(console, statistics.examples)


def print_findings(console: Console, findings: Findings) -> None:
    """Which promises are broken, how often, and where first."""
    _heading(console, "Validation")
    if findings.ok:
        console.print(f"all {findings.rows:,} rows keep the schema's promises")
        return
    for rule in RULES:
        if rule not in findings.counts:
            continue
        console.print(Text(f"{rule}: {findings.counts[rule]:,} x broken: {RULES[rule]}", "red"))
        for offender in findings.first[rule]:
            where = offender.shard.rsplit("/", 1)[-1]
            if offender.row is not None:
                where += f" row {offender.row} ({offender.id})"
            console.print(Text("  " + printable(f"{where}: {offender.detail}")), soft_wrap=True)


def print_warnings(console: Console, warnings: Sequence[str]) -> None:
    """One line each."""
    for line in warnings:
        console.print(Text(printable(f"warning: {line}"), "yellow"), soft_wrap=True)


def printable(text: str) -> str:
    """Text that cannot drive a terminal: control characters are shown as their escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _print_granularities(console: Console, statistics: Statistics) -> None:
    columns = ("concepts", "images", "texts", "words", "whole image")
    table = _table(("granularity", "left"), *((name, "right") for name in columns))
    counted = dict(statistics.granularities.top())
    known = [name for name in GRANULARITIES if name in counted]
    for name in [*known, *(name for name in counted if name not in known)]:
        number = counted[name]
        if name not in known:
            table.add_row(_text(name), f"{number:,}", "", "", "", "")
            continue
        texts, words = statistics.texts[name], statistics.words[name]
        whole = statistics.whole_image_boxes.get(name)
        table.add_row(
            name,
            f"{number:,}",
            f"{statistics.rows_with[name]:,}",
            f"{'' if texts.exact else '>= '}{texts.distinct:,}",
            "" if words.mean is None else f"{words.mean:.1f}",
            "" if whole is None else f"{whole:,}",
        )
    if table.row_count:
        _heading(console, "Granularities (distinct texts, mean words, whole-image boxes)")
        console.print(table)


def _print_further(console: Console, statistics: Statistics) -> None:
    if not statistics.further:
        return
    _heading(console, "Further columns")
    table = _table(("column", "left"), ("elements", "right"), ("images", "right"), ("", "left"))
    for name, column in statistics.further.items():
        table.add_row(_text(name), f"{column.elements:,}", f"{column.rows:,}", _text(column.kind))
    console.print(table)


def _print_histograms(
    console: Console,
    title: str,
    histograms: Mapping[str, Histogram],
    label: Label | None = None,
) -> None:
    """Histograms of equal bins side by side, empty bins at both ends left out."""
    filled = {name: h for name, h in histograms.items() if h.count}
    if not filled:
        return
    label = label or _number
    edges = next(iter(filled.values())).edges
    used = [i for i in range(len(edges) + 1) if any(h.counts[i] for h in filled.values())]
    table = _table(("", "right"))
    block = "\N{FULL BLOCK}" if "utf" in console.encoding.lower() else "#"
    for name, histogram in filled.items():
        about = f"{name} (mean {label(histogram.mean or 0)}, max {label(histogram.high or 0)})"
        table.add_column(about, overflow="fold")
    for i in range(used[0], used[-1] + 1):
        cells = []
        for name, histogram in filled.items():
            share = histogram.counts[i] / histogram.count
            bar = block * round(BAR * histogram.counts[i] / histogram.counts.max())
            cells.append(Text(f"{share:6.1%} ").append(bar, _COLOURS.get(name, "cyan")))
        table.add_row(_bin_label(edges, i, label), *cells)
    _heading(console, title)
    console.print(table)
    for name, histogram in histograms.items():
        if histogram.unusable:
            console.print(f"{name}: {histogram.unusable:,} unusable values left out")


def _bin_label(edges: tuple[float, ...], i: int, label: Label) -> str:
    if i == 0:
        return "0" if label is _number else f"< {label(edges[0])}"
    if i == len(edges):
        return f">= {label(edges[-1])}"
    if label is _number:
        last = edges[i] - 1
        return (
            label(edges[i - 1]) if last == edges[i - 1] else f"{label(edges[i - 1])}-{label(last)}"
        )
    return f"{label(edges[i - 1])} - {label(edges[i])}"


def _print_texts(console: Console, name: str, frequencies: Frequencies, top: int) -> None:
    rows = frequencies.top(top)
    if not rows:
        return
    _heading(console, f"Most frequent texts: {name}")
    table = _table(("", "right"), ("", "left"), header=False)
    for text, count in rows:
        table.add_row(f"{count:,}", _text(text))
    console.print(table)
    if not frequencies.exact:
        console.print(f"approximate: counts may be low by up to {frequencies.undercount:,}")


def _print_examples(console: Console, examples: Sequence[Mapping[str, Any]]) -> None:
    if not examples:
        return
    _heading(console, "Example rows")
    for row in examples:
        known = row["width"] or row["height"]
        size = f"{row['width']} x {row['height']}" if known else "size unknown"
        console.print(_text(f"{row['id']}  {size}", 0, "bold"))
        console.print(_text(f"  caption: {row['caption']}", 0))
        concepts = row["concepts"] or []
        for concept in concepts[:EXAMPLE_CONCEPTS]:
            concept = concept or {"box": None, "text": None, "granularity": None}
            box = " ".join("-" if v is None else f"{v:.3f}" for v in concept["box"] or ())
            attributes = concept.get("attributes") or []
            notes = f"  [{', '.join(str(a) for a in attributes)}]" if attributes else ""
            console.print(_text(f"  {concept['granularity']} ({box}) {concept['text']}{notes}", 0))
        if len(concepts) > EXAMPLE_CONCEPTS:
            console.print(f"  and {len(concepts) - EXAMPLE_CONCEPTS} more concepts")


def _heading(console: Console, title: str) -> None:
    console.print()
    console.print(_text(title, 0, "bold cyan"))


def _table(*columns: tuple[str, Any], header: bool = True) -> Table:
    table = Table(box=None, show_header=header, pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in columns:
        table.add_column(name, justify=justify)
    return table


def _text(value: Any, length: int = TEXT_SHOWN, style: str = "") -> Text:
    """Any value as text for people: one line, shortened to ``length`` unless that is 0."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:,}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = printable(text)
    if length and len(text) > length:
        text = text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return Text(text, style)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _ratio(value: float) -> str:
    return f"1:{1 / value:.3g}" if value < 1 else f"{value:.3g}:1"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
