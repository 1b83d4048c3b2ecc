"""Reading manifests in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xvlm_data import manifest
from xvlm_data.schema import FIELDS, manifest_schema


def test_batches_do_not_read_a_shard_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch of a shard of 16 row groups costs about one of them."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {
            "id": f"x/{number}",
            "source": "x",
            "split": "train",
            "image": {"bytes": rng.bytes(100_000), "path": None},
            "width": 1,
            "height": 1,
        }
        for number in range(64)
    ]
    table = pa.Table.from_pylist(rows, schema=FIELDS)
    path = tmp_path / "m.parquet"
    pq.write_table(table.cast(manifest_schema({})), path, row_group_size=4, compression="none")
    opened = manifest.open_manifest(path)
    place = 0

    class Counting:
        def __init__(self, file: Any) -> None:
            self.file = file

        def read(self, size: int = -1) -> bytes:
            nonlocal place
            data: bytes = self.file.read(size)
            place += len(data)
            return data

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    open_file = manifest._open

    @contextmanager
    def counted(url: str) -> Iterator[Any]:
        with open_file(url) as file:
            yield Counting(file)

    monkeypatch.setattr(manifest, "_open", counted)
    first = next(opened.batches(["id", "image"], 4))
    assert len(first) == 4
    assert place < 4 * path.stat().st_size / 16
