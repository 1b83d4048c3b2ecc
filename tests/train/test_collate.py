from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.small_manifests import boxed, captioned, concept, jpeg, row, tokenizer, write
from xvlm_data.boxes import cxcywh_to_xyxy
from xvlm_train.data.batch import Batch
from xvlm_train.data.collate import collate
from xvlm_train.data.config import DataConfig
from xvlm_train.data.order import generator
from xvlm_train.data.rows import COLUMNS, Row, RowGroup
from xvlm_train.data.samples import (
    BadRow,
    CaptionDraft,
    ConceptDraft,
    Draft,
    Sample,
    share_budget,
)
from xvlm_train.data.stream import Stream
from xvlm_train.data.transforms import patch_mask, to_model_boxes

GRID = (4, 4)
CONFIG = DataConfig(
    image_size=64,
    max_tokens=12,
    max_masks=3,
    batch_size=6,
    max_images=6,
    max_texts=16,
    randaugment_n=0,
    workers=0,
)
TOKENIZER = tokenizer()


def read(tmp_path: Path, rows: list[dict]) -> list[Row]:
    group = RowGroup(
        write(tmp_path / "rows.parquet", rows, row_group_size=1000).read_row_group(0, 0, COLUMNS)
    )
    return [group.row(i) for i in range(len(group))]


def rng(seed: int) -> np.random.Generator:
    return generator(seed, 0, 2, 0, 0)


def words(batch: Batch) -> list[str]:
    texts = []
    for ids, mask in zip(batch.text_ids, batch.text_mask, strict=True):
        pieces = TOKENIZER.tokens(ids[: int(mask.sum())].tolist())
        texts.append(" ".join(pieces[1:]).replace(" ##", ""))
    return texts


# The budget


class Counted(Draft):
    """An image with so many texts."""

    def __init__(self, available: int) -> None:
        self.available, self.texts = available, ["0"]

    def take(self) -> bool:
        if len(self.texts) < self.available:
            self.texts.append(str(len(self.texts)))
            return True
        return False

    def sample(self) -> Sample:
        raise AssertionError


@given(st.lists(st.integers(1, 5), min_size=1, max_size=60), st.integers(0, 200))
def test_the_budget_is_shared_evenly(available: list[int], room: int) -> None:
    drafts = [Counted(number) for number in available]
    budget = len(drafts) + room
    share_budget(drafts, budget)
    counts = [len(draft.texts) for draft in drafts]
    assert sum(counts) == min(budget, sum(available))
    least = min((n for n, has in zip(counts, available, strict=True) if n < has), default=5)
    assert all(n <= least + 1 for n in counts)


def test_the_budget_of_the_paper() -> None:
    drafts = [Counted(5) for _ in range(48)]
    share_budget(drafts, 128)
    assert sorted(len(draft.texts) for draft in drafts) == [2] * 16 + [3] * 32


# Samples of the multi-grained stream


def multi_grained_sample(only: Row, config: DataConfig, chance: np.random.Generator) -> Sample:
    """With all of its concepts that there is room for."""
    draft = ConceptDraft(only, config, chance)
    share_budget([draft], 99)
    return draft.sample()


def image_text_sample(only: Row, config: DataConfig, chance: np.random.Generator) -> Sample:
    return CaptionDraft(only, config, chance).sample()


def model_boxes(sample: Sample) -> np.ndarray:
    count = len(sample.corners)
    crops, flips = np.array([sample.crop] * count), np.array([sample.flip] * count)
    return to_model_boxes(np.array(sample.corners, np.float64), crops, flips)


def samples(tmp_path: Path, concepts: list[dict], config: DataConfig, n: int = 100) -> list[Sample]:
    (only,) = read(tmp_path, [row(0, concepts)])
    return [multi_grained_sample(only, config, rng(seed)) for seed in range(n)]


