"""Choosing rows of a manifest and writing them as another one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xvlm_data.manifest import Manifest
from xvlm_data.storage import AnyPath
from xvlm_data.verbs.derive import Derivation, Step, row_groups

Positions = npt.NDArray[np.int64]
Advance = Callable[[int], None]


def write_rows(
    manifest: Manifest,
    positions: Positions,
    derivation: Derivation,
    advance: Advance = lambda rows: None,
) -> None:
    """Copy rows of a manifest; row groups without any of them are not read.

    Args:
        manifest: read from.
        positions: ``[N]`` ascending row numbers.
        derivation: written to.
        advance: told the rows of each row group, for a progress bar.

    Raises:
        ManifestError: a file is damaged.
    """
    for number, group, first, shard in row_groups(manifest):
        rows = shard.row_groups[group]
        low, high = np.searchsorted(positions, [first, first + rows])
        if high > low:
            table = manifest.read_row_group(number, group)
            if high - low < rows:
                table = table.take(pa.array(positions[low:high] - first))
            derivation.write(table, shard)
        advance(rows)


def derive_rows(
    manifest: Manifest,
    positions: Positions,
    out: str | AnyPath,
    step: Step,
    *,
    force: bool = False,
    advance: Advance = lambda rows: None,
) -> dict[str, Any]:
    """A manifest of some rows of another; returns the content of its ``manifest.json``.

    Raises:
        UserError: ``out`` holds something else.
        ManifestError: a file of the input is damaged.
    """
    with Derivation(out, step, force=force) as derivation:
        write_rows(manifest, positions, derivation, advance)
        summary = derivation.summary
    return summary()


def hashes(ids: Iterable[str], seed: int) -> npt.NDArray[np.uint64]:
    """A number in [0, 2^64) for each id, as if thrown by dice, and the same wherever the id is.

    So what is chosen does not depend on the order of the rows, nor on other rows.
    """
    key = str(seed).encode()
    blake = hashlib.blake2b
    digests = b"".join(blake(id_.encode(), digest_size=8, key=key).digest() for id_ in ids)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def row_hashes(
    manifest: Manifest, seed: int, advance: Advance = lambda rows: None
) -> npt.NDArray[np.uint64]:
    """:func:`hashes` of all rows, 8 bytes each; only ids are read."""
    parts = [np.zeros(0, np.uint64)]
    for batch in manifest.batches(["id"], 65536):
        parts.append(hashes((id_ or "" for id_ in batch.column(0).to_pylist()), seed))
        advance(len(batch))
    return np.concatenate(parts)


def subset(manifest: Manifest, rows: int, seed: int) -> Positions:
    """``rows`` row numbers at random, ascending; a smaller subset of one seed is part of a larger.

    Args:
        manifest: chosen from; all of its rows when it has fewer.
        rows: how many.
        seed: another one chooses others.
    """
    keys = row_hashes(manifest, seed)
    order = np.argsort(keys, kind="stable")[:rows]
    return np.sort(order).astype(np.int64)
