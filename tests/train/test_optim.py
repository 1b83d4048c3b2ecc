from __future__ import annotations

import csv

import pytest
import torch
from torch import nn

from tests.shared import shared_path
from xvlm_train.config import load_config
from xvlm_train.engine.optim import adamw, decays, parameter_groups, set_learning_rate
from xvlm_train.engine.schedule import counter_seed, is_multi_grained, learning_rate_factor
from xvlm_train.model.official import official_name, our_name
from xvlm_train.model.pretrained import is_new_by_design
from xvlm_train.model.xvlm import XVLM


def test_official_groups_equal_the_reference_for_every_parameter() -> None:
    with shared_path("parity/base_param_groups.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    expected = {row["name"]: (float(row["weight_decay"]), float(row["lr_mult"])) for row in rows}
    assert len(expected) == 606
    with torch.device("meta"):
        model = XVLM(load_config("base").model)
    groups = parameter_groups(
        model.named_parameters(),
        lr=1e-4,
        weight_decay=0.01,
        new_lr_multiple=2.0,
        is_new=is_new_by_design,
        rule="official",
        official_name=official_name,
    )
    assert {
        official_name(name): (group["weight_decay"], group["lr_mult"])
        for group in groups
        for name in group["names"]
    } == expected
    # The clean rule differs in the temperature and the heads' LayerNorms, and in nothing else.
    clean = {name for name, p in model.named_parameters() if decays(name, p.dim(), "clean")}
    official = {our_name(name) for name, (decay, _) in expected.items() if decay}
    differing = clean ^ official
    assert differing == {"temp", "itm_head.1.weight", "bbox_head.1.weight"}


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 3))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def groups_by_name(rule: str) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(
        Parts().named_parameters(),
        lr=1.0,
        weight_decay=0.01,
        new_lr_multiple=2.0,
        is_new=lambda name: name.startswith(("head", "temperature")),
        rule=rule,  # type: ignore[arg-type]
    )
    return {n: (g["weight_decay"], g["lr_mult"]) for g in groups for n in g["names"]}


def test_clean_rule_decays_matrices_only_and_doubles_new_weights() -> None:
    assert groups_by_name("clean") == {
        "linear.weight": (0.01, 1.0),
        "linear.bias": (0.0, 1.0),
        "pos_embed": (0.0, 1.0),
        "relative_position_bias_table": (0.0, 1.0),
        "head.0.weight": (0.01, 2.0),
        "head.0.bias": (0.0, 2.0),
        "head.1.weight": (0.0, 2.0),
        "head.1.bias": (0.0, 2.0),
        "temperature": (0.0, 2.0),
    }


def test_official_rule_decays_temperature_and_head_norms_but_no_bias_table() -> None:
    groups = groups_by_name("official")
    assert groups["temperature"] == (0.01, 2.0)
    assert groups["head.1.weight"] == (0.01, 2.0)
    assert groups["relative_position_bias_table"] == (0.0, 1.0)


def test_an_update_follows_adamw_and_found_inf_leaves_everything() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    group = {"params": [weight], "names": ["w"], "lr": 0.1, "lr_mult": 2.0, "weight_decay": 0.5}
    optimizer = adamw([group], betas=(0.9, 0.98), eps=1e-8)
    set_learning_rate(optimizer, 0.05)  # times lr_mult
    weight.grad = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    optimizer.step()
    # First step: both moments' bias corrections cancel, so the step is lr * sign(gradient).
    expected = torch.tensor([[1.0, -2.0]], dtype=torch.float64) * (1 - 0.1 * 0.5) - 0.1
    torch.testing.assert_close(weight.data, expected, rtol=1e-6, atol=1e-6)

    before = weight.detach().clone()
    moments = {key: value.clone() for key, value in optimizer.state[weight].items()}
    weight.grad = torch.full_like(weight, float("nan"))
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    assert torch.equal(weight.data, before)
    for key, value in optimizer.state[weight].items():
        assert torch.equal(value, moments[key]), key


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_schedule_is_the_closed_form(warmup: int) -> None:
    factors = [learning_rate_factor(s, warmup=warmup, total=100) for s in range(101)]
    for step in range(warmup):
        assert factors[step] == pytest.approx((step + 1) / warmup)
    for step in range(warmup, 101):
        assert factors[step] == pytest.approx(1 - (step - warmup) / (100 - warmup))
    assert max(factors) == 1.0
    assert factors[100] == 0.0


def test_the_coin_is_a_pure_function_with_the_asked_frequency() -> None:
    coins = [is_multi_grained(7, step, 0.3) for step in range(20_000)]
    assert coins == [is_multi_grained(7, step, 0.3) for step in range(20_000)]
    # Five standard deviations of a binomial with n = 20,000, p = 0.3.
    assert abs(sum(coins) / 20_000 - 0.3) < 5 * (0.3 * 0.7 / 20_000) ** 0.5
    assert all(is_multi_grained(7, step, 1.0) for step in range(100))
    assert not any(is_multi_grained(7, step, 0.0) for step in range(100))
    assert counter_seed(7, 1, "a") != counter_seed(7, 1, "b") != counter_seed(7, 11, "a")
    assert 0 <= counter_seed(7) < 2**63
