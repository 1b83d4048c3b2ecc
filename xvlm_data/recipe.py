"""Recipes: which manifests feed the two training streams, how they are mixed, what they hold.

A recipe is a YAML file such as ``manifests/4m.yaml``. Its ``sources`` name the manifests, by paths
relative to the recipe's own folder, and the counts to expect in them (`xvlm-data verify`); its
``streams`` say which of their texts each training stream reads, and in what proportion.

Reading is strict: an unknown or repeated key, or a stream of a source that is not there, is an
error, because a misspelt weight would otherwise change an experiment in silence.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from xvlm_data.errors import UserError

#: What is counted of a source, in the order of every table.
QUANTITIES = ("images", "captions", "objects", "regions")
#: How far a count may be from a rounded figure of the paper, and from an official one.
PAPER_TOLERANCE, OFFICIAL_TOLERANCE = 0.05, 0.01

Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Weight = Annotated[float, msgspec.Meta(gt=0)]
Name = Annotated[str, msgspec.Meta(min_length=1)]
Granularity = Literal["image", "region", "object"]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One expected count.

    Attributes:
        paper: the paper's figure, rounded as printed there.
        official: a figure of the release itself; the count is held against it where there is one.
        tolerance: how far off the count may be, as a share; by default 5 % of a paper's figure
            and 1 % of an official one.
        origin: where the figures come from.
    """

    paper: Count | None = None
    official: Count | None = None
    tolerance: Share | None = None
    origin: str = ""

    @property
    def expected(self) -> int | None:
        """The figure that a count is held against."""
        return self.paper if self.official is None else self.official

    @property
    def allowed(self) -> float:
        """The tolerance that applies."""
        if self.tolerance is not None:
            return self.tolerance
        return PAPER_TOLERANCE if self.official is None else OFFICIAL_TOLERANCE


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Expected counts of a source; what is left out is not checked."""

    images: Figure | None = None
    captions: Figure | None = None
    objects: Figure | None = None
    regions: Figure | None = None

    def items(self) -> Iterable[tuple[str, Figure | None]]:
        """(quantity, figure) in the order of :data:`QUANTITIES`."""
        return ((name, getattr(self, name)) for name in QUANTITIES)


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Expected sums over the recipe.

    Attributes:
        images: rows of all manifests.
        captions: (image, text) pairs of the image-text stream.
        annotations: boxes with texts of the multi-grained stream.
    """

    images: Figure | None = None
    captions: Figure | None = None
    annotations: Figure | None = None


class RecipeSource(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest and what it should hold.

    Attributes:
        source: the release it is built from; by default the name in the recipe.
        split: which part of the release.
        manifest: its path, relative to the recipe's folder, or a URL; by default its name.
        expect: counts of the manifest, after all rules.
        release: counts of the raw release, before any rule.
        note: what a reader of the comparison should know.
    """

    source: Name | None = None
    split: Name = "train"
    manifest: Name | None = None
    expect: Counts = Counts()
    release: Counts = Counts()
    note: str = ""


class StreamEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Texts of one source in a stream.

    Attributes:
        source: a name under ``sources``.
        granularity: which concepts are read; the others of the manifest are not seen.
        weight: share of the stream's samples, relative to the other entries; without, the natural
            share. All entries of a stream have one, or none.
        largest: of an image's concepts of the one granularity, only so many with the largest boxes.
    """

    source: Name
    granularity: Annotated[list[Granularity], msgspec.Meta(min_length=1)]
    weight: Weight | None = None
    largest: Annotated[int, msgspec.Meta(ge=1)] | None = None


class ImageText(msgspec.Struct, frozen=True, kw_only=True):
    """The image-text stream: whole images with a text each.

    Attributes:
        natural: what an entry's natural share counts: (image, text) ``pairs``, or ``images``.
        entries: where its texts come from. A region's text there describes the whole image.
    """

    natural: Literal["pairs", "images"] = "pairs"
    entries: Annotated[list[StreamEntry], msgspec.Meta(min_length=1)]


class MultiGrained(msgspec.Struct, frozen=True, kw_only=True):
    """The multi-grained stream: images with the boxes and texts of objects and regions.

    Attributes:
        natural: what an entry's natural share counts: ``images`` with such concepts, or ``pairs``.
        probability: chance that a multi-grained batch and update precede an image-text one.
        entries: where its concepts come from.
    """

    natural: Literal["pairs", "images"] = "images"
    probability: Share = 0.5
    entries: list[StreamEntry] = []


class Streams(msgspec.Struct, frozen=True, kw_only=True):
    """The two inputs of a pre-training step."""

    image_text: ImageText
    multi_grained: MultiGrained = MultiGrained()


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe; see the module.

    Attributes:
        name: what it is called.
        about: what it is.
        rules: thresholds of `xvlm-data build` that its counts are meant for, by name.
        sources: the manifests.
        streams: what training reads of them.
        totals: sums to expect.
    """

    name: Name
    about: str = ""
    rules: dict[str, float | bool] = {}
    sources: Annotated[dict[str, RecipeSource], msgspec.Meta(min_length=1)]
    streams: Streams
    totals: Totals = Totals()

    def manifest(self, name: str, folder: Path) -> str:
        """Where the manifest of a source lies, when the recipe's manifests lie in ``folder``."""
        given = self.sources[name].manifest or name
        return given if "://" in given else str(folder / given)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        UserError: missing, no YAML, an unknown key (with the nearest known one), a value of the
            wrong kind, or a stream that does not fit the sources.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: no such recipe", "give a YAML file such as 4m.yaml") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file", "a recipe is YAML") from None
    try:
        tree = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(
            f"{path}: not valid YAML ({' '.join(str(error).split())})",
            "see manifests/4m.yaml for the layout",
        ) from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a mapping of keys", "see manifests/4m.yaml for the layout")
    _check_keys(tree, Recipe, str(path), "")
    try:
        recipe = msgspec.convert(tree, Recipe)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$")
        raise UserError(
            f"{path}: {place.rstrip('`').removeprefix('.')}: {what}",
            "see manifests/4m.yaml for the layout",
        ) from None
    _check_streams(recipe, path)
    return recipe


