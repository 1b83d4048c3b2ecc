"""What every miniature release has: pictures to draw, counts to report, ids that look real."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xvlm_data.sample.scene import SceneKey

# The real COCO, VG, ... addresses lead to other pictures: nothing here may be fetched by mistake.
HOST = "example.org"


@dataclass(frozen=True, slots=True)
class Picture:
    """A scene and the file it is drawn into."""

    path: Path
    key: SceneKey


@dataclass(slots=True)
class Release:
    """A release whose annotations are on disk and whose pictures are still to be drawn.

    ``counts`` holds per split the images, captions, regions, objects it annotates.
    """

    pictures: list[Picture] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ids:
    """Distinct numbers in 1 ... ``prime`` - 1 without visible order, for a running number.

    A multiplication modulo a prime: each id depends on its own number only, so a larger sample
    keeps the ids of a smaller one.
    """

    prime: int
    factor: int

    @classmethod
    def of(cls, seed: int, name: str, prime: int) -> Ids:
        """The ids of this seed and kind."""
        return cls(prime, random.Random(f"{seed}/ids/{name}").randrange(prime // 3, prime))

    def __getitem__(self, number: int) -> int:
        return (number + 1) * self.factor % self.prime

    def of_all(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The ids of many numbers at once."""
        return (numbers + 1) * self.factor % self.prime


def held_out(images: int) -> int:
    """The number of validation images that go with ``images`` training images."""
    return max(images // 8, 16)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with the spacing of the official files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(value, file)


def sentence(text: str) -> str:
    """``text`` with a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."
