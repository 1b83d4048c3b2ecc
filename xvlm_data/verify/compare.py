"""A recipe's figures beside the counts of its manifests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import fsspec

from xvlm_data.errors import ManifestError
from xvlm_data.manifest import open_manifest
from xvlm_data.recipe import Figure, Recipe, RecipeSource, StreamEntry
from xvlm_data.verify.counts import QUANTITY, Content, Told, recount, told

#: ok and outside: within the tolerance or not; missing: not built; incomplete: a sum without a
#: source that is not built; unchecked: the recipe expects nothing.
Status = Literal["ok", "outside", "missing", "incomplete", "unchecked"]
Stage = Callable[[str, int | None, str], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Line:
    """One count and what it is held against.

    Attributes:
        quantity: images, captions, objects, regions or annotations.
        paper: the paper's figure, times the scale.
        official: the release's figure, times the scale.
        found: the count, or None where there is none.
        allowed: tolerance, as a share of what is expected.
        status: see :data:`Status`.
        origin: where the figures come from.
    """

    quantity: str
    paper: int | None
    official: int | None
    found: int | None
    allowed: float
    status: Status
    origin: str

    @property
    def expected(self) -> int | None:
        """What the count is held against."""
        return self.paper if self.official is None else self.official

    @property
    def difference(self) -> float | None:
        """(found - expected) / expected; None where either is not known, or nothing expected."""
        if self.found is None or not self.expected:
            return None
        return self.found / self.expected - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = ("quantity", "paper", "official", "found", "status", "origin")
        values = {name: getattr(self, name) for name in names}
        return {**values, "difference": self.difference, "tolerance": self.allowed}


@dataclass
class SourceReport:
    """What was found of one source.

    Attributes:
        name: in the recipe.
        manifest: where it should lie.
        command: what builds it.
        built: whether it is there.
        expect: counts of the manifest.
        release: counts of the raw release.
        left_out: by quantity and reason, the records that a rule or a defect kept out.
        note: the recipe's.
        warnings: what does not fit the recipe, or the manifest's own ``manifest.json``.
        contradiction: whether ``manifest.json`` and the Parquet files disagree.
    """

    name: str
    manifest: str
    command: str
    built: bool = True
    expect: list[Line] = field(default_factory=list)
    release: list[Line] = field(default_factory=list)
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    note: str = ""
    warnings: list[str] = field(default_factory=list)
    contradiction: bool = False


@dataclass
class Report:
    """The whole comparison; ``ok`` when everything is built and within its tolerance."""

    recipe: str
    about: str
    scale: float
    sources: list[SourceReport]
    totals: list[Line]

    @property
    def ok(self) -> bool:
        """Whether nothing is missing, outside, or contradicts itself."""
        lines = [line for source in self.sources for line in (*source.expect, *source.release)]
        good = all(line.status in ("ok", "unchecked") for line in (*lines, *self.totals))
        return good and all(s.built and not s.contradiction for s in self.sources)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        sources = [
            {
                **vars(source),
                "expect": [line.to_dict() for line in source.expect],
                "release": [line.to_dict() for line in source.release],
            }
            for source in self.sources
        ]
        return {
            "recipe": self.recipe,
            "scale": self.scale,
            "ok": self.ok,
            "sources": sources,
            "totals": [line.to_dict() for line in self.totals],
        }


def compare(
    recipe: Recipe, folder: Path, *, scale: float = 1.0, recount_all: bool = False, stage: Stage
) -> Report:
    """Hold the manifests of a recipe against it.

    Args:
        recipe: what is expected.
        folder: what the recipe's paths are relative to.
        scale: expected counts are multiplied by this, for synthetic releases of that scale.
        recount_all: count the Parquet files, and check ``manifest.json`` by them; otherwise only
            those are counted that have none, or of which a stream reads a part of the texts.
        stage: opens a progress display.

    Raises:
        ManifestError: a shard is damaged. A manifest that cannot even be opened counts as missing,
            with a warning that says why.
    """
    reports: list[SourceReport] = []
    found: dict[str, dict[str, int]] = {}
    contents: dict[str, Content] = {}
    entries = [*recipe.streams.image_text.entries, *recipe.streams.multi_grained.entries]
    for name, source in recipe.sources.items():
        where = recipe.manifest(name, folder)
        report = SourceReport(name, where, _command(name, source, where), note=source.note)
        reports.append(report)
        try:
            manifest = open_manifest(where)
            summary = told(manifest)
        except ManifestError as error:  # the other sources are still worth comparing
            report.built = False
            report.warnings += [str(error)] if _exists(where) else []
            report.expect = [_line(q, figure, None, scale) for q, figure in source.expect.items()]
            continue
        in_part = any(entry.source == name and entry.largest is not None for entry in entries)
        if recount_all or in_part or summary is None:
            with stage(f"counting {name}", len(manifest), "rows") as advance:
                contents[name] = recount(manifest, advance)
        found[name] = contents[name].kept if name in contents else summary.kept if summary else {}
        report.expect = [
            _line(q, figure, found[name][q], scale) for q, figure in source.expect.items()
        ]
        if summary is not None:
            _from_summary(report, recipe, source, summary, scale)
            contradictions = _disagreements(summary, contents.get(name))
            report.warnings += contradictions
            report.contradiction = bool(contradictions)
        else:
            report.warnings.append("no manifest.json: what its build left out is not known")
    totals = _totals(recipe, found, contents, scale)
    return Report(recipe.name, recipe.about, scale, reports, totals)


def _from_summary(
    report: SourceReport, recipe: Recipe, source: RecipeSource, summary: Told, scale: float
) -> None:
    report.release = [
        _line(quantity, figure, summary.raw.get(quantity), scale)
        for quantity, figure in source.release.items()
        if figure is not None or summary.raw.get(quantity)
    ]
    report.left_out = {name: of for name, of in summary.left_out.items() if of}
    for rule, wanted in recipe.rules.items():
        had = summary.rules.get(rule)
        if had is not None and had != wanted:
            report.warnings.append(f"built with {rule} {had}, the recipe is meant for {wanted}")
    if summary.keep_leaks:
        report.warnings.append("built with --keep-leaks: images of evaluation sets are in it")


def _disagreements(summary: Told, content: Content | None) -> list[str]:
    if content is None:
        return []
    return [
        f"manifest.json tells {summary.kept[name]:,} {name}, the files hold {number:,}"
        for name, number in content.kept.items()
        if summary.kept[name] != number
    ]


def _totals(
    recipe: Recipe,
    found: Mapping[str, Mapping[str, int]],
    contents: Mapping[str, Content],
    scale: float,
) -> list[Line]:
    def texts(entry: StreamEntry) -> int:
        if entry.source not in found:
            return 0
        if entry.largest is None:
            return sum(found[entry.source][QUANTITY[g]] for g in entry.granularity)
        # Of several granularities the limit is on their sum, which the counts of each do not tell;
        # reading refuses that.
        return contents[entry.source].texts(entry.granularity[0], entry.largest)

    streams = recipe.streams
    sums = {
        "images": (sum(of["images"] for of in found.values()), set(recipe.sources)),
        "captions": (
            sum(map(texts, streams.image_text.entries)),
            {entry.source for entry in streams.image_text.entries},
        ),
        "annotations": (
            sum(map(texts, streams.multi_grained.entries)),
            {entry.source for entry in streams.multi_grained.entries},
        ),
    }
    return [
        _line(name, getattr(recipe.totals, name), total, scale, complete=needed <= set(found))
        for name, (total, needed) in sums.items()
    ]


def _line(
    quantity: str, figure: Figure | None, found: int | None, scale: float, *, complete: bool = True
) -> Line:
    figure = figure or Figure()
    paper, official = (
        None if number is None else round(number * scale)
        for number in (figure.paper, figure.official)
    )
    status: Status = "ok"
    if figure.expected is None:
        status = "unchecked"
    elif found is None:
        status = "missing"
    elif not complete:
        status = "incomplete"
    else:
        wanted = figure.expected * scale
        slack = figure.allowed * wanted + (0.5 if scale != 1 else 0)  # a scaled count is rounded
        status = "ok" if abs(found - wanted) <= slack else "outside"
    return Line(quantity, paper, official, found, figure.allowed, status, figure.origin)


def _command(name: str, source: RecipeSource, where: str) -> str:
    release = source.source or name
    split = "" if source.split == "train" else f" --split {source.split}"
    return f"xvlm-data build --source {release}{split} --out {where}"


def _exists(where: str) -> bool:
    fs, path = fsspec.core.url_to_fs(where)
    return bool(fs.exists(path)) or (any(c in path for c in "*?[") and bool(fs.glob(path)))
