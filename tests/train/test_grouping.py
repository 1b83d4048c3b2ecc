"""Texts in groups: least padding, the same numbers however they are computed, a bounded number."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.small_models import GRID, VOCAB, small_config
from xvlm_data.errors import UserError
from xvlm_train.bench.check import compare
from xvlm_train.data.batch import Batch
from xvlm_train.data.config import DataConfig
from xvlm_train.model import grouping
from xvlm_train.model.config import ComputeConfig, Parity
from xvlm_train.model.grouping import group_limits, plan_texts
from xvlm_train.model.vision import VisionEncoder
from xvlm_train.model.xvlm import XVLM
from xvlm_train.synthetic import synthetic_batch

DATA = DataConfig(image_size=32, max_tokens=8, max_masks=3)
NAIVE = ComputeConfig.naive(DATA.max_tokens)


def batch_of(stream: str, texts: int = 9, images: int = 9, seed: int = 0) -> Batch:
    return synthetic_batch(
        stream, DATA, images=images, texts=texts, vocab=VOCAB, grid=(GRID, GRID), seed=seed
    ).to("cpu")


def padding(lengths: list[int], limits: list[int]) -> int:
    return sum(min(limit for limit in limits if limit >= length) - length for length in lengths)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=14), st.integers(1, 4))
def test_no_other_groups_pad_less(lengths: list[int], groups: int) -> None:
    limits = group_limits(np.array(lengths), groups)
    assert limits == sorted(set(limits))
    assert len(limits) <= groups
    assert limits[-1] == max(lengths)
    others = (
        {*chosen, max(lengths)}
        for size in range(groups)
        for chosen in itertools.combinations(set(lengths), size)
    )
    best = min(padding(lengths, sorted(limits)) for limits in others)
    assert padding(lengths, limits) == best


def test_every_row_and_masked_place_is_in_one_group() -> None:
    batch = batch_of("image_text", 20, 20)
    plan = plan_texts(batch, ComputeConfig(length_groups=3))
    assert sorted(torch.cat([group.rows for group in plan.groups]).tolist()) == list(range(20))
    found = []
    for group in plan.groups:
        lengths = batch.text_mask.sum(1)[group.rows]
        assert lengths.max() == group.length
        assert group.padded == bool((lengths < group.length).any())
        labels = batch.masked_labels[group.rows].gather(1, group.slots).flatten()
        found += labels[group.targets].tolist()
    assert sorted(found) == sorted(batch.masked_labels[batch.masked_labels >= 0].tolist())


SAVINGS = {
    "length_groups": {"length_groups": 3},
    "rounded": {"length_groups": 2, "length_multiple": 4},
    "negatives_not_read": {"length_groups": 3, "read_negatives": False},
    "share_images": {"share_images": True},
    "joint_passes": {"joint_passes": True},
    "pruned_queries": {"pruned_queries": True},
    "masked_only": {"masked_only": True},
    "checkpointing": {"checkpointing": True},
}


@pytest.mark.parametrize("stream", ["image_text", "multi_grained"])
@pytest.mark.parametrize(
    "name", [*SAVINGS, "all", "all_as_on_a_gpu", "packed", "packed_checkpointing"]
)
def test_each_saving_changes_nothing(name: str, stream: str) -> None:
    torch.manual_seed(0)
    model = XVLM(small_config())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        model.temp.fill_(0.07)
    whole = {
        "all": ComputeConfig(),
        "all_as_on_a_gpu": ComputeConfig(packed=False, length_multiple=8, read_negatives=False),
        "packed": ComputeConfig(packed=True),
        "packed_checkpointing": ComputeConfig(packed=True, masked_only=False, checkpointing=True),
    }
    saving = whole.get(name) or replace(NAIVE, **SAVINGS[name])
    batch = batch_of(stream, images=4 if stream == "multi_grained" else 9)
    difference = compare(model, batch, saving, NAIVE, Parity())
    assert difference.ok, difference


def test_a_wrong_saving_is_found(monkeypatch) -> None:
    torch.manual_seed(0)
    model = XVLM(small_config())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    made = grouping.TextGroup
    monkeypatch.setattr(grouping, "TextGroup", lambda **of: made(**{**of, "padded": False}))
    difference = compare(model, batch_of("image_text"), ComputeConfig(), NAIVE, Parity())
    assert not difference.ok


def test_dropped_images_are_left_out_with_the_same_distribution() -> None:
    config = small_config().vision
    config.drop_path = 0.4
    torch.manual_seed(0)
    encoder = VisionEncoder(config).train()
    images = torch.randn(1, 3, 32, 32).repeat(2000, 1, 1, 1)
    means, spreads = [], []
    for skip in (True, False):
        encoder.compute_as(channels_last=True, checkpointing=False, skip_dropped=skip)
        with torch.no_grad():
            found = encoder(images).flatten(1)
        means.append(found.mean(0))
        spreads.append(found.std(0))
    noise = 5 * spreads[1] / 2000**0.5 + 1e-6
    assert ((means[0] - means[1]).abs() < 1.5 * noise).all()
    torch.testing.assert_close(spreads[0], spreads[1], rtol=0.2, atol=1e-3)
    assert spreads[1].max() > 1e-2  # something was dropped


def test_evaluation_drops_nothing() -> None:
    config = small_config().vision
    config.drop_path = 0.4
    encoder = VisionEncoder(config).eval()
    images = torch.randn(3, 3, 32, 32)
    plain = encoder(images)
    encoder.compute_as(channels_last=True, checkpointing=False, skip_dropped=True)
    torch.testing.assert_close(encoder(images), plain)


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(UserError, match=r"compute\.length_groups is -1"):
        ComputeConfig(length_groups=-1)
