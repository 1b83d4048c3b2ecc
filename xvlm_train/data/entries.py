"""What a stream is made of: manifests, which of their texts it reads, and how often."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.recipe import ImageText, MultiGrained, read_recipe
from xvlm_data.schema import OBJECT, REGION
from xvlm_train.data.order import Numbers
from xvlm_train.data.rows import Reads, count_concepts
from xvlm_train.data.samples import CAPTIONS, LOCAL

#: What a natural share counts; ``rows``: nothing, all rows are shuffled together.
Natural: TypeAlias = Literal["rows", "images", "pairs"]


@dataclass(frozen=True, slots=True)
class Entry:
    """The texts of one manifest in a stream.

    Attributes:
        manifest: whose rows they are of.
        reads: which of its concepts.
        weight: share of the stream's samples, relative to the other entries; None: natural.
        natural: what a natural share counts.
    """

    manifest: Manifest
    reads: Reads
    weight: float | None = None
    natural: Natural = "rows"

    @property
    def name(self) -> str:
        """What the manifest is called."""
        return str(self.manifest.info.get("name") or self.manifest.shards[0].url)

    @property
    def fingerprint(self) -> str:
        """Equal for entries that give the same texts of the same rows, equally often."""
        defaults = (default_reads(True), default_reads(False), default_reads(False, True))
        if self.reads in defaults and self.weight is None and self.natural == "rows":
            return self.manifest.fingerprint
        how = [asdict(self.reads), self.weight, self.natural]
        return f"{self.manifest.fingerprint} {json.dumps(how)}"


@dataclass(frozen=True, slots=True)
class Source:
    """Rows that are shuffled together.

    Attributes:
        name: for messages.
        groups: (entry, shard, row group) of each row group.
        counts: ``[G]`` usable rows of each.
        share: of the stream's samples, relative to the other sources.
    """

    name: str
    groups: list[tuple[int, int, int]]
    counts: Numbers
    share: float

    @property
    def rows(self) -> int:
        """All its usable rows."""
        return int(self.counts.sum())


def default_reads(multi_grained: bool, region_as_caption: bool = False) -> Reads:
    """What a stream reads of a manifest that is given without a recipe."""
    if multi_grained:
        return LOCAL
    return replace(CAPTIONS, otherwise=(REGION,)) if region_as_caption else CAPTIONS


def find_recipe(specs: Sequence[str]) -> Path | None:
    """The recipe among what is given as manifests: a YAML file, and then the only one.

    Raises:
        UserError: there are manifests beside it.
    """
    recipes = [spec for spec in specs if spec.endswith((".yaml", ".yml"))]
    if recipes and len(specs) > 1:
        raise UserError(
            f"{recipes[0]} and other manifests", "a recipe names all manifests of both streams"
        )
    return Path(recipes[0]) if recipes else None


@cache  # manifests are opened once
def recipe_entries(path: Path, image_root: str | None = None) -> dict[str, list[Entry]]:
    """The entries of both streams of a recipe, whose manifests lie relative to its folder.

    Args:
        path: of the recipe.
        image_root: where their referenced images lie now, if not where they lay.

    Raises:
        UserError: the recipe or a manifest is missing or damaged.
    """
    recipe, folder = read_recipe(path), path.parent
    opened: dict[str, Manifest] = {}

    def entries(stream: ImageText | MultiGrained) -> list[Entry]:
        for entry in stream.entries:
            if entry.source not in opened:
                spec = recipe.manifest(entry.source, folder)
                opened[entry.source] = open_manifest(spec, image_root=image_root)
        return [
            Entry(
                opened[entry.source],
                Reads(tuple(entry.granularity), largest=entry.largest),
                entry.weight,
                stream.natural,
            )
            for entry in stream.entries
        ]

    return {
        "image_text": entries(recipe.streams.image_text),
        "multi_grained": entries(recipe.streams.multi_grained),
    }


def find_sources(
    entries: Sequence[Entry], *, multi_grained: bool, lenient: bool
) -> tuple[list[Source], list[str]]:
    """Count what is usable of some entries, and settle their shares.

    Args:
        entries: with weights, or all without.
        multi_grained: which stream, for messages.
        lenient: leave out manifests that have rows, but none of use, instead of refusing them.

    Returns:
        The sources, and the names of the manifests that were left out.

    Raises:
        UserError: an empty manifest; one without a usable row; no usable row at all; one of web
            addresses that are still to be downloaded; some entries with weights and some without.
    """
    found: list[Source] = []
    unused: list[str] = []
    weighted = {entry.weight is not None for entry in entries}
    if len(weighted) > 1:
        raise UserError(
            "some entries have a weight and some have none", "give one to all of them, or to none"
        )
    for number, entry in enumerate(entries):
        entry.manifest.require_images()
        source, pairs, present = _count(number, entry)
        if not source.rows:
            if not lenient or not len(entry.manifest):
                raise _unusable(entry, multi_grained, present)
            unused.append(entry.name)
            continue
        shares = {"rows": source.rows, "images": source.rows, "pairs": pairs}
        found.append(replace(source, share=entry.weight or float(shares[entry.natural])))
    if not found:
        kind = "regions or objects" if multi_grained else "captions"
        raise UserError(
            f"no manifest has {kind} ({', '.join(unused) or 'none given'})", "give one that has"
        )
    if weighted == {False} and {entry.natural for entry in entries} == {"rows"}:
        found = [
            Source(
                ", ".join(source.name for source in found),
                [group for source in found for group in source.groups],
                np.concatenate([source.counts for source in found]),
                1.0,
            )
        ]
    return found, unused


def _count(number: int, entry: Entry) -> tuple[Source, int, set[str]]:
    """An entry's rows by row group; its texts; and the granularities there are."""
    groups, counts, pairs = [], [], 0
    present: set[str] = set()
    for s, shard in enumerate(entry.manifest.shards):
        for g in range(len(shard.row_groups)):
            rows, texts, granularities = count_concepts(entry.manifest, s, g, entry.reads)
            groups.append((number, s, g))
            counts.append(rows)
            pairs += texts
            present |= granularities
    return Source(entry.name, groups, np.array(counts, dtype=np.int64), 1.0), pairs, present


def _unusable(entry: Entry, multi_grained: bool, present: set[str]) -> UserError:
    name = entry.name
    if not len(entry.manifest):
        return UserError(f"manifest {name} is empty", "build it again; see its rejects")
    if multi_grained and not present & {REGION, OBJECT}:
        return UserError(
            f"manifest {name} has no regions or objects, so no boxes to learn from",
            "give it to the image-text stream only, and one with boxes here",
        )
    if entry.reads == CAPTIONS:
        return UserError(
            f"manifest {name} has no captions",
            "give it to the multi-grained stream only, or set data.region_as_caption",
        )
    wanted = " or ".join(entry.reads.usable)
    return UserError(
        f"manifest {name} has no concepts of granularity {wanted}",
        f"it has {', '.join(sorted(present)) or 'none'}; see the recipe",
    )
