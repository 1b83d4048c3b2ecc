"""``xvlm-data diff``: what two manifests have in common, and where they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
import duckdb
import pyarrow as pa

from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.schema import FIELDS
from xvlm_data.verbs.choose import Advance
from xvlm_data.verbs.derive import conformed
from xvlm_data.verbs.identity import fill_table, spilling_database
from xvlm_data.verbs.options import json_option

#: What is compared of a row, and how it is told.
COLUMNS = ("source", "split", "image", "width", "height", "caption", "concepts")
_EXAMPLES = 5
_FOOTERS_SHOWN = 6
#: Rows whose columns are hashed at once: fewer where there may be pictures among them.
_BATCH, _BATCH_EMBEDDED = 8192, 64


@dataclass
class Difference:
    """How two manifests differ, by the ids of their rows.

    Attributes:
        rows: of each.
        same: images that are equal in all that was compared.
        only: images that the first has alone, and the second.
        changed: images of both that differ.
        columns: how many of these differ in each column.
        examples: ids of the first few, by kind: ``only_a``, ``only_b``, and columns.
        footers: what the footers say differently: (name, in the first, in the second).
    """

    rows: tuple[int, int]
    same: int
    only: tuple[int, int]
    changed: int
    columns: dict[str, int]
    examples: dict[str, list[str]]
    footers: list[tuple[str, Any, Any]]

    @property
    def equal(self) -> bool:
        """Whether all rows are the same; footers may differ."""
        return not (self.changed or any(self.only))


def diff(
    a: Manifest,
    b: Manifest,
    *,
    ignore: tuple[str, ...] = (),
    advance: Advance = lambda rows: None,
) -> Difference:
    """Compare two manifests row by row, whatever the order of their rows.

    Of each column of a row, 64 bits of a hash are held against each other, on disk where memory
    is short.

    Args:
        a: one.
        b: the other.
        ignore: columns that are not compared; without ``image``, no embedded picture is read.
        advance: told the rows of each batch.

    Raises:
        UserError: an id comes twice in one of them.
        ManifestError: a file is damaged.
    """
    columns = [name for name in COLUMNS if name not in ignore]
    with spilling_database() as database:
        for name, manifest in (("a", a), ("b", b)):
            _load(database, name, manifest, columns, advance)
            _refuse_repeats(database, name, manifest)
        return _compare(database, a, b, columns)


def _load(
    database: duckdb.DuckDBPyConnection,
    name: str,
    manifest: Manifest,
    columns: list[str],
    advance: Advance,
) -> None:
    schema = pa.schema([("id", pa.string()), *((column, pa.uint64()) for column in columns)])

    def hashed() -> Iterator[pa.RecordBatch]:
        with duckdb.connect() as hasher:
            size = _BATCH_EMBEDDED if "image" in columns else _BATCH
            for batch in manifest.batches(["id", *columns], size):
                table = pa.Table.from_batches([batch])
                hasher.register("rows", _comparable(table, str(manifest.info.get("name"))))
                asked = ", ".join(f'hash("{column}") AS "{column}"' for column in columns)
                found = hasher.sql(f"SELECT id, {asked} FROM rows").to_arrow_table()
                yield from found.cast(schema).to_batches()
                advance(len(batch))

    fill_table(database, name, schema, hashed())


def _refuse_repeats(database: duckdb.DuckDBPyConnection, name: str, manifest: Manifest) -> None:
    repeated = database.execute(
        f"SELECT id FROM {name} GROUP BY id HAVING count(*) > 1 ORDER BY min(rowid) LIMIT 1"
    ).fetchall()
    if repeated:
        raise UserError(
            f"{manifest.info.get('name')}: id {repeated[0][0]} comes twice",
            "rows are told apart by their ids; see `xvlm-data inspect --validate`",
        )


def _comparable(table: pa.Table, where: str) -> pa.Table:
    """The columns in the schema's own types, so that equal rows are equal whatever wrote them."""
    fields = [FIELDS.field(name) for name in table.column_names]
    plain = pa.schema([f.with_type(pa.string()) if _is_label(f) else f for f in fields])
    return conformed(table, plain, where)


def _is_label(field: pa.Field) -> bool:
    return bool(pa.types.is_dictionary(field.type))


