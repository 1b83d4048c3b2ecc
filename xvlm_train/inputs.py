"""The manifests of a run, and the streams that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xvlm_data.errors import ManifestError, UserError
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.recipe import read_recipe
from xvlm_train.config import PretrainConfig
from xvlm_train.data.entries import find_recipe, recipe_entries
from xvlm_train.data.stream import Stream
from xvlm_train.data.tokenizer import Tokenizer
from xvlm_train.engine.loop import IMAGE_TEXT, MULTI_GRAINED

#: What to do when no manifest has rows for a stream.
_WITHOUT = {
    IMAGE_TEXT: "add one that has, or use region texts: --set data.region_as_caption=true",
    MULTI_GRAINED: "add one that has, or train without: --set train.iter_perc=0",
}


@dataclass(kw_only=True)
class Inputs:
    """The manifests of a run, by what they are for; remembered in its checkpoints."""

    shared: list[str] = field(default_factory=list)
    """For both streams: rows with captions to one, rows with boxes to the other."""
    image_text: list[str] = field(default_factory=list)
    """For this stream alone, and instead of the shared ones there."""
    multi_grained: list[str] = field(default_factory=list)
    """For this stream alone, and instead of the shared ones there."""
    held_out: list[str] = field(default_factory=list)
    image_root: str | None = None


def open_inputs(inputs: Inputs) -> dict[str, list[Manifest]]:
    """The manifests of each stream, and the held-out ones.

    Raises:
        UserError: one of them is missing, damaged or empty.
    """

    def opened(specs: Sequence[str], name: str = "") -> list[Manifest]:
        if recipe := find_recipe(specs):
            entries = recipe_entries(recipe, inputs.image_root)[name]
            return list(dict.fromkeys(entry.manifest for entry in entries))
        return open_with_rows(specs, inputs.image_root)

    return {
        IMAGE_TEXT: opened(inputs.image_text or inputs.shared, IMAGE_TEXT),
        MULTI_GRAINED: opened(inputs.multi_grained or inputs.shared, MULTI_GRAINED),
        "held_out": opened(inputs.held_out),
    }


def open_with_rows(specs: Sequence[str], image_root: str | None) -> list[Manifest]:
    """Manifests, none of them empty.

    Raises:
        UserError: one of them is missing, damaged or empty.
    """
    manifests = [open_manifest(spec, image_root=image_root) for spec in specs]
    for spec, manifest in zip(specs, manifests, strict=True):
        if not len(manifest):
            raise UserError(
                f"{spec}: the manifest is empty", "see its rejects.parquet, or leave it out"
            )
    return manifests


def make_streams(
    inputs: Inputs,
    opened: dict[str, list[Manifest]],
    config: PretrainConfig,
    tokenizer: Tokenizer,
    grid: tuple[int, int],
) -> dict[str, Stream]:
    """The streams of a run by name; the multi-grained one only where a step may draw it.

    Args:
        inputs: what the user gave; a recipe among it says weights and granularities.
        opened: its manifests, of :func:`open_inputs`.
        config: of the run.
        tokenizer: of the run.
        grid: rows and columns of the image encoder's patches.

    Raises:
        UserError: no manifest has rows that a stream can use.
    """
    streams = {}
    for name in [IMAGE_TEXT] + [MULTI_GRAINED] * (config.train.iter_perc > 0):
        recipe = find_recipe(getattr(inputs, name) or inputs.shared)
        explicit = bool(recipe or getattr(inputs, name))
        entries = recipe_entries(recipe, inputs.image_root)[name] if recipe else opened[name]
        try:
            streams[name] = Stream(
                entries,
                config.data,
                tokenizer,
                grid,
                multi_grained=name == MULTI_GRAINED,
                skip_unusable=not explicit,
            )
        except UserError as error:
            # What is wrong with one manifest (damaged, still to be downloaded) has a remedy of
            # its own; another manifest, or another stream, is one only where none has the texts.
            if explicit or isinstance(error, ManifestError):
                raise
            raise UserError(error.what, _WITHOUT[name]) from None
    return streams


def fingerprints(streams: dict[str, Stream]) -> dict[str, list[str]]:
    """What the streams of a run read, and how often: what a resumed run must find again."""
    return {name: [e.fingerprint for e in stream.entries] for name, stream in streams.items()}


def probability(inputs: Inputs) -> float | None:
    """Share of multi-grained steps that the recipe of a run asks for now, if it has one."""
    recipe = find_recipe(inputs.shared)
    return read_recipe(recipe).streams.multi_grained.probability if recipe else None


def distinct(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Each manifest once, though it feeds both streams."""
    return list({tuple(s.url for s in m.shards): m for m in manifests}.values())
