"""What only a GPU can show: the same numbers as on a CPU, and a step that waits for nothing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.train.small_models import random_batch, small_config
from xvlm_train.engine.distributed import World
from xvlm_train.engine.ema import WeightAverage
from xvlm_train.engine.loop import Settings, Trainer
from xvlm_train.engine.optim import adamw
from xvlm_train.model.config import ComputeConfig, ModelConfig, VisionConfig
from xvlm_train.model.xvlm import XVLM
from xvlm_train.objectives import compute_losses

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

#: As small as windows of seven pixels and heads of 32 allow, so that the kernels take it.
SIZE, GRID = 56, 7


def config() -> ModelConfig:
    vision = VisionConfig(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 32, "depths": [2], "num_heads": [1], "window_size": 7},
        image_size=SIZE,
        drop_path=0.0,
    )
    return replace(small_config(dropout=0.0, attention_dropout=0.0), vision=vision)


def batch_for(model: XVLM, multi_grained: bool = True) -> Any:
    batch = random_batch(4, 6, 3 * multi_grained, multi_grained=multi_grained)
    patches = model.grid[0] * model.grid[1]
    mask = torch.randint(2, (6, 1 + patches))
    mask[:, :2] = 1
    if not multi_grained:
        mask[:] = 1
    return replace(batch, images=torch.randn(4, 3, SIZE, SIZE), patch_mask=mask)


@pytest.mark.parametrize("multi_grained", [True, False])
def test_losses_and_gradients_are_those_of_a_cpu(multi_grained: bool) -> None:
    torch.manual_seed(0)
    model = XVLM(config())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.temp.data.fill_(0.07)
    batch = batch_for(model, multi_grained)
    found = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        moved = batch.to(torch.device(device))
        with torch.backends.cudnn.flags(allow_tf32=False):
            losses = compute_losses(model(moved, negatives="argmax"), moved)
            losses["total"].backward()
        gradients = {
            n: p.grad.to("cpu", copy=True)
            for n, p in model.named_parameters()
            if p.grad is not None
        }
        found.append(({name: value.item() for name, value in losses.items()}, gradients))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    whole = torch.stack([g.norm() for g in found[0][1].values()]).norm()
    for name, wanted in found[0][1].items():
        error = (found[1][1][name] - wanted).norm()
        assert error < 1e-3 * max(wanted.norm(), 1e-3 * whole), name


class Losses(torch.nn.Module):
    def __init__(self, inner: XVLM) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Any) -> Any:
        return compute_losses(self.inner(batch), batch)


class Nothing:
    """No log, no checkpoints."""

    waited, failed = 0.0, False

    def before_update(self) -> None: ...

    def finish(self) -> None: ...


def trainer_for(compute: ComputeConfig, precision: Any) -> Trainer:
    """With the same weights and the same batches, over and over, every time."""
    torch.manual_seed(0)
    model = XVLM(config(), compute).cuda().train()
    streams = {}
    for name in ("image_text", "multi_grained"):
        streams[name] = itertools.repeat(batch_for(model, name == "multi_grained"))
    settings = Settings(
        steps=9, iter_perc=1.0, lr=1e-3, warmup=1, clip_norm=1.0, precision=precision, seed=0,
        log_every=100, eval_every=0, save_every=100, max_skipped=3,
    )  # fmt: skip
    return Trainer(
        world=World(0, 1, torch.device("cuda")),
        settings=settings,
        model=Losses(model),
        optimizer=adamw(
            [{"params": list(model.parameters()), "lr_mult": 1.0}], betas=(0.9, 0.98), eps=1e-8
        ),
        streams=streams,
        log=None,
        save=lambda *_: None,
        saves=Nothing(),
        average=WeightAverage(model, 0.9),
    )


@pytest.mark.parametrize(
    ("precision", "compiled"),
    [("fp32", False), ("bf16", False), ("fp16", False), ("bf16", True)],
)
def test_updates_of_a_run_wait_for_nothing(precision: Any, compiled: bool) -> None:
    trainer = trainer_for(ComputeConfig(compile=compiled, cuda_graphs=compiled), precision)
    weights = next(iter(trainer.model.parameters()))
    before = weights.detach().clone()
    # The first call warms up, the second records what the others replay.
    warm = 4 if compiled else 1
    for step in range(warm):
        trainer._step(step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(warm, warm + 3):
            trainer._step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    values = trainer._window.close()
    assert math.isfinite(values["image_text/total"])
    assert not torch.equal(before, weights)


def test_compiled_and_replayed_updates_train_alike() -> None:
    """Nothing is drawn but negatives and masks, which are the same: so are the losses."""
    means = []
    for compiled in (False, True):
        trainer = trainer_for(ComputeConfig(compile=compiled, cuda_graphs=compiled), "fp32")
        values = []
        for step in range(6):
            trainer._step(step)
            values.append(trainer._window.close()["multi_grained/contrastive"])
        means.append(values)
    assert means[1] == pytest.approx(means[0], rel=2e-3)
    assert means[0][-1] != pytest.approx(means[0][0], rel=2e-3)
