"""BERT's layers, post-norm, under Hugging Face's weight names; later ones read images too.

States are one flat row of tokens [T, D], whose texts only attention tells apart: segment by segment
(:class:`.segments.SegmentCall`) or by packed kernels (:class:`.packed_attention.PackedCall`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvlm_train.model import compiled
from xvlm_train.model.config import TextConfig
from xvlm_train.model.packed_attention import Layout, PackedCall, PackedVision, packed_attention
from xvlm_train.model.segments import SegmentCall


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


class Layer(nn.Module):
    """One layer; cross-modal when ``vision_width`` is given."""

    def __init__(self, config: TextConfig, vision_width: int | None) -> None:
        super().__init__()
        self.attention = Attention(config, config.hidden)
        self.crossattention = None if vision_width is None else Attention(config, vision_width)
        self.intermediate = _Intermediate(config)
        self.output = _Output(config.intermediate, config)
        self.compiled = False

    def forward(self, states: Tensor, call: SegmentCall | PackedCall) -> Tensor:
        """Flat states [T, D] to the states of the queries."""
        if isinstance(call, PackedCall):
            if self.compiled:
                return compiled.packed_layer(self, states, *call)
            return self.on_packed(states, *call)
        states = self.attention.to_itself(states, call)
        if self.crossattention is not None:
            states = self.crossattention.to_vision(states, call)
        if self.compiled:
            return compiled.feed_forward(self.intermediate, self.output, states)
        return self.output(self.intermediate(states), states)

    def on_packed(
        self,
        states: Tensor,
        texts: Layout,
        vision: PackedVision | None,
        picked: Tensor | None,
        seeds: Tensor,
    ) -> Tensor:
        """:meth:`forward` of texts that are packed; see :class:`PackedCall`."""
        states = self.attention.packed_to_itself(states, texts, picked, seeds[:1])
        if self.crossattention is not None:
            assert vision is not None
            states = self.crossattention.packed_to_vision(states, vision, seeds[1:])
        new: Tensor = self.output(self.intermediate(states), states)
        return new


class Attention(nn.Module):
    """Multi-head attention with its output projection, residual and LayerNorm."""

    def __init__(self, config: TextConfig, context_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.self = _Projections(config.hidden, context_width)
        self.output = _Output(config.hidden, config)

    def to_itself(self, states: Tensor, call: SegmentCall) -> Tensor:
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

    def to_vision(self, states: Tensor, call: SegmentCall) -> Tensor:
        """Texts to their views: states [T, D] to states."""
        vision = call.vision
        assert vision is not None
        queries = call.cut(self.self.query(states), call.queries)
        # One gathering of keys and values.
        weight, bias = self._keys_and_values()
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

    def packed_to_itself(
        self, states: Tensor, texts: Layout, picked: Tensor | None, seed: Tensor
    ) -> Tensor:
        """Packed texts to themselves: states [T, D] to those of the queries."""
        both = F.linear(states, *self._keys_and_values())
        if picked is not None:
            states = states.index_select(0, picked)
        queries = self.self.query(states)
        dropout = self.dropout if self.training else 0.0
        mixed = packed_attention(queries, both, None, texts, self.heads, dropout, seed)
        return self.output(mixed, states)

    def packed_to_vision(self, states: Tensor, vision: PackedVision, seed: Tensor) -> Tensor:
        """Packed texts to their views: states [T, D] to states."""
        weight, bias = self._keys_and_values()
        both = F.linear(vision.patches, weight, bias)
        own = F.linear(vision.cls, weight, bias).index_select(0, vision.views)
        queries = self.self.query(states)
        dropout = self.dropout if self.training else 0.0
        mixed = packed_attention(queries, both, own, vision.layout, self.heads, dropout, seed)
        return self.output(mixed, states)

    def _keys_and_values(self) -> tuple[Tensor, Tensor]:
        """Weight and bias that project to keys and values in one product."""
        weight = torch.cat([self.self.key.weight, self.self.value.weight])
        return weight, torch.cat([self.self.key.bias, self.self.value.bias])

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

    def forward(self, ids: Sequence[Tensor], places: Tensor | None = None) -> Tensor:
        """Flat [T, D] of ids [R, L] a segment, or of one row of ids [T] at their places [T]."""
        states = self.word_embeddings(torch.cat([part.flatten() for part in ids]))
        table = self.position_embeddings.weight + self.token_type_embeddings.weight[0]
        if places is not None:
            positions = F.embedding(places, table)
        else:
            positions = torch.cat([table[: part.shape[1]].repeat(part.shape[0], 1) for part in ids])
        return self.dropout(self.LayerNorm(states + positions))


class Heads(nn.Module):
    """What Hugging Face calls ``cls``: the prediction of masked tokens."""

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
