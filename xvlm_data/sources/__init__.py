"""The public releases we read, one module each: which files, and how they become records.

Other packages add sources of theirs by entry points of the group :data:`PLUGINS`; see
``docs/guides/new-source.md``.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

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
#: Entry points of this group are sources: a name, and ``module:object``.
PLUGINS = "xvlm_data.sources"

__all__ = ["PLUGINS", "SOURCES", "Request", "Source", "get_source", "plugins"]


def plugins() -> dict[str, EntryPoint]:
    """The sources of other installed packages, by name; a name of ours is ours."""
    found = {point.name: point for point in entry_points(group=PLUGINS)}
    return {name: found[name] for name in sorted(found) if name not in _MODULES}


def get_source(name: str) -> Source:
    """The source of that name.

    Raises:
        UserError: there is none, or the package that has it cannot be used.
    """
    if name in _MODULES:
        module, _, attribute = _MODULES[name].partition(":")
        source: Source = getattr(import_module(module), attribute or "SOURCE")
        return source
    others = plugins()
    if name not in others:
        raise UserError(f"unknown source {name!r}", f"choose from {', '.join([*SOURCES, *others])}")
    return _load(others[name])


def _load(point: EntryPoint) -> Source:
    """What an entry point names, if that is a source."""
    package = point.dist.name if point.dist is not None else point.module
    where = f"source {point.name!r} of the package {package}"
    try:
        found = point.load()
    except Exception as error:  # a package of others may fail in any way
        raise UserError(
            f"{where}: cannot be loaded ({type(error).__name__}: {error})",
            "upgrade or uninstall the package",
        ) from error
    source = found() if isinstance(found, type) else found
    if not isinstance(source, Source):
        raise UserError(f"{where}: {point.value} is no Source", "tell its authors")
    missing = [a for a in ("name", "licence") if not isinstance(getattr(source, a, None), str)]
    if missing or source.name != point.name:
        problem = f"has no {missing[0]}" if missing else f"calls itself {source.name!r}"
        raise UserError(f"{where}: {problem}", "tell its authors")
    return source
