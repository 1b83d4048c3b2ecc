"""What the tests of downloading share: options for a local server, and looking at results."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.inspect_manifests import concept
from xvlm_data.download.lists import ListSpec
from xvlm_data.download.options import Manners, ProductOptions
from xvlm_data.download.run import Request, download
from xvlm_data.images.decode import Limits
from xvlm_data.schema import manifest_schema

LIMITS = Limits(max_bytes=1 << 20)
PRODUCT = ProductOptions(limits=LIMITS, allow_private=True)
MANNERS = Manners(
    concurrency=64,
    per_host=64,
    retries=1,
    backoff=0.05,
    max_wait=3.0,
    connect_timeout=2.0,
    timeout=1.0,
    host_failures=0,
)


def write_list(path: Path, urls: list[str], captions: list[str] | None = None) -> ListSpec:
    captions = captions or [f"caption {n}" for n in range(len(urls))]
    pd.DataFrame({"url": urls, "text": captions}).to_parquet(path)
    return ListSpec(path, "url", "text", "web", "train")


def run(spec: str | ListSpec, out: Path, **changes: Any) -> dict[str, Any]:
    """With the options above, changed by name."""
    product = {k: changes.pop(k) for k in list(changes) if hasattr(PRODUCT, k)}
    manners = {k: changes.pop(k) for k in list(changes) if hasattr(MANNERS, k)}
    return download(
        Request(spec, out, quiet=True, **changes),
        ProductOptions(**(vars(PRODUCT) | product)),
        Manners(**(vars(MANNERS) | manners)),
    )


def kept(out: Path) -> dict[str, dict[str, Any]]:
    """Rows of the manifest by the path of their URL, read by pandas."""
    rows = pd.concat(pd.read_parquet(f) for f in sorted(out.glob("manifest-*.parquet")))
    return {"/" + r["image"]["path"].split("/", 3)[3]: r for r in rows.to_dict("records")}


def rejected(out: Path) -> dict[str, str]:
    """Reasons by the path of the URL."""
    found = {}
    for row in pd.read_parquet(out / "rejects.parquet").to_dict("records"):
        parts = row["message"].split(" ")[0].rstrip(":").split("/", 3)
        found["/" + parts[-1]] = row["reason"]
    return found


def write_urls(folder: Path, urls: list[str], **changes: Any) -> Path:
    """A manifest of URLs as ``build --images url`` writes it, in two shards."""
    folder.mkdir()
    info = {"name": "cc3m-train", "source": "cc3m", "split": "train", "licence": "see Google"}
    rows = [
        {
            "id": f"cc3m/{n}",
            "source": "cc3m",
            "split": "train",
            "image": {"bytes": None, "path": url},
            "width": 0,
            "height": 0,
            "caption": f"caption {n}",
            "concepts": [concept(f"caption {n}", "image"), concept(f"second {n}", "image")],
        }
        | changes
        for n, url in enumerate(urls)
    ]
    half = len(rows) // 2
    shards = []
    for number, part in enumerate((rows[:half], rows[half:])):
        file = folder / f"manifest-{number:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(part, manifest_schema(info)), file, row_group_size=7)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shards.append({"file": file.name, "rows": len(part), "sha256": digest})
    summary = {"name": info["name"], "schema_version": 1, "shards": shards}
    (folder / "manifest.json").write_text(json.dumps(summary))
    return folder


def folder_bytes(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.is_file()}
