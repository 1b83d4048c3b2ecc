"""Window attention in one kernel: timm's own block, in its values and all its gradients.

Without a GPU the kernels run in Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock

pytest.importorskip("triton")

from xvlm_train.model import kernels, swin, window_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROOT = Path(__file__).parents[2]
SEEN = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}


def test_the_kernels_say_what_timm_says() -> None:
    environment = os.environ | (SEEN if DEVICE == "cpu" else {"PYTHONPATH": str(ROOT)})
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["compared"] * 4


@pytest.mark.parametrize(
    ("shape", "heads", "size", "shift", "why"),
    [
        ((1, 14, 14, 64), 2, (7, 7), (3, 3), ""),
        ((1, 15, 14, 64), 2, (7, 7), (3, 3), "padded"),
        ((1, 24, 24, 64), 2, (12, 12), (6, 6), "too many tokens"),
        ((1, 14, 14, 48), 2, (7, 7), (3, 3), "a width that is no power of two"),
        ((1, 14, 14, 16), 2, (7, 7), (3, 3), "narrower than a matrix unit"),
        ((1, 14, 14, 64), 2, (7, 2), (3, 1), "not square"),
    ],
)
def test_what_the_kernels_do_not_take_is_left_to_timm(
    monkeypatch, shape, heads, size, shift, why
) -> None:
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    features = torch.empty(shape)
    assert window_attention.usable(features, heads, size, shift) == (not why)
    assert not window_attention.usable(features.double(), heads, size, shift)


def compare(side: int, shift: int, heads: int, images: int, kind: torch.dtype) -> None:
    """One block of either kind on the same input."""
    torch.manual_seed(side + shift)
    width = 32 * heads
    block = SwinTransformerBlock(width, (side, side), heads, window_size=7, shift_size=shift)
    block.to(DEVICE).train()
    with torch.no_grad():
        block.attn.relative_position_bias_table.normal_()
        block.attn.qkv.weight.mul_(8)  # weights that are far from even
    features = torch.randn(images, side, side, width, device=DEVICE)
    gradient = torch.randn_like(features)
    assert window_attention.usable(features, heads, block.window_size, block.shift_size)
    calls = []
    inner = swin.window_attention
    swin.window_attention = lambda *of: calls.append(1) or inner(*of)
    found = []
    low = kind != torch.float32
    # In low precision both differ from float32, timm's more: it rounds its logits.
    for kernel, cast in ((False, False), (True, low), *([(False, True)] if low else [])):
        swin.compute_blocks_as(block, skip_dropped=False, window_kernel=kernel)
        given = features.clone().requires_grad_()
        block.zero_grad()
        with torch.autocast(DEVICE, kind, enabled=cast):
            out = block(given)
        out.backward(gradient)
        named = {name: parameter.grad for name, parameter in block.named_parameters()}
        found.append({"out": out.detach(), "features": given.grad, **named})
    swin.window_attention = inner
    assert calls == [1]
    for name, wanted in found[0].items():
        error, *timms = ((of[name] - wanted).norm() / wanted.norm() for of in found[1:])
        assert error < (1.2 * timms[0] + 1e-3 if timms else 2e-5), (name, float(error))
    assert found[0]["attn.relative_position_bias_table"].norm() > 0
    print("compared")


if __name__ == "__main__":
    compare(14, 3, 2, 2, torch.float32)
    compare(14, 0, 1, 2, torch.float32)
    # The interpreter, which computes with NumPy, knows no bfloat16.
    compare(7, 0, 2, 3, torch.bfloat16 if DEVICE == "cuda" else torch.float16)
    # More windows than programs, the last ones not full.
    window_attention._PROGRAMS = 5  # with one head
    compare(14, 3, 1, 3, torch.float32)
