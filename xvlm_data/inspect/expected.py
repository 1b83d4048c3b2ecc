"""The counts that a recipe expects of the manifests at hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from xvlm_data.errors import ManifestError, UserError
from xvlm_data.manifest import open_manifest
from xvlm_data.recipe import ImageText, Recipe, Streams, read_recipe
from xvlm_data.verify.compare import SourceReport, compare

#: Nothing is added up over streams here.
_NO_STREAMS = Streams(image_text=ImageText(entries=[]))


def expected(
    specs: Sequence[str], recipe: Path | None, *, scale: float = 1.0
) -> tuple[str | None, list[SourceReport]]:
    """Hold those of the manifests that a recipe knows against it.

    Args:
        specs: the manifests, as they were given.
        recipe: its file; without, a recipe that lies beside the manifests is taken.
        scale: expected counts are multiplied by this.

    Returns:
        The recipe's name (None where there is none) and a report for each manifest it knows.

    Raises:
        UserError: the recipe is not one, or knows none of the manifests.
    """
    if recipe is None:
        for path in _beside(specs):
            try:
                found = read_recipe(path)
            except UserError:  # some other YAML file
                continue
            if names := _known(found, path.parent, specs, by_path=True):
                return found.name, _reports(found, names, scale)
        return None, []
    found = read_recipe(recipe)
    names = _known(found, recipe.parent, specs, by_path=False)
    if not names:
        raise UserError(
            f"{recipe}: knows none of these manifests",
            f"its sources are {', '.join(found.sources)}",
        )
    return found.name, _reports(found, names, scale)


def _beside(specs: Sequence[str]) -> list[Path]:
    folders = {Path(spec).absolute().parent for spec in specs if "://" not in spec}
    return sorted(path for folder in folders for path in folder.glob("*.yaml"))


def _known(recipe: Recipe, folder: Path, specs: Sequence[str], *, by_path: bool) -> dict[str, str]:
    """Source of the recipe -> manifest: by where it should lie, else by release and split."""
    places = {Path(recipe.manifest(name, folder)).absolute(): name for name in recipe.sources}
    known: dict[str, str] = {}
    for spec in specs:
        name = places.get(Path(spec).absolute())
        if name is None and not by_path:
            info = _info(spec)
            name = next(
                (
                    name
                    for name, source in recipe.sources.items()
                    if (source.source or name, source.split)
                    == (info.get("source"), info.get("split"))
                ),
                None,
            )
        if name is not None:
            known[name] = spec
    return known


def _info(spec: str) -> dict[str, Any]:
    try:
        return open_manifest(spec).info
    except ManifestError:
        return {}


def _reports(recipe: Recipe, known: dict[str, str], scale: float) -> list[SourceReport]:
    sources = {
        name: msgspec.structs.replace(
            recipe.sources[name], manifest=spec if "://" in spec else str(Path(spec).absolute())
        )
        for name, spec in known.items()
    }
    restricted = msgspec.structs.replace(recipe, sources=sources, streams=_NO_STREAMS)
    return compare(
        restricted, Path(), scale=scale, stage=lambda *_: nullcontext(lambda rows: None)
    ).sources
