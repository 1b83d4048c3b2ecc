"""What a search found, as a file and for a terminal."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from xvlm_data.console import plain_table, print_whole
from xvlm_data.errors import UserError
from xvlm_data.inspect.report import printable
from xvlm_data.leaks.search import EVIDENCE, Finding, LeakReport, Sink

_SCHEMA = pa.schema(
    [
        (field.name, pa.int64() if field.name in ("row", "distance") else pa.string())
        for field in fields(Finding)
    ]
)


class _Writer(Protocol):
    def write(self, findings: Sequence[Finding]) -> None: ...

    def close(self) -> None: ...


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, _SCHEMA, compression="zstd")

    def write(self, findings: Sequence[Finding]) -> None:
        rows = [asdict(finding) for finding in findings]
        self._writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))

    def close(self) -> None:
        self._writer.close()


class _Csv:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(_SCHEMA.names)

    def write(self, findings: Sequence[Finding]) -> None:
        self._writer.writerows(asdict(finding).values() for finding in findings)

    def close(self) -> None:
        self._file.close()


class _Json:
    """An array, written as it grows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._separator = "[\n"

    def write(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            text = json.dumps(asdict(finding), ensure_ascii=False)
            self._file.write(f"{self._separator}{text}")
            self._separator = ",\n"

    def close(self) -> None:
        self._file.write("[]\n" if self._separator == "[\n" else "\n]\n")
        self._file.close()


_WRITERS: dict[str, Any] = {".parquet": _Parquet, ".csv": _Csv, ".json": _Json}


def check_report_path(path: Path | None) -> None:
    """Raises UserError unless a report can be written there; tells before the search, not after."""
    if path is None:
        return
    if path.suffix.lower() not in _WRITERS:
        raise UserError(f"{path}: no known kind of report", f"end in {', '.join(_WRITERS)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"{path}: cannot be written", "give a file in a folder that exists")


@contextmanager
def report_file(path: Path | None) -> Iterator[Sink]:
    """Takes findings as they come; the file appears when all went well.

    Raises:
        UserError: see :func:`check_report_path`.
    """
    check_report_path(path)
    if path is None:
        yield lambda findings: None
        return
    part = path.with_name(f".{path.name}.part")
    try:
        writer: _Writer = _WRITERS[path.suffix.lower()](part)
        try:
            yield lambda findings: writer.write(findings) if findings else None
        finally:
            writer.close()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def print_report(console: Console, report: LeakReport) -> None:
    """What was held against what, what was found, and what could not be told."""
    _print_against(console, report)
    _print_comparisons(console, report)
    _print_gaps(console, report)
    for finding in report.examples:
        far = "" if finding.distance is None else f", {finding.distance} bits apart"
        line = f"leak: {finding.manifest}: {finding.id} is {finding.evaluation} of "
        line += f"{finding.against} (by {finding.evidence}{far})"
        console.print(Text(printable(line), "red"), soft_wrap=True)
    if report.pairs > len(report.examples):
        console.print(f"… and {report.pairs - len(report.examples):,} more")
    if report.pairs:
        console.print(Text(f"\n{report.pairs:,} leaks", "red"))
    elif report.complete:
        console.print(Text("\nno leak: every row was compared with everything", "green"))
    else:
        console.print(Text("\nno leak found; see above for what could not be compared", "yellow"))


def _print_against(console: Console, report: LeakReport) -> None:
    table = plain_table("held against", ("", "left"), ("kind", "left"), ("images", "right"))
    for other in report.against:
        table.add_row(Text(printable(other["name"])), other["kind"], f"{other['images']:,}")
    print_whole(console, table)
    kinds = ", ".join(kind.replace("_", " ") for kind in report.evidence)
    console.print(f"compared by {kinds}")


def _print_comparisons(console: Console, report: LeakReport) -> None:
    shown = [e for e in EVIDENCE if any(c.pairs[e] for c in report.comparisons)]
    numbers = ("rows", "by ids", "by content", "not compared", "leaks", *shown)
    table = plain_table(
        "rows compared, and pairs found",
        ("manifest", "left"),
        ("against", "left"),
        *((name.replace("_", " "), "right") for name in numbers),
    )
    for c in report.comparisons:
        counts = (c.rows, c.by_ids, c.by_content, c.not_compared, c.pairs.total())
        table.add_row(
            Text(printable(c.manifest)),
            Text(printable(c.against)),
            *(f"{count:,}" for count in (*counts, *(c.pairs[e] for e in shown))),
            style="red" if c.pairs else None,
        )
    console.print()
    print_whole(console, table)
    console.print()


def _print_gaps(console: Console, report: LeakReport) -> None:
    """What a reader must not take for proven."""
    lines = []
    for unread, what in (
        (report.unread, "images"),
        (report.unread_evaluation, "evaluation images"),
    ):
        lines += [
            f"{name}: {number:,} {what} could not be looked at: {reason}"
            for name, of in unread.items()
            for reason, number in of.most_common()
        ]
    if "bytes" in report.evidence and "perceptual" not in report.evidence:
        lines.append("a copy that was compressed again or resized; --perceptual finds such")
    lines += [
        f"{name}: {number:,} pictures are too plain to be known by their looks"
        for name, number in report.plain.items()
        if number
    ]
    lines += [
        f"{c.manifest}: {c.not_compared:,} of {c.rows:,} rows not comparable with {c.against}"
        for c in report.comparisons
        if c.not_compared
    ]
    for line in lines:
        console.print(Text(printable(f"not proven: {line}"), "yellow"), soft_wrap=True)
