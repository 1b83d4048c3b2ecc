"""Manifests made of manifests: rows stream through, footers stay, and provenance is added.

Every row keeps the footer of the shard that it comes from (source, options, image root, licence),
to which a step is appended: what was done, with which options, to which manifests. Rows of builds
with different footers never share a file.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data import __version__
from xvlm_data.errors import ManifestError, UserError
from xvlm_data.journal import Journal
from xvlm_data.manifest import Manifest, Shard
from xvlm_data.schema import FIELDS, GRANULARITIES, IMAGE, manifest_schema
from xvlm_data.storage import AnyPath, as_path, read_json
from xvlm_data.write import SHARD_NAME, RejectsWriter, ShardWriter, check_out, move_into_place

#: A file of a derived manifest is closed at whichever comes first.
SHARD_ROWS, SHARD_BYTES = 100_000, 512 << 20

STAGED_FOLDER = "staged"
#: What ``counts`` of a manifest call the granularities.
KINDS = {granularity: granularity for granularity in GRANULARITIES} | {IMAGE: "caption"}


@dataclass
class Step:
    """What was done to make a manifest of others; the last entry of its footers' ``history``.

    Attributes:
        verb: name of the command.
        options: that decide the result.
        inputs: manifests that rows come from.
        reason: what rows that are left out are counted under in ``manifest.json``.
    """

    verb: str
    options: dict[str, Any]
    inputs: Sequence[Manifest]
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; says nothing of where the inputs lie."""
        return {
            "verb": self.verb,
            "options": self.options,
            "inputs": [
                {
                    "name": manifest.info.get("name"),
                    "fingerprint": manifest.fingerprint,
                    "rows": len(manifest),
                }
                for manifest in self.inputs
            ],
            "generator": f"xvlm {__version__}",
        }


@dataclass
class _Count:
    rows: int = 0
    concepts: Counter[str] = field(default_factory=Counter)
    without: int = 0
    infos: list[dict[str, Any]] = field(default_factory=list)
    version: int = 1

    def add(self, table: pa.Table) -> None:
        lists = table["concepts"].combine_chunks()
        self.rows += len(table)
        lengths = pc.fill_null(pc.list_value_length(lists), 0)
        self.without += pc.sum(pc.equal(lengths, 0)).as_py() or 0
        names = pc.struct_field(lists.flatten(), "granularity")
        for pair in pc.value_counts(names).to_pylist():
            self.concepts[pair["values"]] += pair["counts"]


class Derivation:
    """A manifest that is being written; a context manager.

    Nothing is seen in its folder before the context ends well; then all of it is.

    Attributes:
        rows: written so far.
    """

    def __init__(self, out: str | AnyPath, step: Step, *, force: bool = False) -> None:
        """Prepare.

        Args:
            out: folder of the manifest; its name becomes the manifest's.
            step: what is done.
            force: replace a manifest, or write beside other files.

        Raises:
            UserError: something else lies there, or it is the folder of an input.
        """
        self._out = as_path(out)
        self._step = step
        self._name = self._out.name or str(out)
        self._further = further_fields(step.inputs)
        self._count = _Count()
        self._shards: list[dict[str, Any]] = []
        self._writer: ShardWriter | None = None
        self._current: tuple[str, int] | None = None
        self._bytes = 0
        self._journal = Journal(self._out / ".building", step.to_dict(), restart=True)
        _check_place(self._out, step.inputs, force=force)

    @property
    def rows(self) -> int:
        """See the class."""
        return self._count.rows

    def __enter__(self) -> Derivation:
        self._existed = self._out.exists()
        self._journal.__enter__()
        self._staged = self._journal.folder / STAGED_FOLDER
        self._staged.mkdir(exist_ok=True)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._publish()
            elif self._writer is not None:
                self._writer.__exit__(kind, error, trace)
            self._journal.discard()
        finally:
            self._journal.__exit__(kind, error, trace)
            if kind is not None and not self._existed and self._out.is_dir():
                with suppress(OSError):
                    self._out.rmdir()

    def write(self, table: pa.Table, shard: Shard) -> None:
        """Append rows that come from a shard of an input.

        Raises:
            ManifestError: the rows are not of the schema's types.
        """
        if not len(table):
            return
        key = (json.dumps(shard.info, sort_keys=True), shard.version)
        if (
            self._writer is None
            or key != self._current
            or self._writer.rows >= SHARD_ROWS
            or self._bytes >= SHARD_BYTES
        ):
            self._next(shard)
            self._current = key
        assert self._writer is not None
        table = conformed(table, self._writer.schema, shard.url)
        self._count.add(table)
        self._bytes += table.nbytes
        self._writer.write(table)

    def _next(self, shard: Shard) -> None:
        self._close_shard()
        info = dict(shard.info) | {"name": self._name}
        info["history"] = [*shard.info.get("history", []), self._step.to_dict()]
        self._count.infos.append(info)
        self._count.version = max(self._count.version, shard.version)
        fields = FIELDS
        for further in self._further.values():
            fields = fields.append(further)
        path = self._staged / SHARD_NAME.format(len(self._shards))
        self._writer = ShardWriter(path, manifest_schema(info, fields, shard.version))
        self._bytes = 0

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.__exit__(None, None, None)
            self._shards.append(self._writer.entry())
            self._writer = None

    def _publish(self) -> None:
        if self._writer is None:  # no row at all: an empty manifest is one too
            self._next(self._step.inputs[0].shards[0])
        self._close_shard()
        RejectsWriter(self._staged).close()
        move_into_place(self._staged, self._out, self.summary())

    def summary(self) -> dict[str, Any]:
        """The content of ``manifest.json``."""
        count, inputs = self._count, self._step.inputs
        concepts = {name: count.concepts.get(name, 0) for name in GRANULARITIES}
        return {
            **combined_info(count.infos),
            "schema_version": count.version,
            "inputs": [str(manifest.info.get("name")) for manifest in inputs],
            "notes": [],
            "counts": _counts(inputs, count.rows, concepts, self._step.reason or self._step.verb),
            "images_without_concepts": count.without,
            "rows": count.rows,
            "concepts": concepts,
            "rejects": 0,
            "shards": self._shards,
        }


