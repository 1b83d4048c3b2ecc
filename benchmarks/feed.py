"""How fast the feed is: images a second of one core, beside a bare loop and what others run.

For every layout of a manifest (references to files, embedded bytes, embedded at a smaller size)
and both streams, the methods take turns, a batch or so each, in one process with one thread:

bare       decode, crop, resize, flip and augment as the feed does it, in a loop over encoded bytes
           and crops that were drawn before; nothing is read, no text, no batch
feed       `Stream.batch`: rows in order out of the manifest, images, texts, masks, boxes, a batch
exact      the same with `data.pixels: exact`, Pillow's pixels
published  the published image pipeline over the original JPEG bytes (benchmarks/published.py)
hf         Hugging Face `datasets`, streaming with a shuffle buffer, then the published pipeline

    python benchmarks/feed.py --photos raw/coco/train2017
    python benchmarks/feed.py --photos raw/coco/train2017 --rounds 9 --json feed.json
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import click
import cv2
import numpy as np
import published
import pyarrow as pa
import torch
from photos import Photos, make
from rich.console import Console

from xvlm_data.boxes import cxcywh_to_xyxy
from xvlm_data.console import plain_table, print_whole
from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest
from xvlm_train.data.augment import draw_operations, rand_augment
from xvlm_train.data.config import DataConfig
from xvlm_train.data.pixels import Picture
from xvlm_train.data.stream import Stream
from xvlm_train.data.tokenizer import Tokenizer, training_texts
from xvlm_train.data.transforms import Corners, crop_around, random_resized_crop

#: The goals: of the bare loop, and over the published pipeline from originals.
OF_BARE = 0.9
OVER_PUBLISHED = {"references": 1.3, "embedded": 1.3, "embedded 384": 1.9}

#: Takes some images; returns how many it took.
Turn = Callable[[], int]


@dataclass
class Method:
    """One way to get images.

    Attributes:
        name: see the module.
        turn: one turn of it.
        seconds: processor time an image, of each round.
    """

    name: str
    turn: Turn
    seconds: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Take a turn."""
        start = time.process_time()
        count = self.turn()
        self.seconds.append((time.process_time() - start) / count)

    @property
    def rate(self) -> float:
        """Images a second of a core."""
        return 1 / median(self.seconds)


