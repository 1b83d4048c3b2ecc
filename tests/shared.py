"""The one place that knows of the shared reference material: real excerpts and parity tensors.

It lies beside the checkout and is never part of the repository; tests that need it skip without it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_path(relative: str) -> Path:
    """The path of a shared file or folder; skips the calling test when it is not there."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs ../shared/{relative}")
    return path
