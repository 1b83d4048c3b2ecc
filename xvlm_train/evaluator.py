"""A model on held-out images: features for retrieval, boxes for phrases, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xvlm_train import measures
from xvlm_train.data.evaluation import EvalItem
from xvlm_train.data.tokenizer import Tokenizer
from xvlm_train.model.segments import VisionTokens
from xvlm_train.model.xvlm import XVLM

T = TypeVar("T")

#: Images encoded together, and (image, phrase) pairs fused together.
IMAGE_BATCH, PHRASE_BATCH = 32, 128


class Evaluator:
    """A model with its tokenizer, working on the model's device.

    Args:
        model: in evaluation mode, without gradients, while in use; as before afterwards.
        tokenizer: the model's own.
        max_tokens: longest text, [CLS] included.
    """

    def __init__(self, model: XVLM, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    def measure(self, items: Iterable[EvalItem]) -> dict[str, float]:
        """All measures of :mod:`xvlm_train.measures` that the items allow, and what they rest on.

        Images without caption take no part in retrieval, those without an unambiguous phrase none
        in grounding; a measure that nothing is left for is absent.
        """
        features: dict[str, list[Tensor]] = {"image": [], "text": [], "predicted": []}
        captions_of: list[int] = []
        phrases_of: list[int] = []
        boxes: list[tuple[float, float, float, float]] = []
        images = 0
        with _evaluation(self.model):
            for group in _groups(items, IMAGE_BATCH):
                tokens = self._vision_tokens(group)
                captioned = [i for i, item in enumerate(group) if item.captions]
                if captioned:
                    first = captions_of[-1] + 1 if captions_of else 0
                    features["image"].append(self.model.image_features(tokens.cls[captioned]))
                    texts = [text for i in captioned for text in group[i].captions]
                    features["text"].append(self._text_features(texts))
                    for n, i in enumerate(captioned):
                        captions_of += [first + n] * len(group[i].captions)
                features["predicted"].append(self._boxes(group, tokens))
                for i, item in enumerate(group):
                    boxes += [phrase.box for phrase in item.phrases]
                    phrases_of += [images + i] * len(item.phrases)
                images += len(group)
        values: dict[str, float] = {"images": float(images), "captions": float(len(captions_of))}
        values["phrases"] = float(len(boxes))
        device = self.model.temp.device
        if captions_of:
            values |= measures.retrieval(
                torch.cat(features["image"]),
                torch.cat(features["text"]),
                torch.tensor(captions_of, device=device),
            )
        if boxes:
            values |= measures.grounding(
                torch.cat(features["predicted"]),
                torch.tensor(boxes, device=device),
                torch.tensor(phrases_of, device=device),
            )
        return values

    def ground(self, items: Sequence[EvalItem]) -> list[Tensor]:
        """For each item the predicted boxes [P, 4] (cx, cy, w, h) of its P phrases, on the CPU."""
        found: list[Tensor] = []
        with _evaluation(self.model):
            for group in _groups(items, IMAGE_BATCH):
                boxes = self._boxes(group, self._vision_tokens(group)).cpu()
                found += boxes.split([len(item.phrases) for item in group])
        return found

    def _vision_tokens(self, group: Sequence[EvalItem]) -> VisionTokens:
        """Of whole images."""
        device = self.model.temp.device
        patches = self.model.encode_image(torch.stack([item.image for item in group]).to(device))
        everywhere = torch.ones(patches.shape[0], 1 + patches.shape[1], device=device)
        return self.model.concept_tokens(
            patches, torch.arange(len(group), device=device), everywhere
        )

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Text states [B, L, D] and mask [B, L]."""
        ids = [torch.tensor(row) for row in self.tokenizer.encode(texts, self.max_tokens)]
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        padded = pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_id)
        mask, padded = mask.to(self.model.temp.device), padded.to(self.model.temp.device)
        return self.model.encode_text(padded, mask), mask

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        parts = [self._encode(part)[0][:, 0] for part in _groups(texts, PHRASE_BATCH)]
        return self.model.text_features(torch.cat(parts))

    def _boxes(self, group: Sequence[EvalItem], tokens: VisionTokens) -> Tensor:
        """[P, 4] predicted for all phrases of the group, each with its whole image."""
        pairs = [(i, phrase.text) for i, item in enumerate(group) for phrase in item.phrases]
        found = [tokens.cls.new_zeros(0, 4, dtype=torch.float32)]
        for part in _groups(pairs, PHRASE_BATCH):
            states, mask = self._encode([text for _, text in part])
            images = torch.tensor([i for i, _ in part], device=tokens.cls.device)
            fused = self.model.fuse(states, mask, tokens[images])
            found.append(self.model.predict_boxes(fused[:, 0]))
        return torch.cat(found)


@contextmanager
def _evaluation(model: XVLM) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
