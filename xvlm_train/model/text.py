"""The text and the cross-modal encoder: one BERT under Hugging Face's weight names.

The first ``fusion_layer`` layers read text only; each later one has, between self-attention and
feed-forward, a cross-attention from the text to the vision tokens (paper, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xvlm_train.model.config import TextConfig
from xvlm_train.model.layers import Bert, Heads, Layer
from xvlm_train.model.packed_attention import Layout, PackedCall, PackedVision
from xvlm_train.model.segments import Segment, SegmentCall, VisionTokens


class TextEncoder(nn.Module):
    """``bert.*`` (embeddings and all layers) and ``cls.*`` (the head of masked language modelling).

    Args:
        config: sizes.
        vision_width: width of the vision tokens that the cross-modal layers attend to.
    """

    def __init__(self, config: TextConfig, vision_width: int) -> None:
        super().__init__()
        self.fusion_layer = config.fusion_layer
        self.checkpointing = False
        self.bert = Bert(config, vision_width)
        self.cls = Heads(config)
        self.apply(partial(_initialise, std=config.initializer_range))

    def compute_as(self, *, checkpointing: bool, compiled: bool) -> None:
        """How it computes; the results stay what they are."""
        self.checkpointing = checkpointing
        for layer in self.bert.encoder.layer:
            assert isinstance(layer, Layer)
            layer.compiled = compiled

    def encode(self, segments: Sequence[Segment]) -> list[Tensor]:
        """Text states [R, L, D] of each segment's ids."""
        states = self.bert.embeddings([segment.tokens for segment in segments])
        call = SegmentCall.of(segments)
        for layer in self.bert.encoder.layer[: self.fusion_layer]:
            states = self._run(layer, states, call)
        return call.cut(states, call.keys)

    def fuse(
        self, segments: Sequence[Segment], vision: VisionTokens, *, share_images: bool = True
    ) -> list[Tensor]:
        """Cross-modal states of each segment, [R, Q, D] at its queries or [R, L, D].

        Args:
            segments: of text states, with their views.
            vision: the views.
            share_images: project keys and values once an image and view, not once a text.
        """
        states = torch.cat([segment.tokens.flatten(0, 1) for segment in segments])
        call = SegmentCall.of(segments, vision, share_images=share_images)
        *layers, last = self.bert.encoder.layer[self.fusion_layer :]
        for layer in layers:
            states = self._run(layer, states, call)
        pruned = call.pruned()
        return pruned.cut(self._run(last, states, pruned), pruned.queries)

    def encode_packed(self, ids: Tensor, places: Tensor, layout: Layout) -> Tensor:
        """Text states [T, D] of packed ids [T] at their places [T] in their texts."""
        states: Tensor = self.bert.embeddings([ids], places)
        seeds = self._seeds(ids.device)
        for index, layer in enumerate(self.bert.encoder.layer[: self.fusion_layer]):
            states = self._run(layer, states, PackedCall(layout, None, None, seeds[index]))
        return states

    def fuse_packed(
        self,
        states: Tensor,
        layout: Layout,
        vision: PackedVision,
        picked: Tensor,
        last: tuple[Layout, Layout],
    ) -> Tensor:
        """Cross-modal states [Q, D] of the picked ones of packed text states [T, D].

        Args:
            states: of the texts.
            layout: of the texts.
            vision: what they look at.
            picked: [Q] int64, the tokens whose states are wanted.
            last: of the picked tokens to their texts, and to what they look at.
        """
        *layers, final = self.bert.encoder.layer[self.fusion_layer :]
        *seeds, seed = self._seeds(states.device)[self.fusion_layer :]
        for layer, own in zip(layers, seeds, strict=True):
            states = self._run(layer, states, PackedCall(layout, vision, None, own))
        to_texts, to_vision = last
        vision = vision._replace(layout=to_vision)
        return self._run(final, states, PackedCall(to_texts, vision, picked, seed))

    def token_logits(self, states: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of states [..., D]; the decoder is the word embeddings."""
        head = self.cls.predictions
        table = self.bert.embeddings.word_embeddings.weight
        return F.linear(head.transform(states), table, head.bias)

    def _seeds(self, device: torch.device) -> Tensor:
        """[layers, 2] int64: of the dropout in the attention of each layer."""
        shape = (len(self.bert.encoder.layer), 2)
        if not self.training:
            return torch.zeros(shape, dtype=torch.int64, device=device)
        return torch.randint(2**31, shape, device=device)

    def _run(self, layer: nn.Module, states: Tensor, call: SegmentCall | PackedCall) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            kept: Tensor = checkpoint(layer, states, call, use_reentrant=False)
            return kept
        new: Tensor = layer(states, call)
        return new


def _initialise(module: nn.Module, std: float) -> None:
    """BERT's: normal for matrices, zero for biases and the padding token."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
