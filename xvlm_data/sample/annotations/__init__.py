"""Annotation files of the real sizes, without images, and the truth about them.

Anyone can measure a builder with them: official layouts, realistic texts and boxes, a known share
of spoilt records. ``sizes`` says how much there is, ``chance`` makes it reproducible in any order,
``boxes`` and ``words`` make records whose fate is certain, ``truth`` counts what a builder must
find, ``files`` writes it all block by block; the modules named after sources lay it out.
"""

from __future__ import annotations

from xvlm_data.sample.annotations.plan import Request
from xvlm_data.sample.annotations.write import SOURCES, TRUTH, write_annotations

__all__ = ["SOURCES", "TRUTH", "Request", "write_annotations"]
