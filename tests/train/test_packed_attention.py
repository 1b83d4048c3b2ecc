"""Packed attention: the kernels against torch's own operations, and dropout against what it keeps.

Without a GPU the kernels run in Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from xvlm_train.model import packed_attention
from xvlm_train.model.packed_attention import Layout

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROOT = Path(__file__).parents[2]
HEADS, WIDTH = 2, 64
KINDS = ("itself", "images", "regions")


def test_the_kernels_say_what_torch_says() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if DEVICE == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [*KINDS, "dropout"]


def ints(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int32, device=DEVICE)


def layout_of(kind: str) -> tuple[Layout, int]:
    """Four texts, one of them empty, with a gap; and how many keys there are."""
    lengths, starts = ints([5, 0, 3, 17]), ints([0, 6, 6, 12])
    rows = ints(range(5))
    if kind == "itself":
        return Layout(starts, lengths, starts, lengths, rows[:4], rows[:4], rows, 17, 17), 29
    # Three images of nine patches; the second is looked at by nobody.
    of_images = {"mask": None, "mask_rows": None}
    if kind == "regions":
        mask = torch.randint(2, (5, 10), dtype=torch.uint8, device=DEVICE)
        mask[:, 0] = 1
        of_images = {"mask": mask, "mask_rows": ints([4, 0, 2, 2])}
    layout = Layout(
        starts,
        lengths,
        ints([0, 9, 18]),
        ints([9, 9, 9]),
        groups=ints([2, 0, 2, 2]),
        order=ints([1, 0, 2, 3]),
        row_starts=ints([0, 1, 1, 4]),
        most_queries=17,
        most_keys=10,
        **of_images,
    )
    return layout, 27


def compare(kind: str) -> None:
    torch.manual_seed(0)
    layout, keys = layout_of(kind)
    given = [torch.randn(29, WIDTH), torch.randn(keys, 2 * WIDTH)]
    if kind != "itself":
        given.append(torch.randn(4, 2 * WIDTH))
    gradient = torch.randn(29, WIDTH, device=DEVICE)
    seed = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    found = []
    for kernel in (False, True):
        inputs = [value.to(DEVICE).requires_grad_() for value in given]
        q, kv, first = inputs if len(inputs) == 3 else [*inputs, None]
        if kernel:
            assert packed_attention.usable(WIDTH, HEADS, layout, q.dtype)
            mixed = packed_attention.packed_attention(q, kv, first, layout, HEADS, 0.0, seed)
        else:
            mixed = packed_attention._padded(q, kv, first, layout, HEADS, 0.0)
        mixed.backward(gradient)
        found.append([mixed.detach(), *(value.grad for value in inputs)])
    for ours, wanted in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    assert (found[1][0][5:6] == 0).all() and (found[1][0][:5] != 0).all()
    print(kind)


def dropout() -> None:
    """Values of one number each show which weights were kept; the gradient follows from those."""
    rows, tokens, head, share = 64, 8, WIDTH // HEADS, 0.3
    starts = ints(range(0, rows * tokens, tokens))
    lengths, numbers = ints([tokens] * rows), ints(range(rows + 1))
    layout = Layout(
        starts, lengths, starts, lengths, numbers[:-1], numbers[:-1], numbers, tokens, tokens
    )
    torch.manual_seed(1)
    q, keys, values, gradient = torch.randn(4, rows * tokens, WIDTH, device=DEVICE)
    unit = torch.eye(tokens, head, device=DEVICE).repeat(rows, HEADS)

    def weights(share: float, seed: int) -> Tensor:
        mixed = packed_attention.packed_attention(
            q,
            torch.cat([keys, unit], 1),
            None,
            layout,
            HEADS,
            share,
            torch.tensor([seed]).to(q.device),
        )
        return mixed.view(rows, tokens, HEADS, head)[..., :tokens].transpose(1, 2)

    whole, thinned = weights(0.0, 1), weights(share, 1)
    kept = thinned != 0
    torch.testing.assert_close(thinned, whole * kept / (1 - share))
    assert abs(kept.float().mean() - (1 - share)) < 0.02
    assert torch.equal(kept, weights(share, 1) != 0)
    # Another seed, another row, another head: as alike as chance has it.
    chance = share**2 + (1 - share) ** 2
    others = [weights(share, 2) != 0, kept.roll(1, 0), kept.roll(1, 1)]
    for other in others:
        assert abs((other == kept).float().mean() - chance) < 0.03

    def grown(value: Tensor) -> Tensor:
        return value.clone().requires_grad_()

    ours, wanted = ([grown(q), grown(torch.cat([keys, values], 1))] for _ in range(2))
    seed = torch.tensor([1], device=DEVICE)
    mixed = packed_attention.packed_attention(*ours, None, layout, HEADS, share, seed)
    mixed.backward(gradient)

    def split(value: Tensor) -> Tensor:
        return value.view(rows, tokens, HEADS, head).transpose(1, 2)

    key, value = map(split, wanted[1].chunk(2, 1))
    logits = split(wanted[0]) @ key.transpose(-1, -2) / head**0.5
    mixed = (logits.softmax(-1) * kept / (1 - share)) @ value
    mixed.transpose(1, 2).reshape(rows * tokens, WIDTH).backward(gradient)
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
    print("dropout")


if __name__ == "__main__":
    for kind in KINDS:
        compare(kind)
    dropout()
