"""What to do about manifests that a run cannot use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train import small_manifests as small
from xvlm_data.errors import UserError
from xvlm_train.config import load_config
from xvlm_train.inputs import Inputs, make_streams, open_inputs


def refused(*specs: Path) -> str:
    inputs = Inputs(shared=[str(spec) for spec in specs])
    config = load_config("tiny", overrides=["train.iter_perc=0.5"])
    with pytest.raises(UserError) as caught:
        make_streams(inputs, open_inputs(inputs), config, small.tokenizer(), (2, 2))
    return str(caught.value)


def addressed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r | {"image": {"bytes": None, "path": "https://example.org/1.jpg"}} for r in rows]


def test_addresses_are_to_be_downloaded_and_not_replaced_by_other_texts(tmp_path: Path) -> None:
    urls, good = tmp_path / "urls.parquet", tmp_path / "good.parquet"
    small.write(urls, addressed(small.boxed(8)), name="cc3m")
    small.write(good, small.boxed(8))
    for specs in ([urls], [good, urls]):
        told = refused(*specs)
        assert told.startswith("manifest cc3m: its images are web addresses")
        assert told.endswith("with `xvlm-data download`, and take the manifest that it makes")
        assert "region_as_caption" not in told


def test_texts_that_no_manifest_has_can_be_done_without(tmp_path: Path) -> None:
    captions, boxes = tmp_path / "captions.parquet", tmp_path / "boxes.parquet"
    small.write(captions, small.captioned(8), name="captions")
    rows = [
        r | {"concepts": [c for c in r["concepts"] if c["granularity"] != "image"]}
        for r in small.boxed(8)
    ]
    small.write(boxes, rows, name="boxes")
    told = refused(boxes)
    assert told.startswith("no manifest has captions (boxes)")
    assert told.endswith("--set data.region_as_caption=true")
    told = refused(captions)
    assert told.startswith("no manifest has regions or objects (captions)")
    assert told.endswith("--set train.iter_perc=0")
