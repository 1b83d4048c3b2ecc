from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from xvlm_data.errors import UserError
from xvlm_train.engine import checkpoint
from xvlm_train.engine.checkpoint import EMA, MODEL, OPTIMIZER, Retention
from xvlm_train.engine.distributed import World
from xvlm_train.engine.ema import WeightAverage
from xvlm_train.engine.loop import IMAGE_TEXT, MULTI_GRAINED, Settings, Trainer
from xvlm_train.engine.optim import adamw, parameter_groups
from xvlm_train.engine.preemption import Stop
from xvlm_train.engine.saving import Saver
from xvlm_train.engine.weights import (
    load_model,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    volatile_names,
)

CPU = World(0, 1, torch.device("cpu"))


class Toy(nn.Module):
    """Dropout (random numbers), tied weights, and a head that only one stream trains."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.decoder = nn.Linear(6, 11)
        self.decoder.weight = self.embedding.weight
        self.box_head = nn.Linear(6, 1)
        self.drop = nn.Dropout(0.3)

    def forward(self, batch: ToyBatch) -> dict[str, torch.Tensor]:
        states = self.drop(self.embedding(batch.text_ids)).mean(1)
        values = {"mlm": nn.functional.cross_entropy(self.decoder(states), batch.text_ids[:, 0])}
        if batch.multi_grained:
            values["box"] = self.box_head(states).square().mean()
        return {**values, "total": torch.stack(list(values.values())).sum() * batch.factor}


@dataclass
class ToyBatch:
    text_ids: torch.Tensor
    multi_grained: bool
    factor: float = 1.0
    record_ids: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    rejects: list[tuple[str, str, str]] = field(default_factory=list)

    def to(self, device: torch.device, non_blocking: bool = True) -> ToyBatch:
        return self


def stream(multi_grained: bool, start: int, bad: range = range(0)) -> Iterator[ToyBatch]:
    step = start
    while True:
        generator = torch.Generator().manual_seed(100 * multi_grained + step)
        ids = torch.randint(0, 11, (4, 5), generator=generator)
        factor = float("nan") if step in bad else 1.0
        yield ToyBatch(ids, multi_grained, factor, [f"toy/{step}"])
        step += 1


def build(seed: int = 0) -> tuple[Toy, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = Toy()
    groups = parameter_groups(
        model.named_parameters(),
        lr=0.1,
        weight_decay=0.01,
        new_lr_multiple=2.0,
        is_new=lambda name: "box" in name,
    )
    return model, adamw(groups, betas=(0.9, 0.98), eps=1e-8)


def trainer(
    run: Path,
    model: Toy,
    optimizer: torch.optim.AdamW,
    start: int = 0,
    *,
    bad: range = range(0),
    extras: Callable[[Path], None] = lambda folder: None,
    **changes: float,
) -> Trainer:
    settings = Settings(
        steps=6,
        iter_perc=1.0,
        lr=0.1,
        warmup=2,
        clip_norm=1.0,
        precision="fp32",
        seed=3,
        log_every=2,
        eval_every=0,
        save_every=3,
        max_skipped=100,
    )
    for key, value in changes.items():
        setattr(settings, key, value)

    average = WeightAverage(model, 0.5)
    saver = Saver(run, write_extras=extras, keep=Retention(2), say=lambda text: None)

    def save(step: int, loop: dict[str, Any]) -> None:
        tensors, shared = model_tensors(model)
        moments = optimizer_tensors(optimizer)
        parts = {MODEL: tensors, OPTIMIZER: moments, EMA: average.tensors}
        state = {"step": step, "loop": loop, "shared_tensors": shared}
        saver.start(parts, state, volatile_names(model))

    streams = {IMAGE_TEXT: stream(False, start, bad), MULTI_GRAINED: stream(True, start)}
    return Trainer(
        world=CPU,
        settings=settings,
        model=model,
        optimizer=optimizer,
        streams=streams,
        log=None,
        save=save,
        saves=saver,
        average=average,
        start_step=start,
    )


def test_three_steps_resumed_equal_six_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = build()
    assert trainer(tmp_path / "whole", model, optimizer).fit() == (6, Stop.NO)

    resumed, other = build(seed=99)  # its own weights must not matter
    found = checkpoint.find(tmp_path / "whole" / "checkpoints" / "step_00000003")
    load_model(found, resumed)
    load_optimizer(found, other)
    torch.rand(17)  # nor where the process's random numbers stand
    assert trainer(tmp_path / "rest", resumed, other, start=found.step).fit() == (6, Stop.NO)

    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert resumed.decoder.weight is resumed.embedding.weight
    for group, other_group in zip(optimizer.param_groups, other.param_groups, strict=True):
        for p, q in zip(group["params"], other_group["params"], strict=True):
            for key, value in optimizer.state[p].items():
                assert torch.equal(value, other.state[q][key]), key


def test_layout_latest_and_keep_last(tmp_path: Path) -> None:
    model, optimizer = build()
    trainer(tmp_path, model, optimizer, save_every=1, steps=4).fit()
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step_00000003", "step_00000004"]
    assert checkpoint.find(tmp_path).step == 4
    assert checkpoint.find(folder / "step_00000003").step == 3
    assert checkpoint.has_run(tmp_path) and not checkpoint.has_run(tmp_path / "other")


def test_a_failed_save_leaves_the_previous_one(tmp_path: Path) -> None:
    model, optimizer = build()
    trainer(tmp_path, model, optimizer, steps=3).fit()

    def fails(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    saver = Saver(tmp_path, write_extras=fails, keep=Retention(1), say=lambda text: None)
    for step in (3, 4):
        saver.start({MODEL: model_tensors(model)[0]}, {"step": step})
        with pytest.raises(OSError, match="No space"):
            saver.finish()
        found = checkpoint.find(tmp_path)
        assert found.step == 3
        load_model(found, model)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "latest",
        "step_00000003",
    ]


def test_another_model_is_told(tmp_path: Path) -> None:
    model, optimizer = build()
    trainer(tmp_path, model, optimizer, steps=1).fit()
    found = checkpoint.find(tmp_path)
    model.box_head = nn.Linear(7, 1)
    with pytest.raises(UserError, match=r"box_head\.weight has shape \[1, 6\], not \[1, 7\]"):
        load_model(found, model)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.find(tmp_path)


def test_a_step_without_finite_gradient_changes_nothing_else(tmp_path: Path) -> None:
    """A bad batch is as if it had not been there: weights, moments and step counts."""
    model, optimizer = build()
    trainer(tmp_path, model, optimizer, iter_perc=0.0, bad=range(6)).fit()
    before, _ = build()
    for name, value in before.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert all(int(state["step"]) == 0 for state in optimizer.state.values())


def test_too_many_skipped_in_a_row_end_the_run(tmp_path: Path) -> None:
    model, optimizer = build()
    with pytest.raises(UserError, match="last 4 updates had no finite loss and gradient"):
        trainer(
            tmp_path, model, optimizer, iter_perc=0.0, max_skipped=3, bad=range(2, 99), save_every=9
        ).fit()
    # Four, interrupted by a good one, are no four in a row.
    model, optimizer = build()
    assert trainer(tmp_path, model, optimizer, max_skipped=2, bad=range(0, 6, 2)).fit() == (
        6,
        Stop.NO,
    )


def test_a_head_without_gradient_is_left_alone(tmp_path: Path) -> None:
    """No decay, no moments for the box head in steps of the image-text stream alone."""
    model, optimizer = build()
    before = model.box_head.weight.detach().clone()
    trainer(tmp_path, model, optimizer, iter_perc=0.0).fit()
    assert torch.equal(model.box_head.weight, before)
    assert model.box_head.weight not in optimizer.state
