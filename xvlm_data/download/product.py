"""From finished shards to a manifest in its place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from xvlm_data.download.lists import ListCounts, ListSpec
from xvlm_data.download.rows import UrlRows
from xvlm_data.download.shards import KINDS, REJECTS_NAME
from xvlm_data.journal import Journal
from xvlm_data.manifest import REJECTS_NAME as ALL_REJECTS
from xvlm_data.manifest import SUMMARY_NAME
from xvlm_data.publish.croissant import write_croissant
from xvlm_data.schema import SIZES_KNOWN
from xvlm_data.storage import write_json
from xvlm_data.write import RejectsWriter

#: Where the summary of a manifest lies while its better version is moved into place.
PREVIOUS_NAME = "previous.json"


def file_is_there(entry: dict[str, Any], work: Path, out: Path) -> bool:
    """Whether the file of a finished shard lies where it was staged, or in its place already."""
    for path in (work / entry["file"], out / entry["file"]):
        if path.is_file() and path.stat().st_size == entry["bytes"]:
            return True
    return False


def summarise(
    info: dict[str, Any],
    plan: dict[str, Any],
    spec: str | ListSpec,
    rows: UrlRows,
    listed: ListCounts | None,
    records: list[dict[str, Any]],
) -> dict[str, Any]:
    """The content of ``manifest.json``; every column of its counts adds up."""
    kept: Counter[str] = Counter()
    left_out: dict[str, Counter[str]] = {}
    for record in records:
        kept.update(record["kept"])
        for kind, reasons in record["left_out"].items():
            left_out.setdefault(kind, Counter()).update(reasons)
    raw = Counter({kind: kept[kind] + sum(left_out.get(kind, {}).values()) for kind in kept})
    for kind, reasons in left_out.items():
        raw[kind] = kept[kind] + sum(reasons.values())
    if raw["image"] != rows.total:
        raise AssertionError(f"{rows.total} rows, but {raw['image']} accounted for")
    before = 0
    if listed is not None:
        before = listed.malformed + listed.without_url + listed.empty_captions
        _add(raw, left_out, "image", "malformed", listed.malformed)
        _add(raw, left_out, "image", "bad_url", listed.without_url)
        _add(raw, left_out, "caption", "empty_text", listed.empty_captions)
    shards = [record["shard"] for record in records]
    counts = {
        f"{kind}s": {
            "raw": raw[kind],
            "kept": kept[kind],
            "filtered": {},
            "rejected": dict(sorted(left_out.get(kind, Counter()).items())),
        }
        for kind in ("image", "caption", "object", "region")
    }
    return {
        **info,
        "schema_version": SIZES_KNOWN,
        "inputs": [spec.path.name if isinstance(spec, ListSpec) else spec],
        "notes": [],
        "counts": counts,
        "images_without_concepts": sum(record["images_without_concepts"] for record in records),
        "rows": sum(shard["rows"] for shard in shards),
        "concepts": {granularity: kept[kind] for granularity, kind in KINDS.items()},
        "rejects": before + sum(shard["rejects"] for shard in shards),
        "input_rejects": before,
        "plan": plan,
        "shards": shards,
    }


def _add(
    raw: Counter[str], left_out: dict[str, Counter[str]], kind: str, reason: str, count: int
) -> None:
    if count:
        raw[kind] += count
        left_out.setdefault(kind, Counter())[reason] += count


def publish(
    journal: Journal,
    out: Path,
    summary: dict[str, Any],
    records: list[dict[str, Any]],
    *,
    from_list: bool,
    keep_previous: bool,
) -> None:
    """Move everything into place; may be cut off anywhere and done again.

    A folder with ``manifest.json`` is a whole manifest: it goes first and comes last.
    """
    work = journal.folder
    rejects = RejectsWriter(work)
    if from_list:
        rejects.write(pq.read_table(work / "urls-rejects.parquet"))
    for number in range(len(records)):
        rejects.write(pq.read_table(work / REJECTS_NAME.format(number)))
    rejects.close()
    if keep_previous and (out / SUMMARY_NAME).is_file():
        (out / SUMMARY_NAME).replace(work / PREVIOUS_NAME)
    (out / SUMMARY_NAME).unlink(missing_ok=True)
    names = {record["shard"]["file"] for record in records}
    for old in out.glob("manifest-*.parquet"):
        if old.name not in names:
            old.unlink()
    for name in sorted(names):
        if (work / name).is_file():
            (work / name).replace(out / name)
    (work / ALL_REJECTS).replace(out / ALL_REJECTS)
    write_croissant(out, summary, out / min(names))
    write_json(out / SUMMARY_NAME, summary, indent=2)