@click.command()
@click.option(
    "--photos",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of JPEG photographs; each is used as often as it takes.",
)
@click.option("--images", default=2048, show_default=True, help="Rows of each manifest.")
@click.option("--rounds", default=7, show_default=True, help="Turns of each method.")
@click.option("--shortest-side", default=384, show_default=True, help="Of the smaller manifest.")
@click.option("--quality", default=90, show_default=True, help="Of its JPEG.")
@click.option("--json", "json_out", type=click.Path(path_type=Path), help="Write all figures.")
def main(
    photos: Path, images: int, rounds: int, shortest_side: int, quality: int, json_out: Path | None
) -> None:
    """Compare the feed with a bare loop, the published pipeline and `datasets`, on one core."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    console = Console(highlight=False)
    facts = _machine()
    contests = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = make(photos, Path(folder), images, shortest_side, quality)
        except UserError as error:
            raise click.ClickException(str(error)) from None
        tokenizer = Tokenizer.train(training_texts(list(made.manifests.values())[:1], 40), 2000)
        for layout in made.manifests:
            for multi_grained in (False, True):
                methods = _methods(made, layout, tokenizer, multi_grained)
                for number in range(rounds + 1):  # the first warms up
                    for method in methods:
                        method.measure()
                        if number == 0:
                            method.seconds.clear()
                stream = "multi-grained" if multi_grained else "image-text"
                contests.append(_figures(layout, stream, made.megabytes[layout], methods))
    _print(console, facts, contests)
    if json_out:
        figures = {"machine": facts, "contests": contests}
        json_out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if all(contest["passes"] for contest in contests) else 1)


def _methods(made: Photos, layout: str, tokenizer: Tokenizer, multi: bool) -> list[Method]:
    manifest = made.manifests[layout]
    return [
        Method("bare", _bare(manifest, multi)),
        Method("feed", _feed(manifest, tokenizer, multi, DataConfig(workers=0))),
        Method("exact", _feed(manifest, tokenizer, multi, DataConfig(workers=0, pixels="exact"))),
        Method("published", _published(made, multi)),
        Method("hf", _hugging_face(manifest, multi)),
    ]


def _boxes(manifest: Manifest) -> list[np.ndarray]:
    """Of some rows, the corners in [0, 1] of a random concept that has a box."""
    rng = np.random.default_rng(1)
    rows = manifest.read_row_group(0, 0, ["concepts"])["concepts"].to_pylist()[:256]
    chosen = [[c["box"] for c in row if c["granularity"] != "image"] for row in rows]
    picked = np.array([boxes[rng.integers(len(boxes))] for boxes in chosen])
    return list(cxcywh_to_xyxy(picked))


def _bare(manifest: Manifest, multi: bool) -> Turn:
    config, rng = DataConfig(), np.random.default_rng(2)
    side = config.image_size
    groups = range(len(manifest.shards[0].row_groups))
    columns = ["image", "width", "height"]
    rows = [r for g in groups for r in manifest.read_row_group(0, g, columns).to_pylist()]
    boxes = _boxes(manifest)
    plans = []
    for n, row in enumerate(rows):  # as many bytes as the feed reads: none wait in a cache
        cell, width, height = row["image"], row["width"], row["height"]
        if cell["bytes"] is None:
            cell = {"bytes": Path(cell["path"]).read_bytes(), "path": None}
        if multi:
            box = _scaled(boxes[n % len(boxes)], width, height)
            crop = crop_around(rng.random(4).tolist(), box, width, height)
        else:
            crop = random_resized_crop(rng, width, height, config.min_crop_scale)
        drawn = draw_operations(
            rng,
            count=config.randaugment_n,
            prob=config.randaugment_prob,
            geometric=not multi,
        )
        plans.append((cell, width, height, crop, rng.random() < config.flip, drawn))
    coming = cycle(plans)

    def turn() -> int:
        for _ in range(128):
            cell, width, height, crop, flip, drawn = next(coming)
            picture = Picture(cell, width, height)
            pixels = picture.square(picture.aligned(crop, side), side)
            if flip:
                pixels = np.asarray(cv2.flip(pixels, 1))
            rand_augment(pixels, drawn, config.randaugment_m)
        return 128

    return turn


def _feed(manifest: Manifest, tokenizer: Tokenizer, multi: bool, config: DataConfig) -> Turn:
    stream = Stream([manifest], config, tokenizer, (7, 7), multi_grained=multi)
    steps = iter(range(10**9))

    def turn() -> int:
        count = 0
        while count < 96:
            step = next(steps)
            count += len(stream.batch(step).images)
            stream.prefetch(step + 1)
        return count

    return turn


def _published(made: Photos, multi: bool) -> Turn:
    boxes, rng = _boxes(made.manifests["embedded"]), np.random.default_rng(3)
    coming = cycle(enumerate(made.encoded))

    def turn() -> int:
        for _ in range(64):
            n, data = next(coming)
            _transform(published.opened(data), boxes[n % len(boxes)] if multi else None, rng)
        return 64

    return turn


def _transform(image: Any, box: np.ndarray | None, rng: np.random.Generator) -> torch.Tensor:
    if box is None:
        return published.image_text(image, rng)
    width, height = image.size
    return published.multi_grained(image, _scaled(box, width, height), rng)


def _scaled(box: np.ndarray, width: int, height: int) -> Corners:
    x0, y0, x1, y1 = (box * [width, height, width, height]).tolist()
    return x0, y0, x1, y1


def _hugging_face(manifest: Manifest, multi: bool) -> Turn:
    import datasets

    datasets.disable_progress_bars()
    boxes, rng = _boxes(manifest), np.random.default_rng(4)

    def rows() -> Iterator[Any]:
        while True:
            data = datasets.load_dataset(
                "parquet", data_files=manifest.shards[0].url, split="train", streaming=True
            )
            yield from data.shuffle(seed=0, buffer_size=256)

    coming = enumerate(rows())

    def turn() -> int:
        images = []
        for _ in range(64):
            n, row = next(coming)
            box = boxes[n % len(boxes)] if multi else None
            images.append(_transform(row["image"].convert("RGB"), box, rng))
        torch.stack(images)
        return 64

    return turn


def _figures(layout: str, stream: str, megabytes: float, methods: list[Method]) -> dict[str, Any]:
    by_name = {method.name: method for method in methods}
    feed = by_name["feed"].seconds

    def over(name: str) -> float:
        return median(b / a for a, b in zip(feed, by_name[name].seconds, strict=True))

    goal = OVER_PUBLISHED.get(layout)
    ratios = {name: over(name) for name in by_name if name != "feed"}
    return {
        "layout": layout,
        "stream": stream,
        "megabytes_an_image": megabytes,
        "images_a_second": {m.name: m.rate for m in methods},
        "milliseconds": {m.name: [1000 * s for s in m.seconds] for m in methods},
        "of_bare": ratios["bare"],
        "over_published": ratios["published"],
        "over_hf": ratios["hf"],
        "over_exact": ratios["exact"],
        "goal": goal,
        "passes": ratios["bare"] >= OF_BARE and (goal is None or ratios["published"] >= goal),
    }


def _machine() -> dict[str, Any]:
    packages = ("torch", "torchvision", "pillow", "simplejpeg", "opencv-python-headless")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in (*packages, "pyarrow", "datasets")},
    }


def _print(console: Console, facts: dict[str, Any], contests: list[dict[str, Any]]) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    console.print(
        f"{facts['processor']}, {facts['cores']} cores, load {facts['load']:.1f}; "
        f"Python {facts['python']}, {versions}",
        soft_wrap=True,
    )
    names = list(contests[0]["images_a_second"])
    table = plain_table(
        "Images a second of one core",
        *(("layout", "left"), ("KB", "right"), ("stream", "left")),
        *((name, "right") for name in names),
        *(("feed: of bare", "left"), ("over published", "left"), ("over hf", "left")),
    )
    for contest in contests:
        rates = contest["images_a_second"]
        bare_mark = _mark(contest["of_bare"] >= OF_BARE)
        goal = contest["goal"]
        mark = "" if goal is None else f" {_mark(contest['over_published'] >= goal)} {goal:g}"
        table.add_row(
            contest["layout"],
            f"{contest['megabytes_an_image'] * 1000:.0f}",
            contest["stream"],
            *(f"{rates[name]:.0f}" for name in names),
            f"{contest['of_bare']:.0%} {bare_mark}",
            f"{contest['over_published']:.2f}{mark}",
            f"{contest['over_hf']:.2f}",
        )
    print_whole(console, table)
    console.print(
        "Processor time; medians over rounds, ratios within a round. bare and feed read the "
        "layout named, published the original files' bytes in every row.",
        style="dim",
        soft_wrap=True,
    )


def _mark(passes: bool) -> str:
    return "[green]≥[/green]" if passes else "[red]<[/red]"


if __name__ == "__main__":
    main()
