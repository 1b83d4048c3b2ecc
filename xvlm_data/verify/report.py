"""The paper's table beside ours, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xvlm_data.console import plain_table, print_whole
from xvlm_data.inspect.report import printable
from xvlm_data.rules import FILTERS
from xvlm_data.verify.compare import Line, Report, SourceReport

_STYLE = {"ok": "green", "outside": "red", "missing": "red", "incomplete": "yellow"}


def print_report(console: Console, report: Report) -> None:
    """Expected beside found, source by source; the raw releases; what was left out; the sums."""
    scale = f", expected counts times {report.scale:g}" if report.scale != 1 else ""
    console.print(Text(printable(f"Recipe {report.recipe}{scale}"), "bold"))
    if report.about:
        console.print(Text(printable(report.about)))
    console.print()
    table = _lines_table("in the manifests", paper=True)
    for source in report.sources:
        _add_lines(table, source.name, [x for x in source.expect if _worth_showing(x)])
    _add_lines(table, "all", report.totals)
    print_whole(console, table)
    _print_releases(console, report.sources)
    _print_left_out(console, report.sources)
    _print_notes(console, report.sources)
    missing = [source for source in report.sources if not source.built]
    if missing:
        console.print("\nnot built yet:")
        for source in missing:
            console.print(Text(f"  {source.command}"), soft_wrap=True)
    verdict = "everything is within its tolerance" if report.ok else "not as the recipe expects"
    console.print(Text(f"\n{verdict}", "green" if report.ok else "red"))


def _print_releases(console: Console, sources: Sequence[SourceReport]) -> None:
    table = _lines_table("in the raw releases, before any rule", paper=False)
    for source in sources:
        _add_lines(table, source.name, source.release, paper=False)
    if table.row_count:
        console.print()
        print_whole(console, table)


def _print_left_out(console: Console, sources: Sequence[SourceReport]) -> None:
    table = plain_table(
        "between the two: what was left out",
        ("source", "left"),
        ("", "left"),
        ("why", "left"),
        ("records", "right"),
        ("of raw", "right"),
        ("turned off by", "left"),
    )
    for source in sources:
        raw = {line.quantity: line.found for line in source.release}
        for quantity, reasons in source.left_out.items():
            for reason, number in sorted(reasons.items(), key=lambda item: -item[1]):
                total = raw.get(quantity)
                table.add_row(
                    Text(printable(source.name)),
                    quantity,
                    Text(printable(reason)),
                    f"{number:,}",
                    f"{number / total:.1%}" if total else "",
                    FILTERS.get(reason, ""),
                )
    if table.row_count:
        console.print()
        print_whole(console, table)


def _print_notes(console: Console, sources: Sequence[SourceReport]) -> None:
    console.print()
    for source in sources:
        for line in source.warnings:
            console.print(
                Text(printable(f"warning: {source.name}: {line}"), "yellow"), soft_wrap=True
            )
    for source in sources:
        if source.note and any(x.status == "outside" for x in (*source.expect, *source.release)):
            console.print(Text(printable(f"note: {source.name}: {source.note}")), soft_wrap=True)


def _worth_showing(line: Line) -> bool:
    return line.status != "unchecked" or bool(line.found)


def _lines_table(title: str, *, paper: bool) -> Table:
    numbers = (*(["paper"] if paper else []), "official", "found", "difference", "allowed")
    return plain_table(
        title,
        ("source", "left"),
        ("", "left"),
        *((name, "right") for name in numbers),
        ("", "left"),
    )


def _add_lines(table: Table, name: str, lines: Sequence[Line], *, paper: bool = True) -> None:
    for line in lines:
        difference = line.difference
        table.add_row(
            Text(printable(name)),
            line.quantity,
            *([_number(line.paper)] if paper else []),
            _number(line.official),
            _number(line.found),
            "" if difference is None else f"{difference:+.1%}",
            "" if line.expected is None else f"{line.allowed:.0%}",
            Text("" if line.status == "unchecked" else line.status, _STYLE.get(line.status, "")),
        )


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
