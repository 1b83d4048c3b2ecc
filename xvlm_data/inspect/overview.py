"""What a manifest says of itself, and whether that agrees with what it holds."""

from __future__ import annotations

from typing import Any

import fsspec

from xvlm_data.inspect.statistics import Statistics
from xvlm_data.manifest import Manifest


def overview(manifest: Manifest) -> dict[str, Any]:
    """Name, schema version, provenance and sizes, as plain JSON values.

    ``build`` is the content of ``manifest.json`` without its list of shards, or None when the
    manifest was not opened as a folder.
    """
    info = manifest.info
    build = manifest.summary
    return {
        "name": info.get("name"),
        "schema_version": manifest.schema_version,
        "source": info.get("source"),
        "split": info.get("split"),
        "generator": info.get("generator"),
        "options": info.get("options") or {},
        "image_root": manifest.image_root or info.get("image_root"),
        "shards": len(manifest.shards),
        "rows": len(manifest),
        "bytes": sum(_size(shard.url) for shard in manifest.shards),
        "fingerprint": manifest.fingerprint,
        "build": build and {key: value for key, value in build.items() if key != "shards"},
    }


def disagreements(manifest: Manifest, statistics: Statistics) -> list[str]:
    """One line for each count of ``manifest.json`` that differs from what was counted."""
    told = manifest.summary
    if told is None:
        return []
    found = dict(statistics.granularities.top())
    pairs = [
        ("rows", told.get("rows"), statistics.rows),
        (
            "images without concepts",
            told.get("images_without_concepts"),
            statistics.rows_without_concepts,
        ),
        *(
            (f"{name} concepts", number, found.get(name, 0))
            for name, number in mapping(told.get("concepts")).items()
        ),
    ]
    return [
        f"manifest.json tells {wanted} {name}, counted {number}"
        for name, wanted, number in pairs
        if wanted is not None and wanted != number
    ]


def mapping(value: Any) -> dict[str, Any]:
    """``value`` if it is a mapping, else an empty one: people edit ``manifest.json``."""
    return value if isinstance(value, dict) else {}


def _size(url: str) -> int:
    fs, path = fsspec.core.url_to_fs(url)
    return int(fs.size(path) or 0)
