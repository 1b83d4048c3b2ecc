"""The feed as a run uses it: recipes, several workers, resuming, object stores."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from click.testing import Result
from fsspec.implementations.memory import MemoryFileSystem

from tests.train.killing import measured
from tests.train.small_manifests import boxed, captioned, concept, row, tokenizer, write
from tests.train.small_runs import SETTINGS, xvlm
from tests.train.test_stream import SMALL, assert_equal
from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_train.config import TrainConfig
from xvlm_train.data.batch import Batch
from xvlm_train.data.entries import Entry, find_recipe, recipe_entries
from xvlm_train.data.loader import batches
from xvlm_train.data.order import Order
from xvlm_train.data.rows import Reads
from xvlm_train.data.stream import Stream
from xvlm_train.engine.schedule import is_multi_grained
from xvlm_train.resume import Position

TOKENIZER = tokenizer()
STEPS, RESUMED = 200, 97


def named(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [{**r, "id": f"{name}/{n}"} for n, r in enumerate(rows)]


def write_recipe(folder: Path, text: str) -> Path:
    (folder / "recipe.yaml").write_text("name: toy\n" + text)
    return folder / "recipe.yaml"


RECIPE = """
sources:
  coco: {manifest: coco.parquet}
  vg: {manifest: vg.parquet}
  cc3m: {manifest: cc3m.parquet}