def combined_info(infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One description of builds with footers of their own.

    What all agree on stays. Sources and splits are joined by ``+``, the image root becomes the
    folder that holds all of them, licences and citations are told source by source, and the
    footers themselves are in ``parts``.
    """
    distinct = list({json.dumps(info, sort_keys=True): info for info in infos}.values())
    if len(distinct) == 1:
        return distinct[0]
    info: dict[str, Any] = {
        key: value
        for key, value in distinct[0].items()
        if all(other.get(key) == value for other in distinct)
    }
    for key in ("source", "split"):
        info[key] = "+".join(dict.fromkeys(str(other.get(key)) for other in distinct))
    info["image_root"] = common_root([other.get("image_root") for other in distinct])
    told = [
        (str(other.get("source")), other.get("licence"), other.get("citation"))
        for other in distinct
    ]
    licences = dict.fromkeys(f"{source}: {licence}" for source, licence, _ in told if licence)
    info["licence"] = "; ".join(licences)
    info["citation"] = "\n".join(dict.fromkeys(citation for *_, citation in told if citation))
    info.setdefault("options", {})
    return info | {"parts": distinct}


def common_root(roots: Sequence[str | None]) -> str | None:
    """The folder that holds all image roots there are; None where they share nothing."""
    given = [root for root in roots if root]
    if len(set(given)) <= 1:
        return given[0] if given else None
    try:
        return os.path.commonpath(given) if all("://" not in root for root in given) else None
    except ValueError:
        return None


def further_fields(manifests: Sequence[Manifest]) -> dict[str, pa.Field]:
    """Columns beyond those of every manifest that any of them has, by name.

    Raises:
        UserError: two manifests have columns of one name and different types.
    """
    found: dict[str, pa.Field] = {}
    for manifest in manifests:
        for column in (further for shard in manifest.shards for further in shard.further):
            other = found.setdefault(column.name, column)
            if other.type != column.type:
                raise UserError(
                    f"column {column.name!r} is {other.type} in one manifest and {column.type} "
                    f"in another ({manifest.info.get('name')})",
                    "such manifests cannot be one",
                )
    return found


def conformed(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """The rows in the types of a schema, columns that they lack being null.

    Raises:
        ManifestError: the rows cannot be so.
    """
    columns = [
        _plain(table[wanted.name])
        if wanted.name in table.column_names
        else pa.nulls(len(table), wanted.type)
        for wanted in schema
    ]
    try:
        return pa.table(columns, names=schema.names).cast(schema).combine_chunks()
    except (pa.ArrowException, ValueError) as error:
        raise ManifestError(
            f"{where}: breaks the schema ({str(error).splitlines()[0]})",
            "see `xvlm-data inspect --validate`",
        ) from error


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels with our own index width, whatever another writer gave them."""
    kind = column.type
    if pa.types.is_dictionary(kind) and not pa.types.is_int32(kind.index_type):
        return column.cast(kind.value_type).dictionary_encode()
    return column


def row_groups(manifest: Manifest) -> Iterator[tuple[int, int, int, Shard]]:
    """(shard, row group, number of its first row in the manifest, the shard), in order."""
    first = 0
    for number, shard in enumerate(manifest.shards):
        for group, rows in enumerate(shard.row_groups):
            yield number, group, first, shard
            first += rows


def _counts(
    inputs: Sequence[Manifest], rows: int, concepts: dict[str, int], reason: str
) -> dict[str, Any]:
    """The table of the build's counts: of what was there, how much is in and how much is not."""
    raw: dict[str, int | None] = {"image": sum(len(manifest) for manifest in inputs)}
    kept = {"image": rows} | {KINDS[name]: number for name, number in concepts.items()}
    for name in GRANULARITIES:
        told = [((m.summary or {}).get("concepts") or {}).get(name) for m in inputs]
        known = [number for number in told if isinstance(number, int)]
        raw[KINDS[name]] = sum(known) if len(known) == len(told) else None
    table = {}
    for kind, number in kept.items():
        total = raw[kind]
        if total is None or total < number:
            continue
        left_out = {reason: total - number} if total > number else {}
        table[f"{kind}s"] = {"raw": total, "kept": number, "filtered": left_out, "rejected": {}}
    return table


def _check_place(out: AnyPath, inputs: Sequence[Manifest], *, force: bool) -> None:
    place = str(out).rstrip("/")
    here = {str(out.resolve())} if "://" not in place else {place}
    for manifest in inputs:
        for shard in manifest.shards:
            folder = shard.url.rpartition("/")[0].removeprefix("file://")
            if folder in here or ("://" not in folder and str(as_path(folder).resolve()) in here):
                raise UserError(
                    f"{out}: an input lies there, and would be lost", "give another --out"
                )
    if not force and (out / "manifest.json").exists():
        raise UserError(
            f"{out}: holds a manifest already", "give another --out, or --force to replace it"
        )
    plan = read_json(out / ".building" / "plan.json")
    if not force and isinstance(plan, dict) and "verb" not in plan:
        raise UserError(
            f"{out}: an unfinished build lies there",
            "finish it, give another --out, or --force to forget it",
        )
    check_out(out, "", force=force)
