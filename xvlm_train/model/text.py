"""The text and the cross-modal encoder: one BERT, post-norm, under Hugging Face's weight names.

The first ``fusion_layer`` layers read text only; each later one has, between self-attention and
feed-forward, a cross-attention from the text to the vision tokens (paper, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvlm_train.model.config import TextConfig


@dataclass(frozen=True, slots=True)
class VisionTokens:
    """Vision tokens [v_cls; v_1 … v_N] of R rows, whose patches belong to I <= R images.

    What is computed of a patch is computed once an image, however many rows look at it.
    """

    patches: Tensor
    """[I, N, C]."""
    image_index: Tensor
    """[R] int64: the image of each row."""
    cls: Tensor
    """[R, C]: v_cls of each row."""
    mask: Tensor
    """[R, 1+N]: the tokens that a text may attend to."""

    def __getitem__(self, rows: Tensor) -> VisionTokens:
        """Some rows, of the same images."""
        return VisionTokens(self.patches, self.image_index[rows], self.cls[rows], self.mask[rows])

    @classmethod
    def cat(cls, parts: Sequence[VisionTokens]) -> VisionTokens:
        """The rows of several, which share their images."""
        return cls(
            parts[0].patches,
            torch.cat([part.image_index for part in parts]),
            torch.cat([part.cls for part in parts]),
            torch.cat([part.mask for part in parts]),
        )

    def dense(self) -> Tensor:
        """[R, 1+N, C], patches repeated."""
        return torch.cat([self.cls.unsqueeze(1), self.patches[self.image_index]], dim=1)


class TextEncoder(nn.Module):
    """``bert.*`` (embeddings and all layers) and ``cls.*`` (the head of masked language modelling).

    Args:
        config: sizes.
        vision_width: width of the vision tokens that the cross-modal layers attend to.
    """

    def __init__(self, config: TextConfig, vision_width: int) -> None:
        super().__init__()
        self.fusion_layer = config.fusion_layer
        self.bert = Bert(config, vision_width)
        self.cls = _Heads(config)
        self.apply(partial(_initialise, std=config.initializer_range))

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Text states [B, L, D] of ids [B, L]; mask [B, L] is 1 on tokens, 0 on padding."""
        states = self.bert.embeddings(ids)
        visible = _visible(mask)
        for layer in self.bert.encoder.layer[: self.fusion_layer]:
            states = layer(states, visible)
        return states

    def fuse(self, states: Tensor, mask: Tensor, vision: VisionTokens) -> Tensor:
        """Cross-modal states [R, L, D]; each text sees its row of vision where the mask is 1."""
        visible = _visible(mask)
        for layer in self.bert.encoder.layer[self.fusion_layer :]:
            states = layer(states, visible, vision)
        return states

    def token_logits(self, states: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of states [..., D]; the decoder is the word embeddings."""
        head = self.cls.predictions
        table = self.bert.embeddings.word_embeddings.weight
        return F.linear(head.transform(states), table, head.bias)


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

    def forward(
        self, states: Tensor, visible: Tensor, vision: VisionTokens | None = None
    ) -> Tensor:
        """States [B, L, D] to states; ``visible`` is boolean, [B, 1, 1, L]."""
        states = self.attention(states, *self.attention.keys_values(states), visible)
        if self.crossattention is not None:
            assert vision is not None
            keys, values = self.crossattention.shared_keys_values(vision)
            states = self.crossattention(states, keys, values, _visible(vision.mask))
        return self.output(self.intermediate(states), states)


class Attention(nn.Module):
    """Multi-head attention with its output projection, residual and LayerNorm.

    Keys and values are projected apart from the queries, so that several texts of one image can
    share them.
    """

    def __init__(self, config: TextConfig, context_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.self = _Projections(config.hidden, context_width)
        self.output = _Output(config.hidden, config)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, [B, heads, K, D/heads] each, of context [B, K, C]."""
        return self._split(self.self.key(context)), self._split(self.self.value(context))

    def shared_keys_values(self, vision: VisionTokens) -> tuple[Tensor, Tensor]:
        """Keys and values, [R, heads, 1+N, D/heads] each; patches are projected once an image."""
        own = self.keys_values(vision.cls.unsqueeze(1))
        shared = self.keys_values(vision.patches)
        keys, values = (
            torch.cat([cls, patches.index_select(0, vision.image_index)], dim=2)
            for cls, patches in zip(own, shared, strict=True)
        )
        return keys, values

    def forward(
        self, states: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None
    ) -> Tensor:
        """New states [B, L, D]; ``visible`` is boolean and broadcasts to [B, heads, L, K]."""
        mixed = F.scaled_dot_product_attention(
            self._split(self.self.query(states)),
            keys,
            values,
            attn_mask=visible,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(mixed.transpose(1, 2).flatten(2), states)

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

    def forward(self, ids: Tensor) -> Tensor:
        states = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        states = states + self.position_embeddings.weight[: ids.shape[1]]
        return self.dropout(self.LayerNorm(states))


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
