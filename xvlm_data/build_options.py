"""What decides the result of a build."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from xvlm_data.images.check import Check
from xvlm_data.images.decode import Limits
from xvlm_data.rules import KEEP_ALL, Rules
from xvlm_data.sources import Source
from xvlm_data.storage import AnyPath
from xvlm_data.text import SlashedNames


@dataclass(frozen=True)
class BuildOptions:
    """Everything that decides what a build gives; stored in the manifest.

    Attributes:
        images: ``reference`` stores paths, ``embed`` the encoded bytes, ``url`` addresses.
        rules: the filters; None for the source's own: the paper's, or for evaluation sets none.
        slashed_names: form of category names with alternatives.
        exclude: evaluation files whose images are left out; None looks beside the root.
        exclude_images: evaluation images that are left out by content: manifests, or folders.
        exclude_distance: of 64 bits, how many may differ in pictures that look alike; None leaves
            looks alone, and compares bytes and pixels.
        keep_leaks: leave nothing out.
        check: how closely images are looked at.
        limits: what an image may cost.
        shard_rows: images of the release a shard, so at most as many rows a file.
        shortest_side: with ``embed``: make images smaller, to this shortest side.
        quality: of the JPEG that is then written.
    """

    images: Literal["reference", "embed", "url"] = "reference"
    rules: Rules | None = None
    slashed_names: SlashedNames = "first"
    exclude: tuple[AnyPath, ...] | None = None
    exclude_images: tuple[str, ...] = ()
    exclude_distance: int | None = None
    keep_leaks: bool = False
    check: Check = "decode"
    limits: Limits = field(default_factory=Limits)
    shard_rows: int = 5_000
    shortest_side: int | None = None
    quality: int = 90

    def rules_for(self, source: Source) -> Rules:
        """The rules of a build of this source."""
        return self.rules or (KEEP_ALL if source.evaluation else Rules())

    @property
    def compares_images(self) -> bool:
        """Whether images are held against evaluation images."""
        return bool(self.exclude_images) and not self.keep_leaks

    def to_dict(self, source: Source) -> dict[str, Any]:
        """JSON-ready, the same wherever the build runs."""
        values = asdict(self) | {"rules": asdict(self.rules_for(source))}
        values["exclude"] = None if self.exclude is None else [str(path) for path in self.exclude]
        values["exclude_images"] = list(self.exclude_images)
        return values
