"""Manifests of every kind of row, for tests of what is written of them and made of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

from xvlm_data.engines import Inline
from xvlm_data.formats import command
from xvlm_data.formats.importing import ImportOptions
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.schema import WHOLE_IMAGE_BOX, manifest_schema
from xvlm_data.text import normalise_text

from .raw_releases import Silent

#: Letters of many scripts, quotes, slashes, signs that JSON escapes; no half of a surrogate pair.
texts = (
    st.text(st.characters(exclude_categories=("Cs",)), max_size=30).map(normalise_text).filter(bool)
)


@st.composite
def boxes(draw: st.DrawFn) -> list[float]:
    """(cx, cy, w, h) of boxes within the image, some as small as a ten-thousandth of it."""
    w, h = (draw(st.floats(1e-4, 1.0)) for _ in range(2))
    x, y = draw(st.floats(0, 1 - w)), draw(st.floats(0, 1 - h))
    return [x + w / 2, y + h / 2, w, h]


@st.composite
def concepts(draw: st.DrawFn) -> list[dict[str, Any]]:
    """In the order of every build: captions, regions, objects."""
    found: list[dict[str, Any]] = [
        {"box": WHOLE_IMAGE_BOX, "text": text, "attributes": [], "granularity": "image"}
        for text in draw(st.lists(texts, max_size=2))
    ]
    for granularity in ("region", "object"):
        for text in draw(st.lists(texts, max_size=3)):
            attributes = draw(st.lists(texts, max_size=2, unique=True))
            found.append(
                {
                    "box": draw(boxes()),
                    "text": text,
                    "attributes": attributes if granularity == "object" else [],
                    "granularity": granularity,
                }
            )
    return found


@st.composite
def manifest_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A few rows of one source or of several."""
    rows = []
    sources = draw(st.sampled_from([("coco",), ("coco", "vg+", "my set")]))
    for number in range(draw(st.integers(1, 3))):
        source = draw(st.sampled_from(sources))
        said = draw(concepts())
        captions = [c["text"] for c in said if c["granularity"] == "image"]
        size = (draw(st.integers(1, 60)), draw(st.integers(1, 60)))
        tail = draw(st.sampled_from(["{}", "{}", "x-{}", "a/b.{}"])).format(number + 1)
        rows.append(
            {
                "id": f"{source}/{tail}",
                "source": source,
                "split": draw(st.sampled_from(["train", "val"])),
                "image": {"bytes": encoded(size, number, draw(FORMS)), "path": None},
                "width": size[0],
                "height": size[1],
                "caption": captions[0] if captions else None,
                "concepts": said,
            }
        )
    return rows


FORMS = st.sampled_from(["JPEG", "PNG", "WEBP"])


def encoded(size: tuple[int, int], seed: int = 0, form: str = "JPEG", **save: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **save)
    return buffer.getvalue()


def write_rows(
    path: Path, rows: list[dict[str, Any]], row_group_size: int = 2, **info: Any
) -> Manifest:
    about = {"name": "made", "source": "made", "split": "train", "licence": "CC0"} | info
    table = pa.Table.from_pylist(rows, manifest_schema(about))
    pq.write_table(table, path, row_group_size=row_group_size)
    return open_manifest(path)


def import_back(form: str, folder: Path, out: Path, **options: Any) -> Manifest:
    """What `xvlm-data import` makes of a folder, in this process."""
    lines = {
        name: options.pop(name) for name in ("elements", "image_key", "paths") if name in options
    }
    command._import(
        form,
        [folder],
        out,
        ImportOptions(**{"name": "again", "embed": True} | options),
        lines,
        engine=Inline(),
        progress=Silent(),
    )
    return open_manifest(out)


def same_rows(found: Manifest, wanted: Manifest) -> None:
    """Every image byte for byte, every text, and boxes to 1e-6, whatever the order of the rows."""
    there = {row["id"]: row for row in found}
    assert sorted(there) == sorted(row["id"] for row in wanted)
    for row in wanted:
        other = there[row["id"]]
        for name in ("source", "split", "width", "height", "caption"):
            assert other[name] == row[name], name
        assert other["image"]["bytes"] == row["image"]["bytes"]
        assert len(other["concepts"]) == len(row["concepts"])
        for one, two in zip(row["concepts"], other["concepts"], strict=True):
            assert one["text"] == two["text"]
            assert one["granularity"] == two["granularity"]
            assert one["attributes"] == two["attributes"]
            np.testing.assert_allclose(one["box"], two["box"], rtol=0, atol=1e-6)
