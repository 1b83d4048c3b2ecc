"""Rows of a manifest as a Python sequence, and how they go on to other libraries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from xvlm_data.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from xvlm_data.manifest import Manifest


class Rows(Sequence[dict[str, Any]]):
    """All rows of a manifest, or a slice of them.

    A row is a dict as the schema has it: ``id``, ``image`` (``{"bytes", "path"}``), ``width``,
    ``height``, ``caption``, ``concepts``, … Iterating reads one row group after the other; so does
    a row by its number, and the last row group is kept for the next one.
    """

    def __init__(self, manifest: Manifest, span: range) -> None:
        """Some rows.

        Args:
            manifest: that they are of.
            span: their numbers in it.
        """
        self._manifest, self._span = manifest, span
        self._recent: tuple[int, int, pa.Table] | None = None

    def __len__(self) -> int:
        return len(self._span)

    def __repr__(self) -> str:
        name = self._manifest.info.get("name") or self._manifest.shards[0].url
        return f"<{type(self).__name__} of {name}: {len(self):,} images>"

    def __getstate__(self) -> dict[str, Any]:
        """Without the rows at hand: what goes to another process is small."""
        return vars(self) | {"_recent": None}

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Rows:
        """A row by its number, or a slice; negative numbers count from the end.

        Raises:
            IndexError: there is no such row.
            ManifestError: its file is gone or damaged.
        """
        if isinstance(index, slice):
            return Rows(self._manifest, self._span[index])
        row = self._span[index]
        if self._recent is None or not self._recent[0] <= row < self._recent[1]:
            self._recent = self._group_of(row)
        first, _, table = self._recent
        found: dict[str, Any] = table.slice(row - first, 1).to_pylist()[0]
        return found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows in order; of a row group only a few are Python objects at a time."""
        for table in self.tables():
            for start in range(0, len(table), 64):
                yield from table.slice(start, 64).to_pylist()

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows in order as Arrow tables, one a row group.

        Args:
            columns: that are read; all by default.

        Raises:
            ManifestError: a file is gone or damaged.
        """
        span, backwards = self._span, self._span.step < 0
        if backwards:
            span = span[::-1]
        parts = []
        first = 0
        for number, shard in enumerate(self._manifest.shards):
            for group, rows in enumerate(shard.row_groups):
                here = _within(span, first, first + rows)
                first += rows
                if len(here):
                    parts.append((number, group, here))
        for number, group, here in reversed(parts) if backwards else parts:
            table = self._manifest.read_row_group(number, group, columns)
            if backwards:
                here = here[::-1]
            if here == range(len(table)):
                yield table
            elif here.step == 1:
                yield table.slice(here.start, len(here))
            else:
                yield table.take(pa.array(np.arange(here.start, here.stop, here.step)))

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in one Arrow table, in memory.

        Args:
            columns: that are read; all by default. Without ``image``, embedded pictures stay on
                disk.
        """
        tables = list(self.tables(columns))
        if not tables:
            tables = [self._manifest.read_row_group(0, 0, columns).slice(0, 0)]
        return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()

    def to_pandas(self, columns: Sequence[str] | None = None) -> Any:
        """All rows as a ``pandas.DataFrame``, in memory; see :meth:`to_arrow`."""
        _need("pandas", "data")
        return self.to_arrow(columns).to_pandas()

    def dataset(self, *, streaming: bool = False) -> Any:
        """The rows as a Hugging Face ``datasets.Dataset``, whose ``image`` shows pictures.

        Args:
            streaming: an ``IterableDataset`` that reads as it goes, instead of one that is first
                copied into the cache of `datasets`.

        Raises:
            UserError: `datasets` is not installed; or the manifest was opened with another image
                root, which the files do not know of.
        """
        datasets = _need("datasets", "data")
        self._refuse_moved("dataset")
        urls = [shard.url for shard in self._manifest.shards]
        found = datasets.load_dataset(
            "parquet", data_files={"rows": urls}, split="rows", streaming=streaming
        )
        if self._span == range(len(self._manifest)):
            return found
        if not streaming:
            return found.select(self._span)
        if self._span.step != 1:
            raise UserError("a stream goes forward one by one", "take a slice without a step")
        return found.skip(self._span.start).take(len(self._span))

    def relation(self, connection: Any = None) -> Any:
        """The rows as a DuckDB relation: nothing is read before its result is asked for.

        Args:
            connection: of DuckDB; its default one otherwise.

        Raises:
            UserError: a slice with a step; or as :meth:`dataset`, of moved images.
        """
        import duckdb

        self._refuse_moved("relation")
        if self._span.step != 1:
            raise UserError("a relation has all rows between two", "take a slice without a step")
        urls = [shard.url for shard in self._manifest.shards]
        connection = connection or duckdb
        _register_filesystems(connection, urls)
        relation = connection.read_parquet(urls)
        if self._span == range(len(self._manifest)):
            return relation
        return relation.limit(len(self._span), offset=self._span.start)

    def image(self, index: int) -> Image.Image:
        """The picture of a row, in the orientation that its boxes refer to.

        Raises:
            ImageError: it is missing or broken.
        """
        from xvlm_data.images.decode import load_row_image

        row = self[index]
        return load_row_image(row["image"] or {}, row["width"], row["height"])

    def draw(self, index: int) -> Image.Image:
        """The picture of a row with its boxes and texts on it; raises as :meth:`image`."""
        from xvlm_data.inspect.draw import draw_concepts

        row = self[index]
        return draw_concepts(self.image(index), row["concepts"] or [], row["id"])

    def _group_of(self, row: int) -> tuple[int, int, pa.Table]:
        first = 0
        for number, shard in enumerate(self._manifest.shards):
            if row >= first + shard.rows:
                first += shard.rows
                continue
            for group, rows in enumerate(shard.row_groups):
                if row < first + rows:
                    return first, first + rows, self._manifest.read_row_group(number, group)
                first += rows
        raise IndexError(row)

    def _refuse_moved(self, name: str) -> None:
        if self._manifest.image_root:
            raise UserError(
                f".{name}() reads the files as they are, with the images' former place",
                "use .to_arrow() or .to_pandas(), or open the manifest without image_root",
            )


def _within(span: range, first: int, stop: int) -> range:
    """The part of an ascending range that lies in ``[first, stop)``, counted from ``first``."""
    low = max(0, -(-(first - span.start) // span.step))
    high = max(low, min(len(span), -(-(stop - span.start) // span.step)))
    part = span[low:high]
    return range(part.start - first, part.stop - first, part.step)


def _need(package: str, extra: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError:
        raise UserError(
            f"this needs the package {package}", f"pip install -e '.[{extra}]' in the clone"
        ) from None


def _register_filesystems(connection: Any, urls: Sequence[str]) -> None:
    """Let DuckDB read what fsspec can."""
    import fsspec

    for scheme in {url.partition("://")[0] for url in urls if "://" in url} - {"file"}:
        connection.register_filesystem(fsspec.filesystem(scheme))
