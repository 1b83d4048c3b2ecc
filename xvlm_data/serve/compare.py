"""Two manifests held against each other, row by row."""

from __future__ import annotations

from typing import Any

from xvlm_data.serve.database import Database, quoted

_EXAMPLES = 12
#: What of a row may differ, in the order in which it is told.
_PARTS = ("caption", "concepts", "width", "height", "source", "split")


def compare_rows(database: Database, one: str, other: str) -> dict[str, Any]:
    """How many ids two manifests share, and which rows of the same id differ.

    Rows are compared by 64-bit hashes of their parts.

    Returns:
        ``both``, ``only_one``, ``only_other`` and ``changed`` (rows of the same id that differ),
        each a count; ``parts``, how many differ in what; and ``examples``: of the three last,
        numbers of some rows (of ``changed`` pairs of them).

    Raises:
        UserError: as :meth:`Database.ask`.
    """
    hashes = ", ".join(f"hash({part}) AS {part}" for part in _PARTS)
    sides = [f"(SELECT id, row, {hashes} FROM {quoted(name)}.images)" for name in (one, other)]
    both, differ = "a.row IS NOT NULL AND b.row IS NOT NULL", [f"a.{p} <> b.{p}" for p in _PARTS]
    changed = " OR ".join(differ)
    tests = [both, "b.row IS NULL", "a.row IS NULL", changed, *differ]
    counts = ", ".join(f"count(*) FILTER ({test})" for test in tests)
    examples = ", ".join(
        f"coalesce(min({value}, {_EXAMPLES}) FILTER ({test}), [])"
        for value, test in (
            ("a.row", "b.row IS NULL"),
            ("b.row", "a.row IS NULL"),
            ("[a.row, b.row]", changed),
        )
    )
    (found,) = database.ask(
        f"SELECT {counts}, {examples} FROM {sides[0]} a FULL OUTER JOIN {sides[1]} b USING (id)"
    ).rows
    names = ("both", "only_one", "only_other", "changed")
    return {
        **dict(zip(names, found, strict=False)),
        "parts": dict(zip(_PARTS, found[4:], strict=False)),
        "examples": dict(zip(names[1:], found[-3:], strict=True)),
    }
