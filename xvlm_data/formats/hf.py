"""A manifest that holds all its pictures, with a dataset card: what a hub repository wants.

It is a manifest still, which `xvlm-data` and `xvlm-train` read; and a Hugging Face data set, since
the footers have the features and ``README.md`` says which files are which split.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from xvlm_data.formats.pictures import picture
from xvlm_data.formats.staging import Exported, OnBroken
from xvlm_data.images.decode import ImageError
from xvlm_data.manifest import Manifest, Shard
from xvlm_data.publish.card import write_card
from xvlm_data.schema import FIELDS
from xvlm_data.verbs.choose import Advance
from xvlm_data.verbs.derive import Derivation, Step, row_groups

#: Rows whose pictures are in memory at once.
_ROWS = 64


def export_hf(
    manifest: Manifest,
    out: Path,
    *,
    on_broken: OnBroken = "refuse",
    threads: int = 4,
    advance: Advance = lambda rows: None,
) -> Exported:
    """Write a manifest with every picture in it, its dataset card and its Croissant description.

    Args:
        manifest: written; embedded pictures are copied byte for byte.
        out: a new folder.
        on_broken: what to do about pictures that cannot be read.
        threads: that read pictures.
        advance: told of each row.

    Raises:
        UserError: something lies at ``out``; or a picture is missing or broken.
        ManifestError: a file of the manifest is damaged.
    """
    done = Exported()
    step = Step("export", {"to": "hf"}, [manifest], reason="broken_image")
    with ThreadPoolExecutor(threads) as pool, Derivation(out, step) as derivation:
        for number, group, _, shard in row_groups(manifest):
            table = manifest.read_row_group(number, group)
            for start in range(0, len(table), _ROWS):
                rows = _embedded(table.slice(start, _ROWS), pool, done, on_broken)
                derivation.write(rows, _without_root(shard))
                advance(min(_ROWS, len(table) - start))
        summary = derivation.summary
    told = summary()
    write_card(out, told)
    done.images = told["rows"]
    done.concepts.update(told["concepts"])
    return done


def _without_root(shard: Shard) -> Shard:
    return replace(shard, info=shard.info | {"image_root": None})


def _embedded(
    rows: pa.Table, pool: ThreadPoolExecutor, done: Exported, on_broken: OnBroken
) -> pa.Table:
    """Rows with the bytes of their pictures, and names of files in the place of paths."""
    cells = rows.select(["id", "image", "width", "height"]).to_pylist()
    keep, images, widths, heights = [], [], [], []
    found = pool.map(_try, cells)
    for place, (cell, result) in enumerate(zip(cells, found, strict=True)):
        if isinstance(result, ImageError):
            done.broken(cell, result, on_broken)
            continue
        data, name, width, height = result
        keep.append(place)
        images.append({"bytes": data, "path": name})
        widths.append(width)
        heights.append(height)
    table = rows.take(pa.array(keep, pa.int64()))
    columns = {
        "image": pa.array(images, FIELDS.field("image").type),
        "width": pa.array(widths, pa.int32()),
        "height": pa.array(heights, pa.int32()),
    }
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def _try(cell: dict[str, Any]) -> tuple[bytes, str, int, int] | ImageError:
    # Other writers say null where a size is not known; ours say 0.
    width, height = cell["width"] or 0, cell["height"] or 0
    try:
        found = picture(cell["image"] or {}, width, height)
    except ImageError as error:
        return error
    name = str(cell["id"]).replace("/", "_") + f".{found.extension}"
    return found.data, name, found.width, found.height