def test_concepts_are_limited_and_the_caption_is_one_of_them(tmp_path: Path) -> None:
    (only,) = read(tmp_path, boxed(1, concepts=10))
    for seed in range(100):
        sample = multi_grained_sample(only, CONFIG, rng(seed))
        assert 1 <= len(sample.texts) <= 5
        assert sum(sample.whole_image) == 1
        assert not sample.whole_image[0]
        assert model_boxes(sample)[sample.whole_image].tolist() == [[0.5, 0.5, 1, 1]]
        assert len(set(sample.texts)) == len(sample.texts)
    one = multi_grained_sample(only, replace(CONFIG, max_concepts=1), rng(0))
    assert not any(one.whole_image)


def test_every_concept_and_caption_has_its_chance(tmp_path: Path) -> None:
    concepts = [concept(f"picture {w}") for w in ("one", "two")]
    concepts += [
        concept(f"thing {w}", (0.5, 0.5, 0.3, 0.3), "region") for w in ("three", "four", "five")
    ]
    drawn = samples(tmp_path, concepts, replace(CONFIG, max_concepts=2), 200)
    assert {text for s in drawn for text in s.texts} == {c["text"] for c in concepts}
    assert {s.texts[0] for s in drawn} == {"thing three", "thing four", "thing five"}


def test_the_share_of_images_shown_whole_is_a_setting(tmp_path: Path) -> None:
    concepts = [concept("a thing", (0.5, 0.5, 0.25, 0.25), "region")]

    def whole(share: float) -> float:
        config = replace(CONFIG, concept_crop=share, flip=0)
        drawn = samples(tmp_path, concepts, config, 200)
        return sum(model_boxes(s)[0].tolist() == [0.5, 0.5, 0.25, 0.25] for s in drawn) / 200

    assert whole(0.0) == 1
    assert 0.35 < whole(0.5) < 0.65
    assert whole(1.0) < 0.05


def test_an_object_is_called_by_its_name_and_one_of_its_attributes(tmp_path: Path) -> None:
    box = (0.5, 0.5, 0.4, 0.4)
    concepts = [
        concept("Traffic light", box, "object", ["red", "Tall,"]),
        concept("dog", box, "object"),
        concept("a man", box, "region", ["ignored"]),
    ]
    texts = {text for s in samples(tmp_path, concepts, CONFIG) for text in s.texts}
    assert texts == {"red traffic light", "tall traffic light", "dog", "a man"}


def test_equal_texts_of_an_image_are_kept_once_unless_switched_off(tmp_path: Path) -> None:
    concepts = [concept("Cup.", (x, 0.5, 0.1, 0.1), "object") for x in (0.45, 0.5, 0.55)]
    concepts.append(concept("a cup", (0.5, 0.5, 0.2, 0.2), "region"))
    firsts = set()
    for sample in samples(tmp_path, concepts, CONFIG):
        assert len(sample.texts) == len(set(sample.texts))
        firsts.add(sample.texts[0])
    assert firsts == {"cup", "a cup"}
    official = samples(tmp_path, concepts, replace(CONFIG, distinct_texts=False))
    assert any(sample.texts.count("cup") == 3 for sample in official)
    # Even then no concept comes twice: each has a box of its own.
    assert all(len(set(s.corners)) == len(s.corners) for s in official)


def test_concepts_mostly_outside_the_crop_are_dropped(tmp_path: Path) -> None:
    # Crops around the small box at the left see the one at the right in some cases only.
    concepts = [
        concept("west", (0.1, 0.5, 0.1, 0.1), "region"),
        concept("east", (0.9, 0.5, 0.1, 0.1), "region"),
    ]
    counts = {1: 0, 2: 0}
    for sample in samples(tmp_path, concepts, CONFIG, 200):
        counts[len(sample.texts)] += 1
        boxes = model_boxes(sample)
        corners = cxcywh_to_xyxy(boxes)
        assert corners.min() >= -1e-6
        assert corners.max() <= 1 + 1e-6
        assert (boxes[:, 2:] > 0).all()
    assert min(counts.values()) >= 10