def _compare(
    database: duckdb.DuckDBPyConnection, a: Manifest, b: Manifest, columns: list[str]
) -> Difference:
    def number(query: str) -> int:
        return int(database.execute(query).fetchall()[0][0])

    def ids(query: str) -> list[str]:
        return [
            id_ for (id_,) in database.execute(f"{query} ORDER BY id LIMIT {_EXAMPLES}").fetchall()
        ]

    unequal = {name: f'a."{name}" IS DISTINCT FROM b."{name}"' for name in columns}
    any_of = " OR ".join(unequal.values()) or "false"
    both = number("SELECT count(*) FROM a JOIN b USING (id)")
    changed = number(f"SELECT count(*) FROM a JOIN b USING (id) WHERE {any_of}")
    counted = {
        name: number(f"SELECT count(*) FROM a JOIN b USING (id) WHERE {condition}")
        for name, condition in unequal.items()
    }
    examples = {
        "only_a": ids("SELECT id FROM a ANTI JOIN b USING (id)"),
        "only_b": ids("SELECT id FROM b ANTI JOIN a USING (id)"),
    }
    for name, count in counted.items():
        if count:
            examples[name] = ids(f"SELECT id FROM a JOIN b USING (id) WHERE {unequal[name]}")
    return Difference(
        (len(a), len(b)),
        both - changed,
        (len(a) - both, len(b) - both),
        changed,
        {name: count for name, count in counted.items() if count},
        {name: found for name, found in examples.items() if found},
        _footers(a.info, b.info),
    )


def _footers(a: dict[str, Any], b: dict[str, Any], name: str = "") -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*a, *b}):
        here, there = a.get(key), b.get(key)
        if here == there or key == "history":
            continue
        full = f"{name}.{key}" if name else key
        if isinstance(here, dict) and isinstance(there, dict):
            found += _footers(here, there, full)
        else:
            found.append((full, here, there))
    return found


@click.command("diff")
@click.argument("a")
@click.argument("b")
@click.option(
    "--ignore",
    type=click.Choice(COLUMNS),
    multiple=True,
    help="Do not compare this column; repeatable.",
)
@json_option
@click.pass_context
def diff_command(
    context: click.Context, a: str, b: str, ignore: tuple[str, ...], as_json: bool
) -> None:
    """Compare two manifests, image by image.

    Rows are matched by their ids, in whatever order they are. Exit status 0 when all rows are
    equal, 1 when not, as diff(1) has it; footers may differ, and are told.

    \b
    Examples:
      xvlm-data diff manifests/vg manifests/vg_new
      xvlm-data diff here/coco there/coco --ignore image      (images lie elsewhere)
    """
    from xvlm_data.console import Bars

    first, second = open_manifest(a), open_manifest(b)
    bars = Bars(quiet=as_json)
    with bars.stage("comparing", len(first) + len(second), "rows") as advance:
        found = diff(first, second, ignore=ignore, advance=advance)
    if as_json:
        click.echo(json.dumps(asdict(found) | {"equal": found.equal}, ensure_ascii=False))
    else:
        _print(found, a, b)
    if not found.equal:
        context.exit(1)


def _print(found: Difference, a: str, b: str) -> None:
    from rich.text import Text

    from xvlm_data.console import plain_table, print_whole, stdout
    from xvlm_data.inspect.report import printable

    table = plain_table("Images", ("", "left"), ("", "right"), ("for instance", "left"))

    def row(label: str, number: int, key: str = "") -> None:
        shown = ", ".join(found.examples.get(key, [])[:3])
        table.add_row(Text(printable(label)), f"{number:,}", Text(printable(shown)))

    row("equal", found.same)
    row(f"only in {a}", found.only[0], "only_a")
    row(f"only in {b}", found.only[1], "only_b")
    row("changed", found.changed)
    for name, count in found.columns.items():
        row(f"  in {name}", count, name)
    print_whole(stdout, table)
    for name, here, there in found.footers[:_FOOTERS_SHOWN]:
        stdout.print(
            Text(printable(f"footer {name}: {here!r} in the first, {there!r} in the second")),
            soft_wrap=True,
        )
    if more := found.footers[_FOOTERS_SHOWN:]:
        names = ", ".join(name for name, *_ in more)
        stdout.print(Text(printable(f"footers also differ in {names}")), soft_wrap=True)
