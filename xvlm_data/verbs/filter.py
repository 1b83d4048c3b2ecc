"""``xvlm-data filter``: the rows for which an SQL condition holds."""

from __future__ import annotations

import click
import duckdb
import numpy as np
import pyarrow as pa

from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest
from xvlm_data.schema import FIELDS
from xvlm_data.verbs.choose import Advance, Positions, derive_rows
from xvlm_data.verbs.derive import Step, row_groups
from xvlm_data.verbs.options import json_option, manifests_argument, open_all, out_option, report

#: What DuckDB calls the rows of one row group; a condition has no business with others.
_TABLE = "__row_group"
#: What a condition can be.
_EXAMPLE = (
    "columns are id, source, split, image, width, height, caption, concepts; for instance "
    "\"len(concepts) > 2 AND split = 'train'\""
)


def matching(manifest: Manifest, where: str, advance: Advance = lambda rows: None) -> Positions:
    """Row numbers for which an SQL condition of DuckDB holds, ascending.

    Row group by row group, so that memory does not grow with the manifest; the columns that the
    condition does not name are not read. A condition sees one row: other rows, files and settings
    are out of its reach.

    Args:
        manifest: asked.
        where: of the columns, as after ``WHERE``.
        advance: told the rows of each row group.

    Raises:
        UserError: the condition is none, or fails.
        ManifestError: a file is damaged.
    """
    if not where.strip():
        raise UserError("--where: the condition is empty", _EXAMPLE)
    found = [np.zeros(0, np.int64)]
    with duckdb.connect(config={"enable_external_access": False}) as database:
        database.execute("SET lock_configuration = true")
        columns = _columns_of(manifest, where, database)
        for number, group, first, shard in row_groups(manifest):
            table = manifest.read_row_group(number, group, columns)
            keep = _evaluate(database, table, where)
            found.append(np.flatnonzero(keep) + first)
            advance(shard.row_groups[group])
    return np.concatenate(found)


def _columns_of(manifest: Manifest, where: str, database: duckdb.DuckDBPyConnection) -> list[str]:
    """The columns that a condition needs: those without which it fails even on no rows at all."""
    schema = FIELDS
    for field in manifest.shards[0].further:
        schema = schema.append(field)
    empty = schema.empty_table()
    _evaluate(database, empty, where)
    needed = list(empty.column_names)
    for name in empty.column_names:
        if len(needed) == 1:
            break
        fewer = [other for other in needed if other != name]
        try:
            _evaluate(database, empty.select(fewer), where)
        except UserError:
            continue
        needed = fewer
    return needed


def _evaluate(
    database: duckdb.DuckDBPyConnection, table: pa.Table, where: str
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """``[R]`` whether the condition holds."""
    numbered = table.append_column("__row", pa.array(np.arange(len(table))))
    database.register(_TABLE, numbered)
    try:
        statements = duckdb.extract_statements(f"SELECT ({where}\n)")
        if len(statements) != 1:
            raise UserError(f"--where {where!r}: more than one statement", "give one condition")
        result = database.execute(
            f"SELECT __row, coalesce(CAST(({where}\n) AS BOOLEAN), false) AS keep FROM {_TABLE}"
        ).fetchnumpy()
    except duckdb.Error as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"--where {where!r}: {' '.join(lines[:2])[:300]}",
            _EXAMPLE,
        ) from None
    finally:
        database.unregister(_TABLE)
    keep = np.zeros(len(table), bool)
    keep[np.asarray(result["__row"], np.int64)] = np.asarray(result["keep"], bool)
    return keep


@click.command("filter")
@manifests_argument
@click.option("--where", required=True, metavar="SQL", help="A condition, as after WHERE.")
@out_option
@json_option
def filter_command(
    manifests: tuple[str, ...], where: str, out: str, force: bool, as_json: bool
) -> None:
    """Write the rows for which an SQL condition holds as a manifest.

    The condition is DuckDB's SQL over the columns id, source, split, image, width, height, caption
    and concepts (a list of structs with box [cx, cy, w, h], text, attributes and granularity); a
    row for which it is null is left out.

    \b
    Examples:
      xvlm-data filter manifests/vg --where "len(concepts) > 10" --out manifests/rich
      xvlm-data filter manifests/cc3m --where "caption ILIKE '%dog%'" --out manifests/dogs
      xvlm-data filter manifests/vg --out manifests/cats --where \\
        "len(list_filter(concepts, lambda c: c.text = 'cat' AND c.box[3] * c.box[4] > 0.1)) > 0"
    """
    from xvlm_data.console import Bars

    manifest = open_all(manifests)
    bars = Bars(quiet=as_json)
    with bars.stage("asking", len(manifest), "rows") as advance:
        positions = matching(manifest, where, advance)
    step = Step("filter", {"where": where}, [manifest], reason="where")
    with bars.stage("writing", len(manifest), "rows") as advance:
        summary = derive_rows(manifest, positions, out, step, force=force, advance=advance)
    none = f"the condition holds for none of the {len(manifest):,} rows: the manifest is empty"
    report(summary, out, as_json=as_json, note=None if len(positions) else none)
