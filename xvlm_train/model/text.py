"""The text and the cross-modal encoder: one BERT, post-norm, under Hugging Face's weight names.

The first ``fusion_layer`` layers read text only; each later one has, between self-attention and
feed-forward, a cross-attention from the text to the vision tokens (paper, section 3.1).

Texts of any lengths go through the layers in one flat row of tokens, segment after segment; only
attention looks at a segment as [rows, tokens]. So all that is not attention is one matrix product
for all texts and passes, without padding between segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xvlm_train.model.compiled import feed_forward
from xvlm_train.model.config import TextConfig


@dataclass(frozen=True, slots=True)
class VisionTokens:
    """Vision tokens [v_cls; v_1 … v_N] of R views, whose patches belong to I <= R images.

    What is computed of a patch is computed once an image, however many views show it.
    """

    patches: Tensor
    """[I, N, C]."""
    image_index: Tensor
    """[R] int64: the image of each view."""
    cls: Tensor
    """[R, C]: v_cls of each view."""
    mask: Tensor | None
    """[R, 1+N]: the tokens that a text may attend to; none: all of them."""

    def __getitem__(self, rows: Tensor) -> VisionTokens:
        """Some views, of the same images."""
        mask = None if self.mask is None else self.mask[rows]
        return VisionTokens(self.patches, self.image_index[rows], self.cls[rows], mask)

    @classmethod
    def cat(cls, parts: Sequence[VisionTokens]) -> VisionTokens:
        """The views of several, which share their images."""
        masks = [part.mask for part in parts if part.mask is not None]
        if masks and len(masks) < len(parts):
            raise ValueError("some of the views have a mask and some have none")
        return cls(
            parts[0].patches,
            torch.cat([part.image_index for part in parts]),
            torch.cat([part.cls for part in parts]),
            torch.cat(masks) if masks else None,
        )

    def dense(self) -> Tensor:
        """[R, 1+N, C], patches repeated."""
        return torch.cat([self.cls.unsqueeze(1), self.patches[self.image_index]], dim=1)


@dataclass(frozen=True, slots=True)
class Segment:
    """Texts of one length: ids [R, L] for the text encoder, states [R, L, D] for the others."""

    tokens: Tensor
    """[R, L] int64 or [R, L, D]."""
    mask: Tensor | None = None
    """[R, L]: 1 on tokens; none: no text is shorter than L."""
    views: Tensor | None = None
    """[R] int64: the view each text looks at; none: text r looks at view r."""
    queries: Tensor | None = None
    """[R, Q] int64: the places whose state is wanted; none: all."""

    @property
    def wanted(self) -> int:
        """Q, the number of states of each text that are asked for."""
        return self.tokens.shape[1] if self.queries is None else self.queries.shape[1]


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
        self.cls = _Heads(config)
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
        call = _Call.of(segments)
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
        call = _Call.of(segments, vision, share_images=share_images)
        *layers, last = self.bert.encoder.layer[self.fusion_layer :]
        for layer in layers:
            states = self._run(layer, states, call)
        pruned = call.pruned()
        return pruned.cut(self._run(last, states, pruned), pruned.queries)

    def token_logits(self, states: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of states [..., D]; the decoder is the word embeddings."""
        head = self.cls.predictions
        table = self.bert.embeddings.word_embeddings.weight
        return F.linear(head.transform(states), table, head.bias)

    def _run(self, layer: nn.Module, states: Tensor, call: _Call) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            kept: Tensor = checkpoint(layer, states, call, use_reentrant=False)
            return kept
        new: Tensor = layer(states, call)
        return new


class Bert(nn.Module):
    """Embeddings and layers."""

    def __init__(self, config: TextConfig, vision_width: int) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Layers(config, vision_width)


class _Layers(nn.Module):
    def __init__(self, config: TextConfig, vision_width: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            Layer(config, vision_width if index >= config.fusion_layer else None)
            for index in range(config.layers)
        )


