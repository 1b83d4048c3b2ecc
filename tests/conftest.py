"""Settings for all tests."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import settings

# Shared machines are slow at times, and a failure in CI has to fail again when it is run again.
settings.register_profile("xvlm", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("xvlm")


# Tests run side by side, and ranks in them: threads that spin for each other would make all crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ranks of one machine find each other whatever its own name leads to.
if sys.platform.startswith("linux"):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ray: needs ray, and starts a cluster on this machine")
