"""Attention of texts that lie one after the other, without padding, to themselves or to images.

Rows of queries of any length look at groups of keys: each text at its own tokens, or many texts at
the patches of one image, which lie in memory once. One Triton kernel each way on GPUs; elsewhere
the same in torch's own operations, padded, which is what the kernels are tested against.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, library

from xvlm_train.model import kernels

#: Most places of a row or group that fit into a program's registers.
MOST_PLACES = 256
#: Warps of a program whose keys are at most 64.
_WARPS = 4


class Layout(NamedTuple):
    """Which of R rows of queries looks at which of G groups of keys; tensors are int32."""

    query_starts: Tensor
    """[R]: first query of each row."""
    query_lengths: Tensor
    """[R]"""
    key_starts: Tensor
    """[G]: first key of each group."""
    key_lengths: Tensor
    """[G], a row's own first key not counted."""
    groups: Tensor
    """[R]: the group that each row looks at."""
    order: Tensor
    """[R]: rows by group."""
    row_starts: Tensor
    """[G + 1]: where the rows of each group begin in ``order``."""
    most_queries: int
    """At least the longest row."""
    most_keys: int
    """At least the longest group, with the row's own first key."""
    mask: Tensor | None = None
    """[V, K] uint8: 1 for keys that a view may see; none: all may be seen."""
    mask_rows: Tensor | None = None
    """[R]: the view of each row."""


class PackedVision(NamedTuple):
    """What packed texts look at."""

    patches: Tensor
    """[I * N, C]."""
    cls: Tensor
    """[V, C] of all views."""
    views: Tensor
    """[R] int64: the view of each row."""
    layout: Layout
    """Rows of queries, and images as groups of keys."""


class PackedCall(NamedTuple):
    """One call of a layer on packed texts."""

    texts: Layout
    """Texts as rows of queries and as groups of keys."""
    vision: PackedVision | None
    picked: Tensor | None
    """[Q] int64: the queries among the tokens; none: all tokens."""
    seeds: Tensor
    """[2] int64 on the device, of the dropout of either attention."""


def usable(width: int, heads: int, layout: Layout, kind: torch.dtype) -> bool:
    """Whether the kernels take heads of this width and rows this long."""
    head = width // heads
    return (
        kind != torch.float64
        and head >= 16
        and head & (head - 1) == 0
        and max(layout.most_queries, layout.most_keys) <= MOST_PLACES
    )


def packed_attention(
    q: Tensor,
    kv: Tensor,
    first: Tensor | None,
    layout: Layout,
    heads: int,
    dropout: float,
    seed: Tensor,
) -> Tensor:
    """Multi-head attention of each row's queries to its group's keys.

    Args:
        q: [T, D] queries.
        kv: [S, 2D] keys and values.
        first: [R, 2D] key and value that each row sees before those of its group, or none.
        layout: rows and groups.
        heads: that divide D.
        dropout: of the weights; 0 outside of training.
        seed: [1] int64 on the device: of the dropout, in the kernels.

    Returns:
        [T, D]; zero where no row has a query.
    """
    if kernels.run_on(q) and usable(q.shape[1], heads, layout, q.dtype):
        mixed: Tensor = _forward(
            q.contiguous(),
            kv.contiguous(),
            None if first is None else first.contiguous(),
            [*layout[:7]],
            layout.most_queries,
            layout.most_keys,
            layout.mask,
            layout.mask_rows,
            heads,
            dropout,
            seed,
        )
        return mixed
    return _padded(q, kv, first, layout, heads, dropout)


def _padded(
    q: Tensor, kv: Tensor, first: Tensor | None, layout: Layout, heads: int, dropout: float
) -> Tensor:
    """The same with every row padded to the longest."""
    groups = layout.groups.long()
    places, real = _places(layout.query_starts, layout.query_lengths, layout.most_queries, len(q))
    most_keys = layout.most_keys - (first is not None)
    starts, lengths = layout.key_starts[groups], layout.key_lengths[groups]
    key_places, visible = _places(starts, lengths, most_keys, len(kv))
    both = kv[key_places]
    if first is not None:
        both = torch.cat([first[:, None], both], 1)
        visible = F.pad(visible, (1, 0), value=True)
    if layout.mask is not None:
        assert layout.mask_rows is not None
        visible = visible & layout.mask[layout.mask_rows.long(), : layout.most_keys].bool()

    def split(states: Tensor) -> Tensor:
        return states.unflatten(-1, (heads, -1)).transpose(1, 2)

    keys, values = both.chunk(2, dim=-1)
    mixed = F.scaled_dot_product_attention(
        split(q[places]), split(keys), split(values), visible[:, None, None], dropout
    )
    mixed = mixed.transpose(1, 2).flatten(2) * real[..., None]
    return torch.zeros_like(q).index_add(0, places.flatten(), mixed.flatten(0, 1).to(q.dtype))


