"""How numbers and texts are distributed, counted in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

TEXT_BUDGET = 96 << 20


class Histogram:
    """Counts of numbers in fixed bins, open at both ends.

    Bin 0 holds values below ``edges[0]``, bin i those in ``[edges[i-1], edges[i])``, the last one
    those from ``edges[-1]`` on. Values that are not finite are only counted, in ``unusable``.
    """

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = np.zeros(len(edges) + 1, np.int64)
        self.total = 0.0
        self.low: float | None = None
        self.high: float | None = None
        self.unusable = 0

    def add(self, values: npt.NDArray[Any], weights: npt.NDArray[np.int64] | None = None) -> None:
        """Count ``[N]`` values, each once or ``weights`` (``[N]``) times."""
        if weights is None:
            weights = np.ones(len(values), np.int64)
        finite = np.isfinite(values)
        self.unusable += int(weights[~finite].sum())
        values, weights = values[finite], weights[finite]
        if not len(values):
            return
        np.add.at(self.counts, np.searchsorted(self.edges, values, side="right"), weights)
        self.total += float((values.astype(np.float64) * weights).sum())
        self.low = min(float(values.min()), self.low if self.low is not None else np.inf)
        self.high = max(float(values.max()), self.high if self.high is not None else -np.inf)

    @property
    def count(self) -> int:
        """How many usable values were counted."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float | None:
        """Their mean, None when there are none."""
        return self.total / self.count if self.count else None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; ``counts`` is one longer than ``edges``."""
        return {
            "edges": list(self.edges),
            "counts": self.counts.tolist(),
            "count": self.count,
            "mean": self.mean,
            "min": self.low,
            "max": self.high,
            "unusable": self.unusable,
        }


class Frequencies:
    """How often each string occurs, within a budget of bytes.

    Exact until the distinct strings outgrow the budget; then the rarest are forgotten, and any
    count may be low by at most ``undercount``.
    """

    def __init__(self, budget: int = TEXT_BUDGET) -> None:
        self.budget = budget
        self.total = 0
        self.undercount = 0
        self._parts: list[pa.Table] = []
        self._pending = 0
        self._merged = False

    def add(self, values: pa.StringArray) -> pa.Table:
        """Count strings (nulls are left out); returns their own table (value, count)."""
        seen = pc.value_counts(values.drop_null())
        part = pa.table({"value": seen.field("values"), "count": seen.field("counts")})
        self.total += len(values) - values.null_count
        if part.num_rows:
            self._parts.append(part)
            self._merged = False
        self._pending += part.nbytes
        if self._pending > self.budget // 4 or len(self._parts) > 256:
            self._merge()
        return part

    @property
    def exact(self) -> bool:
        """Whether nothing was forgotten."""
        return self.undercount == 0

    @property
    def distinct(self) -> int:
        """Distinct strings seen; a lower bound when not exact."""
        return self._merge().num_rows

    def top(self, number: int | None = None) -> list[tuple[str, int]]:
        """The most frequent strings, equal counts in the strings' order."""
        table = self._merge()
        if number and number < table.num_rows:
            counts = table["count"].to_numpy()
            least = np.partition(counts, -number)[-number]
            table = table.filter(pa.array(counts >= least))
        order = [("count", "descending"), ("value", "ascending")]
        table = table.sort_by(order).slice(0, number)
        return list(zip(table["value"].to_pylist(), table["count"].to_pylist(), strict=True))

    def tail(self, number: int) -> list[tuple[str, int]]:
        """The rarest strings kept: an even choice of all that are as rare as the rarest."""
        import duckdb

        with duckdb.connect() as database:
            database.register("seen", self._merge())
            return database.execute(
                "SELECT value, count FROM seen WHERE count = (SELECT min(count) FROM seen) "
                "ORDER BY hash(value), value LIMIT ?",
                [number],
            ).fetchall()

    def ranks(self) -> list[tuple[int, int]]:
        """(rank from 1, count) at ranks 1, 2, 4, … and the last, of the strings by count."""
        counts = np.sort(self._merge()["count"].to_numpy())[::-1]
        ranks = sorted({*(1 << i for i in range(len(counts).bit_length())), len(counts)} - {0})
        return [(rank, int(counts[rank - 1])) for rank in ranks if rank <= len(counts)]

    @property
    def once(self) -> int:
        """Strings that occur a single time; a lower bound when not exact."""
        return int(pc.sum(pc.equal(self._merge()["count"], 1)).as_py() or 0)

    def to_dict(self, number: int) -> dict[str, Any]:
        """The top strings and how exact they are."""
        return {
            "total": self.total,
            "distinct": self.distinct,
            "exact": self.exact,
            "undercount": self.undercount,
            "top": [{"text": text, "count": count} for text, count in self.top(number)],
        }

    def _merge(self) -> pa.Table:
        if self._merged and len(self._parts) == 1:
            return self._parts[0]
        empty = pa.table({"value": pa.array([], pa.string()), "count": pa.array([], pa.int64())})
        grouped = pa.concat_tables(self._parts or [empty]).group_by("value", use_threads=False)
        table = grouped.aggregate([("count", "sum")]).rename_columns({"count_sum": "count"})
        table = table.select(["value", "count"])
        if table.nbytes > self.budget:
            table = self._without_rarest(table)
        self._parts, self._pending, self._merged = [table], 0, True
        # Grouping takes several times the table for a moment, which the pool would keep.
        pa.default_memory_pool().release_unused()
        return table

    def _without_rarest(self, table: pa.Table) -> pa.Table:
        table = table.sort_by([("count", "descending"), ("value", "ascending")])
        sizes = pc.binary_length(table["value"]).to_numpy() + 16
        kept = int(np.searchsorted(np.cumsum(sizes), self.budget // 2))
        if kept < table.num_rows:
            self.undercount += table["count"][kept].as_py()
        return table.slice(0, kept).combine_chunks()
