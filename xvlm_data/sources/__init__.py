"""The public releases we read, one module each: which files, and how they become records."""

from __future__ import annotations

from importlib import import_module

from xvlm_data.errors import UserError
from xvlm_data.sources.base import Request, Source

#: ``module`` or ``module:name`` of each, imported when asked for: the command line starts at once.
_MODULES = {
    "coco": "xvlm_data.sources.coco",
    "vg": "xvlm_data.sources.vg",
    "sbu": "xvlm_data.sources.sbu",
    "cc3m": "xvlm_data.sources.cc3m",
    "objects365": "xvlm_data.sources.objects365",
    "openimages": "xvlm_data.sources.openimages",
    "cc12m": "xvlm_data.sources.cc12m",
    "refcoco": "xvlm_data.sources.refcoco",
    "refcoco+": "xvlm_data.sources.refcoco:SOURCE_PLUS",
    "refcocog": "xvlm_data.sources.refcoco:SOURCE_G",
    "flickr30k": "xvlm_data.sources.flickr30k",
    "vqa": "xvlm_data.sources.vqa",
    "nlvr2": "xvlm_data.sources.nlvr2",
}
SOURCES = tuple(_MODULES)

__all__ = ["SOURCES", "Request", "Source", "get_source"]


def get_source(name: str) -> Source:
    """The source of that name.

    Raises:
        UserError: there is none.
    """
    if name not in _MODULES:
        raise UserError(f"unknown source {name!r}", f"choose from {', '.join(SOURCES)}")
    module, _, attribute = _MODULES[name].partition(":")
    source: Source = getattr(import_module(module), attribute or "SOURCE")
    return source