streams:
  image_text:
    natural: pairs
    entries:
      - {source: coco, granularity: [image]}
      - {source: vg, granularity: [region], largest: 2}
      - {source: cc3m, granularity: [image]}
  multi_grained:
    probability: 0.5
    entries:
      - {source: coco, granularity: [object], weight: 3}
      - {source: vg, granularity: [region], weight: 1}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images with captions, regions and objects, 40 more, and 100 with captions alone."""
    folder = tmp_path_factory.mktemp("recipe")
    write(folder / "coco.parquet", named(boxed(60), "coco"), row_group_size=7, name="coco")
    write(folder / "vg.parquet", named(boxed(40, seed=1), "vg"), row_group_size=5, name="vg")
    write(folder / "cc3m.parquet", named(captioned(100), "cc3m"), row_group_size=9, name="cc3m")
    return write_recipe(folder, RECIPE)


def streams(recipe: Path, workers: int = 0, **settings: Any) -> dict[str, Stream]:
    config = replace(SMALL, image_size=16, workers=workers, **settings)
    return {
        name: Stream(entries, config, TOKENIZER, (2, 2), multi_grained=name == "multi_grained")
        for name, entries in recipe_entries(recipe).items()
    }


def checksum(batch: Batch) -> str:
    digest = hashlib.sha256()
    for item in fields(batch):
        value = getattr(batch, item.name)
        if torch.is_tensor(value):
            digest.update(f"{item.name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
        else:
            digest.update(f"{item.name} {value}".encode())
    return digest.hexdigest()


def read(recipe: Path, workers: int, first: int = 0) -> list[str]:
    """Checksums of all that a run reads from step ``first`` on, in the order it reads it."""
    made = streams(recipe, workers)
    multi = [is_multi_grained(0, step, 0.5) for step in range(STEPS)]
    loaded = {
        "image_text": batches(made["image_text"], range(first, STEPS)),
        "multi_grained": batches(made["multi_grained"], range(sum(multi[:first]), sum(multi))),
    }
    found = []
    for step in range(first, STEPS):
        names = ["multi_grained", "image_text"] if multi[step] else ["image_text"]
        found += [f"{step} {name} {checksum(next(loaded[name]))}" for name in names]
    return found


def test_200_steps_are_the_same_with_any_workers_and_from_step_97(recipe: Path) -> None:
    expected = read(recipe, workers=0)
    assert len(expected) == len(set(expected)) > 280
    assert read(recipe, workers=1) == expected
    assert read(recipe, workers=3) == expected
    after = [line for line in expected if int(line.split()[0]) >= RESUMED]
    assert read(recipe, workers=1, first=RESUMED) == after


def test_ranks_share_what_one_process_would_read(recipe: Path) -> None:
    whole = streams(recipe, batch_size=8, max_images=8, max_texts=400)
    parts = streams(recipe, batch_size=4, max_images=4, max_texts=200)
    for name in whole:
        for step in range(9):
            one = whole[name].batch(step)
            two = [parts[name].batch(step, rank, 2) for rank in range(2)]
            assert one.record_ids == [record for part in two for record in part.record_ids]
            assert torch.equal(one.images, torch.cat([part.images for part in two]))
            assert len(set(one.record_ids)) == 8


def test_a_recipe_mixes_by_weights_or_by_what_there_is(recipe: Path) -> None:
    made = streams(recipe)
    assert {s.name: s.share for s in made["multi_grained"].sources} == {"coco": 3, "vg": 1}
    # Pairs: a caption an image, and of vg's four regions an image the two largest.
    assert {s.name: s.share for s in made["image_text"].sources} == {
        "coco": 60,
        "vg": 80,
        "cc3m": 100,
    }
    counts = Counter(
        record.split("/")[0]
        for step in range(60)
        for record in made["image_text"].batch(step).record_ids
    )
    assert {name: n / 240 for name, n in counts.items()} == {
        "coco": pytest.approx(60 / 240, abs=0.01),
        "vg": pytest.approx(80 / 240, abs=0.01),
        "cc3m": pytest.approx(100 / 240, abs=0.01),
    }
    for step in range(10):
        names = [r.split("/")[0] for r in made["multi_grained"].batch(step).record_ids]
        assert Counter(names) == {"coco": 3, "vg": 1}


def texts(batch: Batch) -> list[str]:
    return [
        " ".join(TOKENIZER.tokens(ids[: int(mask.sum())].tolist())[1:]).replace(" ##", "")
        for ids, mask in zip(batch.text_ids, batch.text_mask, strict=True)
    ]


def test_a_recipe_reads_the_granularities_it_names(recipe: Path) -> None:
    made = streams(recipe, max_tokens=40, max_texts=400)
    rows = {r["id"]: r for r in [*named(boxed(60), "coco"), *named(boxed(40, seed=1), "vg")]}

    def kinds_of(record: str, text: str) -> str:
        for c in rows[record]["concepts"]:
            if text in {c["text"], *(f"{a} {c['text']}" for a in c["attributes"])}:
                return str(c["granularity"])
        raise AssertionError((record, text))

    for step in range(20):
        batch = made["multi_grained"].batch(step)
        for image, text, whole in zip(
            batch.image_index.tolist(), texts(batch), batch.whole_image.tolist(), strict=True
        ):
            record = batch.record_ids[image]
            local = "object" if record.startswith("coco") else "region"
            assert kinds_of(record, text) == ("image" if whole else local)
        batch = made["image_text"].batch(step)
        assert batch.whole_image.all()
        for record, text in zip(batch.record_ids, texts(batch), strict=True):
            if record.startswith("vg"):
                regions = [c for c in rows[record]["concepts"] if c["granularity"] == "region"]
                regions.sort(key=lambda c: -c["box"][2] * c["box"][3])
                assert text in {c["text"] for c in regions[:2]}


def test_recipes_that_cannot_work_are_told(tmp_path: Path, recipe: Path) -> None:
    assert find_recipe(["a", "b"]) is None
    assert find_recipe([str(recipe)]) == recipe
    with pytest.raises(UserError, match="names all manifests"):
        find_recipe([str(recipe), "more"])
    coco = open_manifest(recipe.parent / "cc3m.parquet")
    with pytest.raises(UserError, match=r"cc3m has no concepts of granularity region"):
        Stream([Entry(coco, Reads(("region",)))], SMALL, TOKENIZER, (2, 2), multi_grained=False)
    with pytest.raises(UserError, match="some entries have a weight"):
        entries = [Entry(coco, Reads(("image",)), weight) for weight in (1.0, None)]
        Stream(entries, SMALL, TOKENIZER, (2, 2), multi_grained=False)
    small = write(tmp_path / "s.parquet", captioned(3), name="few")
    entries = [Entry(small, Reads(("image",)), 50), Entry(coco, Reads(("image",)), 1)]
    with pytest.raises(UserError, match=r"few has 3 usable rows, and 4 in every batch"):
        Stream(entries, SMALL, TOKENIZER, (2, 2), multi_grained=False).batch(0)


def test_the_share_of_the_budget_that_is_used_is_known(recipe: Path) -> None:
    batch = streams(recipe, max_texts=12)["multi_grained"].batch(0)
    assert batch.fill == len(batch.text_ids) / 12
    full = streams(recipe)["image_text"].batch(0)
    assert full.fill == 1


def test_rows_are_mixed_nearly_as_if_all_were_shuffled() -> None:
    """The figures of docs/benchmarks.md: who meets whom in a batch, against a full shuffle."""
    counts = np.full(400, 100)  # 400 row groups of 100 rows, the first half of one kind
    for lanes, most in [(1, 4), (4, 4)]:
        order = Order(counts, 128, pool_groups=4, lanes=lanes, seed=0, stream=0)
        groups = []
        for step in range(0, order.steps, 7):
            places = order.places(step, np.arange(128))
            groups.append(order.locate(0, places)[0].tolist())
        distinct = np.mean([len(set(g)) for g in groups])
        assert most <= distinct <= 2 * most + 1
        kinds = np.array([np.mean([g < 200 for g in batch]) for batch in groups])
        assert 0.45 < kinds.mean() < 0.55
        # Of two independent halves of a pool of four groups: sqrt(0.25 / 4).
        assert 0.15 < kinds.std() < 0.3


def test_augmentation_on_the_device_is_that_of_the_workers(recipe: Path) -> None:
    settings = {"randaugment_n": 2, "randaugment_prob": 1.0}
    for name in ("image_text", "multi_grained"):
        augmented = []
        for step in range(4):  # flat images survive many an operation
            here = streams(recipe, **settings)[name].batch(step)
            there = streams(recipe, augment_on_device=True, **settings)[name].batch(step)
            assert len(there.to_augment) == len(there.record_ids)
            augmented.append(not torch.equal(here.images, there.images))
            difference = (here.to("cpu").images - there.to("cpu").images).abs()
            assert difference.mean() < 0.05
            assert torch.equal(here.masked_ids, there.masked_ids)
        assert any(augmented)


# Object stores


class Slow(MemoryFileSystem):
    """A store in memory that counts what is fetched at once."""

    protocol = "slow"
    active = 0
    most = 0
    lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("slow://", "memory://", 1)))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        with Slow.lock:
            Slow.active += 1
            Slow.most = max(Slow.most, Slow.active)
        threading.Event().wait(0.01)
        try:
            return super()._open(path, mode, **options)
        finally:
            with Slow.lock:
                Slow.active -= 1


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    fsspec.register_implementation("slow", Slow, clobber=True)
    found = fsspec.filesystem("slow")
    yield found
    found.store.clear()


def remote(store: MemoryFileSystem, tmp_path: Path, gone: int) -> tuple[Manifest, Manifest]:
    """The same rows here with bytes, and in the store with images beside the manifest."""
    rows = boxed(24)
    here = write(tmp_path / "m.parquet", rows)
    away = []
    for n, r in enumerate(rows):
        path = f"slow://images/{n}.jpg"
        if n >= gone:
            store.pipe_file(f"/images/{n}.jpg", r["image"]["bytes"])
        away.append(r | {"image": {"bytes": None, "path": path}})
    write(tmp_path / "away.parquet", away)
    store.pipe_file("/manifest.parquet", (tmp_path / "away.parquet").read_bytes())
    return here, open_manifest("slow://manifest.parquet")


def test_manifests_in_an_object_store_give_the_same_batches_many_images_at_once(
    store: MemoryFileSystem, tmp_path: Path
) -> None:
    here, away = remote(store, tmp_path, gone=0)
    one, two = (Stream([m], SMALL, TOKENIZER, (2, 2), multi_grained=True) for m in (here, away))
    Slow.most = 0
    for step in range(6):
        assert_equal(one.batch(step), two.batch(step))
        two.prefetch(step + 1)
    assert Slow.most >= 3


def test_images_that_are_gone_from_the_store_are_counted(
    store: MemoryFileSystem, tmp_path: Path
) -> None:
    _, away = remote(store, tmp_path, gone=2)
    found = Stream([away], SMALL, TOKENIZER, (2, 2), multi_grained=False)
    parts = [found.batch(step) for step in range(6)]
    assert sum((Counter(part.skipped) for part in parts), Counter()) >= Counter(missing_image=2)
    assert all(len(part.record_ids) == 4 for part in parts)


def test_row_groups_are_read_once_and_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write(tmp_path / "m.parquet", captioned(96), row_group_size=4)
    reads: list[tuple[int, str]] = []
    original = Manifest.read_row_group

    def counted(self: Manifest, shard: int, group: int, columns: Any = None) -> Any:
        reads.append((group, threading.current_thread().name))
        return original(self, shard, group, columns)

    config = replace(SMALL, pool_groups=2, lanes=2)
    source = Stream([manifest], config, TOKENIZER, (2, 2), multi_grained=False)
    monkeypatch.setattr(Manifest, "read_row_group", counted)
    for step in range(source.steps_per_epoch()):
        source.batch(step)
        source.prefetch(step + 1)
    groups = Counter(group for group, _ in reads)
    assert set(groups) == set(range(24))
    # Each once, but for those that a lane's or the epoch's edge cuts in two.
    assert sum(groups.values()) <= 24 + 3
    ahead = sum(name.startswith("row-groups") for _, name in reads)
    assert ahead >= 0.8 * len(reads)


def test_broken_concepts_do_not_empty_an_image(tmp_path: Path) -> None:
    bad = concept("?!", (0.5, 0.5, 0.5, 0.5), "region")
    good = concept("spot", (0.5, 0.5, 0.5, 0.5), "region")
    rows = [row(n, [bad, good]) for n in range(8)]
    source = Stream(
        [write(tmp_path / "m.parquet", rows)], SMALL, TOKENIZER, (2, 2), multi_grained=True
    )
    batch = source.batch(0)
    # No image without a concept, none twice.
    assert sorted(batch.image_index.tolist()) == [0, 1, 2, 3]


def test_a_place_is_found_again(recipe: Path) -> None:
    made = streams(recipe)["image_text"]
    place = Position.after(5, made, 2)
    assert place.together == 2 * made.rows_per_step(2) == 8
    assert place.batches(made, 2) == (5, 0)
    assert Position.from_state(place.as_state()) == place


def test_a_run_of_a_recipe_takes_its_share_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    small = [s for s in SETTINGS if "iter_perc" not in s]

    def run(out: str, *given: str, settings: list[str] = small) -> Result:
        chosen = [word for setting in settings for word in ("--set", setting)]
        return xvlm(
            "pretrain", "--recipe", str(recipe), "--out", str(tmp_path / out), *chosen, *given
        )

    def steps(out: str) -> list[dict[str, Any]]:
        return [line for line in measured(tmp_path / out) if "lr" in line]

    done = run("whole", "--steps", "12")
    assert done.exit_code == 0, done.stderr
    drawn = ["multi_grained/box_giou" in line for line in steps("whole")]
    assert drawn == [is_multi_grained(TrainConfig().seed, step, 0.5) for step in range(12)]
    # From a checkpoint, and with no word of the recipe: the run remembers it.
    half = tmp_path / "whole" / "checkpoints" / "step_00000009"
    done = xvlm("pretrain", "--resume", str(half), "--out", str(tmp_path / "rest"))
    assert done.exit_code == 0, done.stderr
    assert steps("rest") == steps("whole")[9:]
    # What is set has the last word, and a recipe is all manifests there are.
    assert run("both", "--steps", "3", settings=[*small, "train.iter_perc=1"]).exit_code == 0
    assert all("multi_grained/box_giou" in line for line in steps("both"))
    done = run("no", "--manifest", str(recipe.parent / "vg.parquet"))
    assert done.exit_code == 2 and "a recipe names all manifests" in done.stderr
