"""The search: every row of the manifests held against every evaluation image.

Besides what was found, the report says what could not be compared: a proof is worth as much as its
gaps are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xvlm_data.errors import UserError
from xvlm_data.leaks.against import BATCH, Against, Stage
from xvlm_data.leaks.content import Rows, Seen, look_at_rows, read_rows
from xvlm_data.leaks.fingerprint import Wanted
from xvlm_data.leaks.identity import TELLING, Identities, RowIds
from xvlm_data.manifest import Manifest

#: From the surest to the least: the release says it is that image; equal bytes; equal pixels;
#: alike to the eye.
EVIDENCE = ("coco_id", "flickr_id", "bytes", "pixels", "perceptual")
Evidence = Literal["coco_id", "flickr_id", "bytes", "pixels", "perceptual"]

#: Rows of a search by ids alone, which reads one column.
_ID_BATCH = 16_384


@dataclass(frozen=True, slots=True)
class Finding:
    """A row and the evaluation image that it is, or a row or image that could not be looked at.

    Attributes:
        finding: ``leak`` or ``unproven``.
        manifest: as given; None where an evaluation image could not be looked at.
        id: the row's id.
        shard: its file.
        row: its place in the shard, from 0.
        against: the evaluation file, manifest or folder as given; None for an unproven row.
        evaluation: the evaluation image.
        evidence: one of :data:`EVIDENCE`; for unproven ones the reason, such as missing_image.
        distance: differing bits, for perceptual evidence.
    """

    finding: Literal["leak", "unproven"]
    manifest: str | None = None
    id: str | None = None
    shard: str | None = None
    row: int | None = None
    against: str | None = None
    evaluation: str | None = None
    evidence: str = ""
    distance: int | None = None


Sink = Callable[[Sequence[Finding]], None]


@dataclass
class Comparison:
    """One manifest against one thing.

    Attributes:
        manifest: as given.
        against: as given.
        rows: rows of the manifest.
        by_ids: rows whose ids could be compared.
        by_content: rows whose images could be compared.
        not_compared: rows of which neither could.
        leaking_rows: rows that are an evaluation image.
        pairs: (row, evaluation image) pairs by evidence.
    """

    manifest: str
    against: str
    rows: int = 0
    by_ids: int = 0
    by_content: int = 0
    not_compared: int = 0
    leaking_rows: int = 0
    pairs: Counter[str] = field(default_factory=Counter)


@dataclass
class LeakReport:
    """Everything a search says.

    Attributes:
        evidence: kinds of evidence that were looked for.
        against: what was held against: name, kind, number of images.
        comparisons: manifest by manifest.
        unread: by manifest, why how many images could not be looked at.
        unread_evaluation: the same of the evaluation images.
        plain: by manifest, pictures too plain to be known by their looks.
        examples: the first findings of leaks.
    """

    evidence: list[str] = field(default_factory=lambda: ["coco_id", "flickr_id"])
    against: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    unread: dict[str, Counter[str]] = field(default_factory=dict)
    unread_evaluation: dict[str, Counter[str]] = field(default_factory=dict)
    plain: Counter[str] = field(default_factory=Counter)
    examples: list[Finding] = field(default_factory=list)

    @property
    def pairs(self) -> int:
        """All pairs found."""
        return sum(comparison.pairs.total() for comparison in self.comparisons)

    @property
    def complete(self) -> bool:
        """Whether every row could be compared with everything, and every image be looked at."""
        unread = [*self.unread.values(), *self.unread_evaluation.values()]
        return not any(c.not_compared for c in self.comparisons) and not any(
            counter.total() for counter in unread
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "leaks": self.pairs,
            "complete": self.complete,
            "evidence": self.evidence,
            "against": self.against,
            "comparisons": [{**vars(c), "pairs": dict(c.pairs)} for c in self.comparisons],
            "unread": {name: dict(of) for name, of in self.unread.items()},
            "unread_evaluation": {name: dict(of) for name, of in self.unread_evaluation.items()},
            "plain": dict(self.plain),
            "examples": [asdict(example) for example in self.examples],
        }


#: Examples of leaks that the report itself holds.
EXAMPLES = 20


def search(
    manifests: Sequence[tuple[str, Manifest]],
    against: Sequence[Against],
    identities: Identities,
    *,
    wanted: Wanted,
    pool: Executor,
    sink: Sink,
    stage: Stage,
) -> LeakReport:
    """Hold manifests against evaluation images.

    Args:
        manifests: (name, manifest).
        against: what they must not hold.
        identities: tells the ids of rows.
        wanted: what to compute of their images, where there are images to compare with.
        pool: where images are looked at.
        sink: gets every finding, in order of the rows.
        stage: opens a progress display.

    Raises:
        UserError: nothing of a manifest can be compared, for want of a file that tells its ids.
    """
    run = _Search(against, identities, wanted, pool, sink)
    run.note_against()
    by_content = any(other.content is not None for other in against)
    if by_content:
        kinds = {"bytes": True, "pixels": wanted.pixels, "perceptual": wanted.looks}
        run.report.evidence += [kind for kind, looked_for in kinds.items() if looked_for]
    for name, manifest in manifests:
        if not by_content:
            _check_comparable(name, manifest, identities)
        with stage(f"searching {name}", len(manifest), "rows") as advance:
            run.manifest(name, manifest, by_content, advance)
    return run.report


def _check_comparable(name: str, manifest: Manifest, identities: Identities) -> None:
    sources = {str(shard.info.get("source")) for shard in manifest.shards}
    for source in sorted(sources & set(TELLING)):
        if not identities.knows(source):
            raise UserError(
                f"{name}: which images its {source} rows are cannot be told",
                f"give {TELLING[source]} with --ids, or evaluation images with --against",
            )


@dataclass
class _Search:
    """A search under way; see :func:`search`."""

    against: Sequence[Against]
    identities: Identities
    wanted: Wanted
    pool: Executor
    sink: Sink
    report: LeakReport = field(default_factory=LeakReport)

    def emit(self, findings: Sequence[Finding]) -> None:
        self.sink(findings)
        leaks = [finding for finding in findings if finding.finding == "leak"]
        self.report.examples += leaks[: EXAMPLES - len(self.report.examples)]

    def note_against(self) -> None:
        """What is held against, and which evaluation images could not be looked at."""
        for other in self.against:
            about = {"name": other.name, "kind": other.kind, "images": other.images}
            self.report.against.append(about)
            problems = other.content.problems if other.content is not None else []
            if problems:
                self.report.unread_evaluation[other.name] = Counter(why for _, why in problems)
            self.emit(
                [
                    Finding("unproven", against=other.name, evaluation=name, evidence=why)
                    for name, why in problems
                ]
            )

    def manifest(
        self, name: str, manifest: Manifest, by_content: bool, advance: Callable[[int], None]
    ) -> None:
        """Every row of one manifest against everything."""
        comparisons = [Comparison(name, other.name) for other in self.against]
        self.report.comparisons += comparisons
        unread = self.report.unread[name] = Counter()
        columns = ["id", "image"] if by_content else ["id"]
        for rows in read_rows(manifest, columns, BATCH if by_content else _ID_BATCH):
            told = self.identities(rows.batch.column("id"))
            seen: list[Seen] = []
            if by_content:
                seen = look_at_rows(rows.batch.column("image"), self.wanted, self.pool)
                unread.update(image.problem for image in seen if image.problem)
                plain = sum(image.print is not None and image.print.plain for image in seen)
                self.report.plain[name] += plain
            findings = _unread_rows(name, rows, seen)
            for other, comparison in zip(self.against, comparisons, strict=True):
                findings += _compare(rows, told, seen, other, comparison)
            self.emit(findings)
            advance(len(rows.batch))


def _unread_rows(name: str, rows: Rows, seen: Sequence[Seen]) -> list[Finding]:
    if not any(image.problem for image in seen):
        return []
    ids = rows.batch.column("id").to_pylist()
    return [
        Finding("unproven", name, ids[i], rows.shard, rows.first + i, evidence=image.problem)
        for i, image in enumerate(seen)
        if image.problem
    ]


def _compare(
    rows: Rows, told: RowIds, seen: Sequence[Seen], other: Against, comparison: Comparison
) -> list[Finding]:
    """Findings of some rows against one thing; the comparison is counted on."""
    ids = rows.batch.column("id")
    known = np.full(len(ids), other.images == 0)
    hits: list[tuple[int, str, Evidence, int | None]] = []
    # Only where every evaluation image has an id does a row without a match prove anything.
    if other.coco.complete:
        known |= told.coco_known
    if other.flickr.complete:
        known |= told.flickr_known
    hits += [(place, image, "coco_id", None) for place, image in other.coco.find(told.coco)]
    hits += [(place, image, "flickr_id", None) for place, image in other.flickr.find(told.flickr)]
    looked: npt.NDArray[np.bool_] = np.zeros(len(ids), bool)
    if other.content is not None:
        looked = np.array([image.print is not None for image in seen], bool)
        names = other.content.names
        hits += [(place, names[n], how, far) for place, n, how, far in other.content.matches(seen)]
    comparison.rows += len(ids)
    comparison.by_ids += int(known.sum())
    comparison.by_content += int(looked.sum())
    comparison.not_compared += int((~known & ~looked).sum())
    comparison.leaking_rows += len({place for place, *_ in hits})
    comparison.pairs.update(how for _, _, how, _ in hits)
    texts = ids.to_pylist() if hits else []
    return [
        Finding(
            "leak",
            comparison.manifest,
            texts[place],
            rows.shard,
            rows.first + place,
            comparison.against,
            image,
            how,
            far,
        )
        for place, image, how, far in sorted(hits, key=lambda hit: (hit[0], EVIDENCE.index(hit[2])))
    ]