def test_boxes_of_a_sample_lie_on_their_pixels(tmp_path: Path) -> None:
    import io

    from PIL import Image, ImageDraw

    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    boxes = {"red": (16, 16, 48, 40), "green": (64, 8, 112, 48), "blue": (32, 56, 104, 88)}
    image = Image.new("RGB", (128, 96))
    for name, (x0, y0, x1, y1) in boxes.items():
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=colours[name])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    concepts = [
        concept(name, ((x0 + x1) / 256, (y0 + y1) / 192, (x1 - x0) / 128, (y1 - y0) / 96), "region")
        for name, (x0, y0, x1, y1) in boxes.items()
    ]
    changes = {"image": {"bytes": buffer.getvalue(), "path": None}, "width": 128, "height": 96}
    (only,) = read(tmp_path, [row(0, concepts, **changes)])
    config = replace(CONFIG, image_size=128)
    checked = 0
    for seed in range(60):
        sample = multi_grained_sample(only, config, rng(seed))
        for text, (cx, cy, w, h) in zip(sample.texts, model_boxes(sample) * 128, strict=True):
            channel = sample.pixels[:, :, list(colours).index(text)]
            ys, xs = np.nonzero(channel >= 128)
            found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            expected = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            # An enlarged pixel of the source spreads over as many of the sample.
            assert found == pytest.approx(expected, abs=2.5)
            checked += 1
    assert checked > 60


@pytest.mark.parametrize("multi_grained", [False, True])
def test_left_and_right_are_never_mirrored_unless_allowed(
    tmp_path: Path, multi_grained: bool
) -> None:
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    image[:, :32] = 255

    def mirrored(text: str, guard: bool) -> float:
        import io

        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        concepts = [concept(text), concept("whole", (0.5, 0.5, 1, 1), "region")]
        changes = {"image": {"bytes": buffer.getvalue(), "path": None}}
        (only,) = read(tmp_path, [row(0, concepts, **changes)])
        config = replace(CONFIG, flip_guard=guard, min_crop_scale=1.0)
        make = multi_grained_sample if multi_grained else image_text_sample
        number = 0
        for seed in range(60):
            pixels = make(only, config, rng(seed)).pixels
            number += pixels[:, 0, 0].mean() < pixels[:, -1, 0].mean()
        return number / 60

    assert mirrored("a cup to the LEFT.", guard=True) == 0
    assert 0.25 < mirrored("a cup to the LEFT.", guard=False) < 0.75
    assert 0.25 < mirrored("a cup", guard=True) < 0.75


def test_broken_concepts_are_counted_and_the_rest_is_used(tmp_path: Path) -> None:
    good = concept("dog", (0.5, 0.5, 0.5, 0.5), "region")
    bad = [
        concept("flat", (0.5, 0.5, 0.0, 0.5), "region"),
        concept("nan", (float("nan"), 0.5, 0.5, 0.5), "object"),
        concept("outside", (2.0, 0.5, 0.5, 0.5), "object"),
        concept("?!", (0.5, 0.5, 0.5, 0.5), "region"),
    ]
    for sample in samples(tmp_path, [good, *bad], CONFIG, 20):
        assert sample.texts == ["dog"]
        assert sample.skipped == {"concept_bad_box": 3, "concept_empty_text": 1}
    with pytest.raises(BadRow, match="no region or object"):
        samples(tmp_path, bad, CONFIG, 1)
    made = samples(tmp_path, [good, *bad], CONFIG, 2)
    pixels = np.stack([sample.pixels for sample in made])
    batch = collate(made, pixels, TOKENIZER, CONFIG, GRID, multi_grained=True)
    assert batch.skipped == {"concept_bad_box": 6, "concept_empty_text": 2}


# Batches


