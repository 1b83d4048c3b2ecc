"""A small run of the command, and its data; once for each module that wants them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train import small_manifests as small
from tests.train.small_runs import arguments, xvlm


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    small.write(folder / "boxed.parquet", small.boxed(12))
    small.write(folder / "captions.parquet", small.captioned(9), name="captions")
    small.write(folder / "val.parquet", small.boxed(5, seed=1))
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    val = str(data / "val.parquet")
    result = xvlm(*arguments(data, out, "--steps", "6", "--val-manifest", val))
    assert result.exit_code == 0, result.stderr
    return out