def _check_keys(tree: Any, kind: Any, path: str, place: str) -> None:
    """Every key of ``tree`` must be one of ``kind``'s; what is of another shape is left alone."""
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    arguments = typing.get_args(kind)
    if isinstance(tree, list) and arguments:
        for index, item in enumerate(tree):
            _check_keys(item, arguments[0], path, f"{place}[{index}]")
    if not isinstance(tree, dict):
        return
    if typing.get_origin(kind) is dict:
        for key, value in tree.items():
            _check_keys(value, arguments[1], path, f"{place}.{key}")
        return
    struct = next((k for k in (kind, *arguments) if isinstance(k, type(msgspec.Struct))), None)
    if struct is None:
        return
    hints = typing.get_type_hints(struct, include_extras=True)
    for key, value in tree.items():
        if key not in hints:
            fix = nearest(str(key), hints)
            raise UserError(f"{path}: unknown key {f'{place}.{key}'.removeprefix('.')}", fix)
        _check_keys(value, hints[key], path, f"{place}.{key}")


def _check_streams(recipe: Recipe, path: Path) -> None:
    streams: dict[str, ImageText | MultiGrained] = {
        "image_text": recipe.streams.image_text,
        "multi_grained": recipe.streams.multi_grained,
    }
    for name, stream in streams.items():
        seen: set[tuple[str, str]] = set()
        place = f"{path}: streams.{name}"
        for entry in stream.entries:
            if entry.source not in recipe.sources:
                raise UserError(
                    f"{place}: no source {entry.source!r}", nearest(entry.source, recipe.sources)
                )
            for granularity in entry.granularity:
                if (entry.source, granularity) in seen:
                    raise UserError(
                        f"{place}: {entry.source} {granularity} is there twice",
                        "give it one entry; a weight says how often it is read",
                    )
                seen.add((entry.source, granularity))
            if entry.largest is not None and len(entry.granularity) > 1:
                raise UserError(
                    f"{place}: {entry.source}: largest belongs to one granularity",
                    "give each granularity an entry of its own",
                )
            if name == "multi_grained" and "image" in entry.granularity:
                raise UserError(
                    f"{place}: {entry.source}: captions have no boxes of their own",
                    "list object and region here; an image's caption comes with them",
                )
        if len({entry.weight is None for entry in stream.entries}) > 1:
            raise UserError(
                f"{place}: some entries have a weight and some have none",
                "give a weight to all of them, or to none for natural shares",
            )


def nearest(word: str, known: Mapping[str, Any] | Iterable[str]) -> str:
    """Advice for a misspelt name: near ones, or all."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is there twice is an error, and not the later one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, after a look at the keys."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)
