"""Every kernel compiles for GPUs that are not here, and fits into what one of their cores has."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from xvlm_train.model import packed_kernels, window_kernels

#: Bytes of shared memory a block may have, by compute capability.
SHARED = {80: 163 * 1024, 90: 227 * 1024}
POINTERS = {"bias": "*fp32", "of_bias": "*fp32", "mask": "*u8", "seed": "*i64"}
NUMBERS = {"scale": "fp32", "dropout": "fp32", "windows": "i32", "height": "i32", "width": "i32"}
LAYOUT = {"query_starts", "query_lengths", "key_starts", "key_lengths"}
LAYOUT |= {"order", "row_starts", "mask_rows"}


def compile_for(kernel: Any, capability: int, kind: str, warps: int, **constants: Any) -> Any:
    signature = {}
    for name in kernel.arg_names:
        found = POINTERS | NUMBERS | dict.fromkeys(LAYOUT, "*i32")
        signature[name] = "constexpr" if name in constants else found.get(name, f"*{kind}")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature=signature, constexprs=places)
    target = GPUTarget("cuda", capability, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return triton.compile(source, target=target, options={"num_warps": warps})


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_window_attention_of_swin_base(capability: int, kernel: str, kind: str) -> None:
    made = compile_for(
        getattr(window_kernels, kernel), capability, kind, 4,
        HEADS=16, HEAD=32, SIZE=7, SHIFT=3, BLOCK=64,
        PRECISION="ieee" if kind == "fp32" else "tf32",
    )  # fmt: skip
    assert made.metadata.shared <= SHARED[capability]


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize(
    ("keys", "first", "masked", "kind"),
    [
        (64, 0, False, "bf16"),  # texts to themselves
        (64, 1, True, "bf16"),  # to the 49 patches of 224 pixels
        (256, 1, False, "bf16"),  # to the 144 of 384 pixels
        (64, 1, True, "fp32"),
    ],
)
def test_packed_attention_of_bert_base(
    capability: int, kernel: str, keys: int, first: int, masked: bool, kind: str
) -> None:
    made = compile_for(
        getattr(packed_kernels, kernel), capability, kind, 4 if keys == 64 else 8,
        HEADS=12, HEAD=64, BLOCK_Q=64, BLOCK_K=keys, FIRST=first, MASKED=masked,
        MASK_WIDTH=50 * masked, DROPOUT=True, PRECISION="ieee" if kind == "fp32" else "tf32",
    )  # fmt: skip
    assert made.metadata.shared <= SHARED[capability]
