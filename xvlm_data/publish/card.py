"""The dataset card of a manifest: ``README.md`` as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.schema import IMAGE, OBJECT, REGION
from xvlm_data.storage import write_bytes

CARD_NAME = "README.md"
#: The hub's buckets of sizes.
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)

_COLUMNS = """\
| column | |
|---|---|
| `id`, `source`, `split` | where an image comes from |
| `image` | the picture |
| `width`, `height` | the pixels that boxes refer to |
| `caption` | the first text of the whole image, or null |
| `concepts` | every text with its `box` (centre x, centre y, width, height, in units of the \
image), `attributes` and `granularity` (image, region or object) |
"""


def write_card(folder: Path, summary: dict[str, Any]) -> None:
    """Write :data:`CARD_NAME` into the folder of a manifest, unless it has one.

    Args:
        folder: of the manifest.
        summary: content of its ``manifest.json``.
    """
    if not (folder / CARD_NAME).exists():
        write_bytes(folder / CARD_NAME, card(open_manifest(folder), summary).encode())


def card(manifest: Manifest, summary: dict[str, Any]) -> str:
    """The text of a card.

    Args:
        manifest: opened as a folder.
        summary: content of its ``manifest.json``.
    """
    name = " ".join(str(summary["name"]).split())
    front = yaml.safe_dump(_front(manifest, summary, name), sort_keys=False, allow_unicode=True)
    licence = summary.get("licence") or "unknown"
    parts = [
        f"---\n{front}---\n",
        f"# {_plain(name)}\n",
        f"{summary['rows']:,} images for multi-grained vision-language pre-training "
        "([X-VLM](https://arxiv.org/abs/2111.08276)), each with its captions, regions and "
        "objects.\n",
        _contents(summary),
        f"## Columns\n\n{_COLUMNS}",
        _usage(),
        f"## Where it comes from\n\n{_provenance(summary)}",
        f"## Licence\n\n{_plain(str(licence))}\n",
    ]
    if citation := summary.get("citation"):
        parts.append(f"## Citation\n\n```bibtex\n{str(citation).replace('```', '')}\n```\n")
    return "\n".join(parts)


def _front(manifest: Manifest, summary: dict[str, Any], name: str) -> dict[str, Any]:
    concepts = summary["concepts"]
    tasks = ["image-to-text"] if concepts.get(IMAGE) else []
    if concepts.get(OBJECT) or concepts.get(REGION):
        tasks.append("object-detection")
    files: dict[str, list[str]] = {}
    for shard in manifest.shards:
        split = re.sub(r"\W+", "_", str(shard.info.get("split") or "train"))
        files.setdefault(split, []).append(shard.url.rpartition("/")[2])
    total = len(manifest.shards)
    if len(files) == 1 and total > 1:
        files = {split: ["manifest-*.parquet"] for split in files}
    return {
        "pretty_name": name,
        "license": "other",
        "license_name": "see-below",
        "task_categories": tasks,
        "size_categories": [next((s for n, s in _SIZES if summary["rows"] < n), "100M<n<1B")],
        "tags": ["vision-language", "visual-grounding", "croissant", "x-vlm"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": paths[0] if len(paths) == 1 else paths}
                    for split, paths in files.items()
                ],
            }
        ],
    }


def _contents(summary: dict[str, Any]) -> str:
    rows = ["| | in the sources | here | left out |", "|---|---:|---:|---:|"]
    for kind, counts in (summary.get("counts") or {}).items():
        left_out = sum(counts.get("filtered", {}).values()) + sum(
            counts.get("rejected", {}).values()
        )
        rows.append(f"| {kind} | {counts['raw']:,} | {counts['kept']:,} | {left_out:,} |")
    if len(rows) == 2:
        rows = ["| | |", "|---|---:|", f"| images | {summary['rows']:,} |"]
        rows += [f"| {name} texts | {n:,} |" for name, n in summary["concepts"].items()]
    return "\n".join(rows) + "\n"


def _usage() -> str:
    return """## How to use it

```python
from datasets import load_dataset

load_dataset("<this repository>")["train"][0]["image"]
```

or, as the manifest that it is, after a download:

```python
import xvlm_data

xvlm_data.open("<folder>").draw(0)
```

```sh
xvlm-train pretrain --manifest <folder> --out runs/mine
```
"""


def _provenance(summary: dict[str, Any]) -> str:
    steps = []
    for part in summary.get("parts") or [summary]:
        options = json.dumps(part.get("options") or {}, ensure_ascii=False, sort_keys=True)
        home = f" ({part['homepage']})" if part.get("homepage") else ""
        steps.append(
            f"- {_plain(str(part.get('source')))}, {_plain(str(part.get('split')))}{home}, made by "
            f"{_plain(str(part.get('generator')))} with `{_plain(options)}`"
        )
        for step in part.get("history", []):
            told = json.dumps(step.get("options") or {}, ensure_ascii=False, sort_keys=True)
            steps.append(f"  - then {_plain(str(step.get('verb')))} `{_plain(told)}`")
    return "\n".join(steps) + "\n"


def _plain(text: str) -> str:
    """Text that cannot be markup, on one line."""
    text = " ".join(text.split()).replace("`", "'")
    return re.sub(r"([<>\[\]|])", lambda m: f"&#{ord(m.group(1))};", text)


def require_folder(manifest: str) -> Path:
    """The folder of a manifest on this machine.

    Raises:
        UserError: it is something else.
    """
    folder = Path(manifest)
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{manifest}: no folder of a manifest", "give the folder of manifest.json")
    return folder
