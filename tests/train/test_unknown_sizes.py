"""Training from rows without a size works; from web addresses it is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.small_manifests import boxed, jpeg, row, write
from tests.train.test_stream import SMALL, assert_equal, stream
from xvlm_data.errors import ManifestError, UserError
from xvlm_train.data.evaluation import EvalSet

ADDRESS = "http://x.example/1.jpg"


def addressed(rows: list[dict[str, Any]], first: int = 0) -> list[dict[str, Any]]:
    """The rows, those from ``first`` on without their images."""
    image = {"bytes": None, "path": ADDRESS}
    return rows[:first] + [r | {"image": image} for r in rows[first:]]


@pytest.mark.parametrize("multi_grained", [False, True])
def test_the_decoded_size_is_used(tmp_path: Path, multi_grained: bool) -> None:
    rows = boxed(8)
    known = write(tmp_path / "known.parquet", rows)
    unknown = write(tmp_path / "unknown.parquet", [r | {"width": 0, "height": 0} for r in rows])
    streams = [stream(m, multi_grained=multi_grained) for m in (known, unknown)]
    for step in range(3):
        one, other = (s.batch(step) for s in streams)
        assert_equal(one, other)
        assert not other.skipped
    items = [list(EvalSet([m], SMALL)) for m in (known, unknown)]
    assert [i.size for i in items[1]] == [i.size for i in items[0]] == [(64, 48)] * 8


@pytest.mark.parametrize("multi_grained", [False, True])
def test_web_addresses_are_refused_before_anything_is_trained(
    tmp_path: Path, multi_grained: bool
) -> None:
    good = write(tmp_path / "good.parquet", boxed(8), name="good")
    manifest = write(tmp_path / "m.parquet", addressed(boxed(8)), name="cc3m")
    for refused in (
        lambda: stream([good, manifest], multi_grained=multi_grained),
        lambda: EvalSet([good, manifest], SMALL),
    ):
        with pytest.raises(ManifestError, match=r"cc3m: its images are web.*xvlm-data download"):
            refused()
    # Downloaded ones keep their addresses beside the bytes.
    kept = [r | {"image": {"bytes": jpeg((1, 2, 3)), "path": ADDRESS}} for r in boxed(8)]
    found = stream(write(tmp_path / "kept.parquet", kept), multi_grained=multi_grained).batch(0)
    assert not found.skipped


def test_addresses_among_images_are_counted_and_told(tmp_path: Path) -> None:
    """A manifest that was put together by others, of which the first row alone is an image."""
    manifest = write(tmp_path / "m.parquet", addressed(boxed(40), first=1))
    opened = stream(manifest)
    with pytest.raises(UserError, match=r"not_downloaded.*xvlm-data download"):
        for step in range(8):
            opened.batch(step)
    other = write(tmp_path / "n.parquet", [row(1, [], image={"bytes": None, "path": "gone.jpg"})])
    with pytest.raises(UserError, match=r"missing_image.*--image-root"):
        list(EvalSet([other], SMALL))