def test_an_image_text_batch(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.parquet", captioned(12))
    batch = Stream([manifest], CONFIG, TOKENIZER, GRID, multi_grained=False).batch(0)
    assert batch.images.shape == (6, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.to("cpu").images.dtype == torch.float32
    assert batch.image_index.tolist() == list(range(6))
    assert batch.patch_mask.shape == (6, 17)
    assert batch.patch_mask.all()
    assert batch.boxes.tolist() == [[0.5, 0.5, 1, 1]] * 6
    assert batch.whole_image.all()
    assert not batch.multi_grained
    captions = {r["id"]: r["caption"] for r in captioned(12)}
    assert words(batch) == [captions[record] for record in batch.record_ids]
    assert batch.skipped == {}


def test_a_multi_grained_batch(tmp_path: Path) -> None:
    rows = boxed(12)
    manifest = write(tmp_path / "m.parquet", rows)
    stream = Stream([manifest], CONFIG, TOKENIZER, GRID, multi_grained=True)
    texts_of = {
        r["id"]: {c["text"] for c in r["concepts"]}
        | {f"{a} {c['text']}" for c in r["concepts"] for a in c["attributes"]}
        for r in rows
    }
    for step in range(4):
        batch = stream.batch(step)
        index = batch.image_index.tolist()
        assert batch.images.shape[0] == len(batch.record_ids) == 6
        assert len(index) <= 16
        assert sorted(set(index)) == list(range(6))
        assert len(batch.boxes) == len(batch.text_ids) == len(index)
        texts = words(batch)
        for image, text in zip(index, texts, strict=True):
            assert text in texts_of[batch.record_ids[image]]
        assert len(set(zip(index, texts, strict=True))) == len(texts)  # nothing is repeated
        expected = torch.from_numpy(patch_mask(batch.boxes.numpy(), GRID))
        assert torch.equal(batch.patch_mask.bool(), expected)
        assert (batch.boxes[batch.whole_image] == torch.tensor([0.5, 0.5, 1, 1])).all()
        assert batch.multi_grained


def test_few_concepts_leave_the_budget_unspent(tmp_path: Path) -> None:
    concepts = [concept("dog", (0.5, 0.5, 0.5, 0.5), "region")]
    manifest = write(tmp_path / "m.parquet", [row(n, concepts) for n in range(6)])
    batch = Stream([manifest], CONFIG, TOKENIZER, GRID, multi_grained=True).batch(0)
    assert batch.image_index.tolist() == list(range(6))


def test_text_is_padded_to_the_longest_at_hand(tmp_path: Path) -> None:
    rows = [row(0, [concept("picture one")]), row(1, [concept("picture one two three four")])]
    manifest = write(tmp_path / "m.parquet", rows)
    batch = Stream([manifest], CONFIG, TOKENIZER, GRID, multi_grained=False).batch(0)
    lengths = dict(zip(batch.record_ids, batch.text_mask.sum(dim=1).tolist(), strict=True))
    assert lengths == {"toy/00000": 3, "toy/00001": 6}
    assert batch.text_ids.shape == batch.text_mask.shape == batch.masked_ids.shape == (2, 6)
    assert (batch.text_ids[batch.text_mask == 0] == 0).all()
    assert (batch.masked_ids[batch.text_mask == 0] == 0).all()
    assert (batch.text_ids[:, 0] == TOKENIZER.cls_id).all()
    assert batch.masked_positions.shape == batch.masked_labels.shape == (2, 3)
    used = batch.masked_labels != -100
    rows_of = torch.arange(2)[:, None].expand(2, 3)
    originals = batch.text_ids[rows_of[used], batch.masked_positions[used]]
    assert torch.equal(originals, batch.masked_labels[used])
    short = replace(CONFIG, max_tokens=4)
    cut = Stream([manifest], short, TOKENIZER, GRID, multi_grained=False).batch(0)
    assert cut.text_ids.shape == (2, 4)


def test_pixels_of_a_flat_image_survive_the_way_to_the_batch(tmp_path: Path) -> None:
    colour = (200, 100, 50)
    changes = {"image": {"bytes": jpeg(colour), "path": None}}
    manifest = write(tmp_path / "m.parquet", [row(0, [concept("picture")], **changes)])
    batch = Stream([manifest], CONFIG, TOKENIZER, GRID, multi_grained=False).batch(0)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    expected = (torch.tensor(colour) / 255 - mean) / std
    assert torch.allclose(batch.to("cpu").images.mean(dim=(0, 2, 3)), expected, atol=0.03)
