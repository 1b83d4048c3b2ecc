"""Miniature releases of the five sources: rendered scenes whose texts are true by geometry.

``scene`` decides what there is and what is true, ``language`` says it, ``render`` draws it, the
modules named after sources lay it out as the official releases do, and ``write`` puts it on disk.
"""

from __future__ import annotations

from xvlm_data.sample.write import SOURCES, write_samples

__all__ = ["SOURCES", "write_samples"]
