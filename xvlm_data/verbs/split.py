"""``xvlm-data split``: one manifest as several that share no image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest
from xvlm_data.storage import AnyPath, as_path
from xvlm_data.verbs.choose import Advance, Positions, derive_rows, row_hashes
from xvlm_data.verbs.derive import Step
from xvlm_data.verbs.options import json_option, manifests_argument, open_all, report


def parts_at_random(
    manifest: Manifest, shares: Mapping[str, float], seed: int
) -> dict[str, Positions]:
    """Row numbers of each part; which part an image is in follows from its id and the seed alone.

    So an image stays in its part when others come or go; and parts have their shares up to
    chance, about one in the square root of their rows.

    Args:
        manifest: parted.
        shares: of each part; their sum is 1.
        seed: another one, another choice.

    Raises:
        UserError: shares that are negative or do not add up to 1.
    """
    adding_up = abs(sum(shares.values()) - 1) <= 1e-9  # which what is no number does not
    if not adding_up or any(share <= 0 for share in shares.values()):
        raise UserError(
            f"shares {', '.join(f'{n}={s:g}' for n, s in shares.items())} do not add up to 1",
            "for instance --part train=0.95 --part val=0.05",
        )
    # A number in [0, 1); 53 bits of it are exact in a float.
    place = (row_hashes(manifest, seed) >> np.uint64(11)).astype(np.float64) / 2.0**53
    bounds = np.cumsum(list(shares.values()))[:-1]
    of_row = np.searchsorted(bounds, place, side="right")
    return {name: np.flatnonzero(of_row == number) for number, name in enumerate(shares)}


def parts_by(manifest: Manifest, column: Literal["source", "split"]) -> dict[str, Positions]:
    """Row numbers of each value of a column."""
    found: dict[str, list[Positions]] = {}
    first = 0
    for batch in manifest.batches([column], 65536):
        values = batch.column(0).cast(pa.string())
        for name in values.unique().to_pylist():
            here = pc.equal(values, name).to_numpy(zero_copy_only=False)
            found.setdefault(str(name), []).append(np.flatnonzero(here) + first)
        first += len(batch)
    return {name: np.concatenate(positions) for name, positions in found.items()}


def split(
    manifest: Manifest,
    parts: Mapping[str, Positions],
    out: str | AnyPath,
    options: dict[str, Any],
    *,
    force: bool = False,
    advance: Advance = lambda rows: None,
) -> dict[str, dict[str, Any]]:
    """Write each part as ``out/<name>``; returns their ``manifest.json`` by name.

    Raises:
        UserError: a name cannot be a folder's, or something lies there.
    """
    for name in parts:
        if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
            raise UserError(f"{name!r} cannot be the name of a folder", "give another one")
    return {
        name: derive_rows(
            manifest,
            positions,
            as_path(out) / name,
            Step("split", options | {"part": name}, [manifest], reason="other_part"),
            force=force,
            advance=advance,
        )
        for name, positions in parts.items()
    }


@click.command("split")
@manifests_argument
@click.option(
    "--part", "parts", multiple=True, metavar="NAME=SHARE", help="A part at random; repeatable."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of parts at random.")
@click.option("--by", type=click.Choice(["source", "split"]), help="A part for each value instead.")
@click.option("--out", required=True, metavar="DIR", help="Parts are written to DIR/NAME.")
@click.option("--force", is_flag=True, help="Replace what lies there.")
@json_option
def split_command(
    manifests: tuple[str, ...],
    parts: tuple[str, ...],
    seed: int,
    by: Literal["source", "split"] | None,
    out: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write one manifest as several that share no image.

    At random, an image's part follows from its id and the seed alone, so that it stays there when
    the manifest is built again or grows. The column split keeps what the release says.

    \b
    Examples:
      xvlm-data split manifests/mine --part train=0.95 --part val=0.05 --out manifests/mine_split
      xvlm-data split manifests/coco_vg --by source --out manifests/apart
    """
    from xvlm_data.console import Bars

    if bool(parts) == bool(by):
        raise click.UsageError("give --part NAME=SHARE, repeatedly, or --by COLUMN")
    manifest = open_all(manifests)
    if by:
        chosen = parts_by(manifest, by)
        options: dict[str, Any] = {"by": by}
    else:
        shares = _shares(parts)
        chosen = parts_at_random(manifest, shares, seed)
        options = {"shares": shares, "seed": seed}
    with Bars(quiet=as_json).stage("splitting", len(chosen) * len(manifest), "rows") as advance:
        summaries = split(manifest, chosen, out, options, force=force, advance=advance)
    if as_json:
        click.echo(json.dumps(summaries, ensure_ascii=False))
        return
    for name, summary in summaries.items():
        report(summary | {"counts": {}}, f"{out}/{name}", as_json=False)


def _shares(parts: tuple[str, ...]) -> dict[str, float]:
    shares = {}
    for part in parts:
        name, _, share = part.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise click.UsageError(f"--part {part!r} is not NAME=SHARE") from None
    if len(shares) < len(parts):
        raise click.UsageError("two parts have one name")
    return shares