@dataclass(frozen=True, slots=True)
class _Call:
    """What all layers of one call share: how the flat tokens divide into segments, and masks."""

    keys: list[tuple[int, int]]
    """(texts, tokens) of each segment."""
    queries: list[tuple[int, int]]
    """(texts, places) of each segment that are queries."""
    picked: Tensor | None
    """[sum of texts * places] int64: the queries among the flat tokens; none: all tokens."""
    visible: list[Tensor | None]
    """Boolean [R, 1, 1, L] of each segment, for self-attention."""
    vision: VisionTokens | None
    share_images: bool
    views: list[Tensor | None]
    seen: list[Tensor | None]
    """Boolean [R, 1, 1, 1+N] of each segment, for cross-attention."""
    wanted: list[Tensor | None]
    """Queries of each segment, for the last layer."""

    @classmethod
    def of(
        cls,
        segments: Sequence[Segment],
        vision: VisionTokens | None = None,
        *,
        share_images: bool = True,
    ) -> _Call:
        shapes = [(segment.tokens.shape[0], segment.tokens.shape[1]) for segment in segments]
        seen: list[Tensor | None] = [None] * len(segments)
        if vision is not None and vision.mask is not None:
            masks = [
                vision.mask if segment.views is None else vision.mask.index_select(0, segment.views)
                for segment in segments
            ]
            seen = [_visible(mask) for mask in masks]
        return cls(
            keys=shapes,
            queries=shapes,
            picked=None,
            visible=[None if s.mask is None else _visible(s.mask) for s in segments],
            vision=vision,
            share_images=share_images,
            views=[segment.views for segment in segments],
            seen=seen,
            wanted=[segment.queries for segment in segments],
        )

    def pruned(self) -> _Call:
        """The same call with only the wanted places as queries."""
        if all(queries is None for queries in self.wanted):
            return self
        places, queries, start = [], [], 0
        for (rows, length), wanted in zip(self.keys, self.wanted, strict=True):
            device = next(w for w in self.wanted if w is not None).device
            first = torch.arange(start, start + rows * length, length, device=device)
            chosen = torch.arange(length, device=device).expand(rows, -1)
            chosen = chosen if wanted is None else wanted
            places.append((first[:, None] + chosen).flatten())
            queries.append((rows, chosen.shape[1]))
            start += rows * length
        return replace(self, queries=queries, picked=torch.cat(places))

    @staticmethod
    def cut(flat: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Flat [T, ...] as one [R, L, ...] a segment."""
        parts = flat.split([rows * length for rows, length in shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


class Layer(nn.Module):
    """One layer; cross-modal when ``vision_width`` is given."""

    def __init__(self, config: TextConfig, vision_width: int | None) -> None:
        super().__init__()
        self.attention = Attention(config, config.hidden)
        self.crossattention = None if vision_width is None else Attention(config, vision_width)
        self.intermediate = _Intermediate(config)
        self.output = _Output(config.intermediate, config)
        self.compiled = False

    def forward(self, states: Tensor, call: _Call) -> Tensor:
        """Flat states [T, D] to the states of the queries."""
        states = self.attention.to_itself(states, call)
        if self.crossattention is not None:
            states = self.crossattention.to_vision(states, call)
        if self.compiled:
            return feed_forward(self.intermediate, self.output, states)
        return self.output(self.intermediate(states), states)


class Attention(nn.Module):
    """Multi-head attention with its output projection, residual and LayerNorm."""

    def __init__(self, config: TextConfig, context_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.self = _Projections(config.hidden, context_width)
        self.output = _Output(config.hidden, config)

    def to_itself(self, states: Tensor, call: _Call) -> Tensor:
        """Texts to themselves: states [T, D] to those of the queries."""
        keys = call.cut(self.self.key(states), call.keys)
        values = call.cut(self.self.value(states), call.keys)
        if call.picked is not None:
            states = states.index_select(0, call.picked)
        queries = call.cut(self.self.query(states), call.queries)
        mixed = [
            self._attend(*parts) for parts in zip(queries, keys, values, call.visible, strict=True)
        ]
        return self.output(torch.cat(mixed), states)

    def to_vision(self, states: Tensor, call: _Call) -> Tensor:
        """Texts to their views: states [T, D] to states."""
        vision = call.vision
        assert vision is not None
        queries = call.cut(self.self.query(states), call.queries)
        # One product for keys and values, and one gathering of both.
        weight = torch.cat([self.self.key.weight, self.self.value.weight])
        bias = torch.cat([self.self.key.bias, self.self.value.bias])
        patches, cls = vision.patches, vision.cls
        if call.share_images:
            patches, cls = F.linear(patches, weight, bias), F.linear(cls, weight, bias)
        mixed = []
        for query, views, seen in zip(queries, call.views, call.seen, strict=True):
            index, own = vision.image_index, cls
            if views is not None:
                index, own = index.index_select(0, views), cls.index_select(0, views)
            both = torch.cat([own.unsqueeze(1), patches.index_select(0, index)], dim=1)
            if not call.share_images:
                both = F.linear(both, weight, bias)
            keys, values = both.chunk(2, dim=-1)
            mixed.append(self._attend(query, keys, values, seen))
        return self.output(torch.cat(mixed), states)

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None
    ) -> Tensor:
        """[R * Q, D] of queries [R, Q, D] and keys and values [R, K, D]."""
        mixed = F.scaled_dot_product_attention(
            self._split(queries),
            self._split(keys),
            self._split(values),
            attn_mask=visible,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1)

    def _split(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Projections(nn.Module):
    def __init__(self, hidden: int, context_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(context_width, hidden)
        self.value = nn.Linear(context_width, hidden)


class _Intermediate(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden, config.intermediate)

    def forward(self, states: Tensor) -> Tensor:
        return F.gelu(self.dense(states))


class _Output(nn.Module):
    """Projection, dropout, residual, LayerNorm."""

    def __init__(self, width: int, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, update: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(update)) + residual)


class _Embeddings(nn.Module):
    """Word + position + token type 0, normalised."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab, config.hidden, config.pad_id)
        self.position_embeddings = nn.Embedding(config.max_positions, config.hidden)
        self.token_type_embeddings = nn.Embedding(config.token_types, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Sequence[Tensor]) -> Tensor:
        """Flat [T, D] of ids [R, L] a segment."""
        states = self.word_embeddings(torch.cat([part.flatten() for part in ids]))
        table = self.position_embeddings.weight + self.token_type_embeddings.weight[0]
        places = [table[: part.shape[1]].repeat(part.shape[0], 1) for part in ids]
        return self.dropout(self.LayerNorm(states + torch.cat(places)))


class _Heads(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.predictions = _Predictions(config)


class _Predictions(nn.Module):
    """BERT's token prediction head without its (tied) decoder matrix."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.vocab))
        self.transform = _Transform(config)


class _Transform(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(states)))


def _visible(mask: Tensor) -> Tensor:
    """[B, K] of 0/1 to boolean [B, 1, 1, K]. Place 0 is always 1, so no row attends to nothing."""
    return mask.bool()[:, None, None, :]


def _initialise(module: nn.Module, std: float) -> None:
    """BERT's: normal for matrices, zero for biases and the padding token."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
