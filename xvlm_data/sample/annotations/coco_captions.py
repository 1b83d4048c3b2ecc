"""COCO's captions: in the order of the official file, and image by image in Karpathy's."""

from __future__ import annotations

import json
import re

import numpy as np

from xvlm_data.sample.annotations import words
from xvlm_data.sample.annotations.boxes import choose_fates, invalid_shares
from xvlm_data.sample.annotations.chance import Numbers, Permutation, block_random, keys_of
from xvlm_data.sample.annotations.coco_images import CAPTIONS, KARPATHY, PARTS, CocoImages
from xvlm_data.sample.annotations.coco_json import ANNOTATION_ID_PRIME, COMPACT, MALFORMED_CAPTIONS
from xvlm_data.sample.annotations.files import Block
from xvlm_data.sample.annotations.plan import ids_for, spoilt
from xvlm_data.sample.annotations.truth import Fate, Tally, without_image


def _caption_image(images: CocoImages, part: int, captions: Numbers) -> Numbers:
    """The image of each caption of a part: five an image, and a few have one or more besides."""
    count = images.parts[part]
    scatter = Permutation.of(images.request.seed, f"coco/{PARTS[part]}/sixth", count)
    return np.where(
        captions < CAPTIONS * count, captions // CAPTIONS, scatter[captions % count]
    ) + images.before(part)


def _caption_texts(images: CocoImages, part: int, captions: Numbers) -> list[str]:
    return words.captions(keys_of(images.request.seed, f"coco/{PARTS[part]}/captions", captions))


def _caption_ids(images: CocoImages, part: int, captions: Numbers) -> Numbers:
    sizes = [images.captions(part) for part in range(len(PARTS))]
    ids = ids_for(sum(sizes), images.request.seed, "coco/full/captions", ANNOTATION_ID_PRIME)
    return ids.of_all(captions + part * sizes[0])


def caption_block(images: CocoImages, part: int, first: int, stop: int) -> Block:
    """Records of ``captions_*.json``: those of one image are far apart."""
    request = images.request
    total = images.captions(part)
    captions = Permutation.of(request.seed, f"coco/{PARTS[part]}/captions", total)[
        np.arange(first, stop)
    ]
    numbers = _caption_image(images, part, captions)
    random = block_random(request.seed, f"coco/{PARTS[part]}/caption fates", first)
    fates = choose_fates(
        random,
        len(captions),
        invalid_shares(request.invalid, Fate.EMPTY_TEXT, Fate.UNKNOWN_IMAGE, Fate.MALFORMED),
    )
    said = _caption_texts(images, part, captions)
    for row in np.flatnonzero(fates == Fate.EMPTY_TEXT).tolist():
        said[row] = ("", " ", "\n", "\t ")[row % 4]
    image_ids = images.stated_ids(random, numbers, fates)
    texts = [
        f'{{"image_id": {image},"id": {id_},"caption": {words.quoted(text)}}}'
        for image, id_, text in zip(
            image_ids.tolist(), _caption_ids(images, part, captions).tolist(), said, strict=True
        )
    ]
    spoilt(texts, fates, MALFORMED_CAPTIONS, COMPACT)
    tally = Tally()
    lost = images.fates(numbers) == Fate.MALFORMED
    images.tally(tally, "caption", part, numbers, without_image(fates, lost))
    return Block(",".join(texts).encode(), tally)


def karpathy_block(images: CocoImages, first: int, stop: int) -> Block:
    """Records of ``dataset_coco.json``: five captions of each image, with their tokens."""
    numbers = Permutation.of(images.request.seed, "coco/karpathy", images.count)[
        np.arange(first, stop)
    ]
    said: dict[int, list[tuple[int, str]]] = {}
    for part in range(len(PARTS)):
        before = images.before(part)
        inside = numbers[(numbers >= before) & (numbers < before + images.parts[part])]
        captions = ((inside - before)[:, None] * CAPTIONS + np.arange(CAPTIONS)).ravel()
        pairs = zip(
            _caption_ids(images, part, captions).tolist(),
            _caption_texts(images, part, captions),
            strict=True,
        )
        for number, *five in zip(inside.tolist(), *[pairs] * CAPTIONS, strict=True):
            said[number] = five
    records = []
    for running, (number, cocoid, split) in enumerate(
        zip(
            numbers.tolist(),
            images.ids(numbers).tolist(),
            images.karpathy(numbers).tolist(),
            strict=True,
        ),
        first,
    ):
        filepath = "val2014" if split else "train2014"
        sentences = [
            {
                "tokens": re.findall(r"\w+", text.lower()),
                "raw": text,
                "imgid": running,
                "sentid": id_,
            }
            for id_, text in said[number]
        ]
        records.append(
            {
                "filepath": filepath,
                "sentids": [id_ for id_, _ in said[number]],
                "filename": f"COCO_{filepath}_{cocoid:012d}.jpg",
                "imgid": running,
                "split": KARPATHY[split],
                "sentences": sentences,
                "cocoid": cocoid,
            }
        )
    tally = Tally()
    lacking = images.fates(numbers) == Fate.MALFORMED
    for split, count in enumerate(np.bincount(images.karpathy(numbers)[lacking]).tolist()):
        tally.add("image", f"karpathy/{KARPATHY[split]}", Fate.MISSING_RECORD, count)
    return Block(json.dumps(records)[1:-1].encode(), tally)
