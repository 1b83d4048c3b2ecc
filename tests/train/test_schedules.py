"""Schedules, averages, rates by layer, freezing: against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from tests.train.small_models import random_batch, small_config
from xvlm_data.errors import UserError
from xvlm_train.config import load_config
from xvlm_train.engine.ema import WeightAverage
from xvlm_train.engine.optim import adamw, parameter_groups
from xvlm_train.engine.schedule import learning_rate_factor
from xvlm_train.model.config import Parity
from xvlm_train.model.xvlm import XVLM
from xvlm_train.multiples import freeze, layer_multiples, rate_multiple
from xvlm_train.objective import Objective


@pytest.mark.parametrize("warmup", [0, 1, 10])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_the_closed_form(warmup: int, final: float) -> None:
    factors = [
        learning_rate_factor(s, warmup=warmup, total=100, kind="cosine", final=final)
        for s in range(101)
    ]
    assert factors[:warmup] == pytest.approx([(s + 1) / warmup for s in range(warmup)])
    for step in range(warmup, 101):
        angle = math.pi * (step - warmup) / (100 - warmup)
        assert factors[step] == pytest.approx(final + (1 - final) * (1 + math.cos(angle)) / 2)
    assert factors[100] == pytest.approx(final)
    assert max(factors) == 1


def test_wsd_is_stable_until_its_decay() -> None:
    factors = [
        learning_rate_factor(s, warmup=10, total=100, kind="wsd", final=0.2, decay=20)
        for s in range(101)
    ]
    assert factors[9:81] == [1.0] * 72
    assert factors[80:] == pytest.approx([1 - 0.8 * k / 20 for k in range(21)])
    # Its stable part does not depend on the length of the run, which is what it is for.
    longer = [
        learning_rate_factor(s, warmup=10, total=500, kind="wsd", final=0.2, decay=20)
        for s in range(101)
    ]
    assert longer[:81] == factors[:81]
    # No decay at all, and one that would begin in the warm-up.
    assert learning_rate_factor(99, warmup=10, total=100, kind="wsd") == 1
    early = [
        learning_rate_factor(s, warmup=10, total=20, kind="wsd", decay=50) for s in range(10, 21)
    ]
    assert early == pytest.approx([1 - k / 10 for k in range(11)])


def test_linear_with_a_floor() -> None:
    factors = [learning_rate_factor(s, warmup=0, total=10, final=0.5) for s in range(12)]
    assert factors == pytest.approx([1 - 0.05 * s for s in range(11)] + [0.5])


def test_a_decay_of_another_schedule_is_refused() -> None:
    with pytest.raises(UserError, match=r"schedule\.decay is for the kind wsd"):
        load_config("tiny", overrides=["schedule.decay=5"])
    config = load_config("tiny", overrides=["schedule.kind=wsd", "schedule.decay=5"])
    assert config.schedule.decay == 5


class Moving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.register_buffer("mean", torch.zeros(2))


def test_the_average_is_the_closed_form_and_skipped_updates_do_not_count() -> None:
    model, decay = Moving(), 0.9
    average = WeightAverage(model, decay)
    history = [model.weight.detach().clone()]
    for k in range(12):
        skipped = k % 4 == 2
        with torch.no_grad():
            if not skipped:
                model.weight += torch.tensor([0.5, 1.0]) * (k + 1)
                history.append(model.weight.detach().clone())
            model.mean += 1
        average.update(torch.tensor(not skipped))
    n = len(history) - 1
    expected = decay**n * history[0]
    for k in range(1, n + 1):
        expected = expected + (1 - decay) * decay ** (n - k) * history[k]
    torch.testing.assert_close(average.tensors["weight"], expected)
    assert torch.equal(average.tensors["mean"], model.mean)  # statistics are copied
    own = model.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, own)


def test_an_average_survives_nan_weights_of_a_skipped_update() -> None:
    """Should weights be NaN they count for nothing only if skipped; this guards 0 · NaN."""
    model = Moving()
    average = WeightAverage(model, 0.5)
    average.update(torch.tensor(False))
    assert torch.equal(average.tensors["weight"], torch.tensor([1.0, -2.0]))


def test_layers_of_both_encoders_learn_at_powers_of_the_decay() -> None:
    model = XVLM(small_config())  # three text layers; Swin with stages of one and two blocks
    multiples = layer_multiples(model, 0.5)
    text = {
        "text_encoder.bert.embeddings.word_embeddings.weight": 4,
        "text_encoder.bert.encoder.layer.0.attention.self.query.weight": 3,
        "text_encoder.bert.encoder.layer.2.output.dense.bias": 1,
        "text_encoder.cls.predictions.bias": 0,
    }
    for name, layers_above in text.items():
        assert multiples[name] == 0.5**layers_above, name
    backbone = [
        multiples[f"vision_encoder.backbone.{name}"]
        for name in (
            "patch_embed.proj.weight",
            "layers.0.blocks.0.attn.qkv.weight",
            "layers.1.blocks.0.attn.qkv.weight",
            "layers.1.blocks.1.attn.qkv.weight",
        )
    ]
    assert backbone[-1] == multiples["vision_encoder.backbone.norm.weight"] == 1
    assert all(0.5 * later == earlier for earlier, later in pairwise(backbone)), backbone
    heads = [name for name, _ in model.named_parameters() if name not in multiples]
    assert heads and all(name.split(".")[0] in HEADS for name in heads)
    assert layer_multiples(model, 1.0) == {}


HEADS = {"temp", "vision_proj", "text_proj", "itm_head", "bbox_head"}


def test_multiples_of_layers_and_patterns_meet_in_the_groups() -> None:
    model = XVLM(small_config())
    multiple = rate_multiple(model, 0.5, {"vision_encoder.*": 0.1, "temp": 3.0})
    groups = parameter_groups(
        model.named_parameters(),
        lr=1.0,
        weight_decay=0.01,
        new_lr_multiple=2.0,
        is_new=lambda name: name == "temp",
        multiple=multiple,
    )
    rates = {name: group["lr_mult"] for group in groups for name in group["names"]}
    assert rates.keys() == {name for name, _ in model.named_parameters()}
    assert rates["temp"] == 6.0
    assert rates["vision_encoder.backbone.norm.weight"] == pytest.approx(0.1)
    assert rates["text_encoder.bert.embeddings.LayerNorm.bias"] == 0.5**4
    assert rates["itm_head.0.weight"] == 1.0
    with pytest.raises(UserError, match="no parameter is named"):
        rate_multiple(model, 1.0, {"vision.*": 0.1})


def test_frozen_parameters_stay_and_have_no_moments() -> None:
    torch.manual_seed(0)
    model = XVLM(small_config())
    numbers = freeze(model, ["vision_encoder.*", "*.embeddings.*"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert numbers == sum(p.numel() for n, p in model.named_parameters() if n in frozen)
    assert {name.split(".")[0] for name in frozen} == {"vision_encoder", "text_encoder"}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = parameter_groups(
        model.named_parameters(),
        lr=0.1,
        weight_decay=0.1,
        new_lr_multiple=1.0,
        is_new=lambda name: False,
    )
    optimizer = adamw(groups, betas=(0.9, 0.98), eps=1e-8)
    Objective(model, Parity())(random_batch(3, 5, 3))["total"].backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name
        assert (parameter in optimizer.state) == (name not in frozen), name
    with pytest.raises(UserError, match="freezes every parameter"):
        freeze(model, ["*"])