def _places(starts: Tensor, lengths: Tensor, most: int, end: int) -> tuple[Tensor, Tensor]:
    """[R, most] int64 the places of each row, and which of them it has."""
    step = torch.arange(most, device=starts.device)
    return (starts.long()[:, None] + step).clamp(max=end - 1), step < lengths[:, None]


@library.custom_op("xvlm::packed_attention", mutates_args=())
def _forward(
    q: Tensor,
    kv: Tensor,
    first: Tensor | None,
    layout: list[Tensor],
    most_queries: int,
    most_keys: int,
    mask: Tensor | None,
    mask_rows: Tensor | None,
    heads: int,
    dropout: float,
    seed: Tensor,
) -> Tensor:
    from xvlm_train.model import packed_kernels

    mixed = torch.zeros_like(q)
    packed_kernels.forward[(len(layout[2]), heads)](
        q,
        kv,
        first,
        mask,
        seed,
        mixed,
        *_starts(layout),
        mask_rows,
        **_constants(q, first, mask, most_queries, most_keys, heads, dropout),
    )
    return mixed


@library.custom_op("xvlm::packed_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    q: Tensor,
    kv: Tensor,
    first: Tensor | None,
    layout: list[Tensor],
    most_queries: int,
    most_keys: int,
    mask: Tensor | None,
    mask_rows: Tensor | None,
    heads: int,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    from xvlm_train.model import packed_kernels

    of_q, of_kv = torch.zeros_like(q), torch.zeros_like(kv)
    of_first = q.new_empty(0) if first is None else torch.empty_like(first)
    packed_kernels.backward[(len(layout[2]), heads)](
        gradient.contiguous(),
        q,
        kv,
        first,
        mask,
        seed,
        of_q,
        of_kv,
        of_first,
        *_starts(layout),
        mask_rows,
        **_constants(q, first, mask, most_queries, most_keys, heads, dropout),
    )
    return of_q, of_kv, of_first


@_forward.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q)


@_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, kv: Tensor, first: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    of_first = q.new_empty(0) if first is None else torch.empty_like(first)
    return torch.empty_like(q), torch.empty_like(kv), of_first


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, kv, first, layout, *sizes, mask, mask_rows, heads, dropout, seed = inputs
    ctx.sizes, ctx.heads, ctx.dropout = sizes, heads, dropout
    ctx.save_for_backward(q, kv, first, mask, mask_rows, seed, *layout)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    q, kv, first, mask, mask_rows, seed, *layout = ctx.saved_tensors
    of_q, of_kv, of_first = _backward(
        gradient, q, kv, first, layout, *ctx.sizes, mask, mask_rows, ctx.heads, ctx.dropout, seed
    )
    nothing = [None] * len(layout)
    rest = [None] * 7
    return (of_q, of_kv, None if first is None else of_first, nothing, *rest)


_forward.register_autograd(_differentiate, setup_context=_remember)


def _starts(layout: list[Tensor]) -> list[Tensor]:
    """What the kernels read of a layout, in their order."""
    query_starts, query_lengths, key_starts, key_lengths, _, order, row_starts = layout
    return [query_starts, query_lengths, key_starts, key_lengths, order, row_starts]


def _constants(
    q: Tensor,
    first: Tensor | None,
    mask: Tensor | None,
    most_queries: int,
    most_keys: int,
    heads: int,
    dropout: float,
) -> dict[str, Any]:
    head = q.shape[1] // heads
    return {
        "scale": head**-0.5,
        "dropout": dropout,
        "HEADS": heads,
        "HEAD": head,
        "BLOCK_Q": _block(most_queries),
        "BLOCK_K": _block(most_keys),
        "FIRST": int(first is not None),
        "MASKED": mask is not None,
        "MASK_WIDTH": 0 if mask is None else mask.shape[1],
        "DROPOUT": dropout > 0,
        # Reduced float32 would be coarser than what torch's own products do.
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "num_warps": _WARPS if most_keys <= 64 else 8,
    }


def _block(places: int) -> int:
    return max(16, 1 << (places - 1).bit_length())
