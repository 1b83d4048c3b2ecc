"""How long training waits for a checkpoint, saved beside it and saved in its way, in one run.

A real training loop of the model of a preset, on random batches: steps without a checkpoint, then
steps each followed by a checkpoint that is written in a thread (as runs do), then steps each
followed by one that is waited for. *Waited* is the time in which the loop could not go on because
of the checkpoint, in milliseconds and as a share of a step without one.

    python benchmarks/saving.py --preset base --batch 4
    python benchmarks/saving.py --preset tiny --json
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from xvlm_train.config import load_config
from xvlm_train.data.batch import Batch
from xvlm_train.engine.checkpoint import MODEL, OPTIMIZER, Retention
from xvlm_train.engine.distributed import choose_device
from xvlm_train.engine.optim import adamw, parameter_groups
from xvlm_train.engine.saving import Saver
from xvlm_train.engine.weights import model_tensors, optimizer_tensors, volatile_names
from xvlm_train.model.xvlm import XVLM
from xvlm_train.objective import Objective


def random_batch(model: XVLM, rows: int, tokens: int, device: torch.device) -> Batch:
    """An image-text batch; what is in it does not matter for the time."""
    side, text = model.config.vision.image_size, model.config.text
    patches = 1 + model.grid[0] * model.grid[1]
    ids = torch.randint(5, text.vocab, (rows, tokens))
    return Batch(
        images=torch.randn(rows, 3, side, side),
        image_index=torch.arange(rows),
        patch_mask=torch.ones(rows, patches, dtype=torch.int64),
        text_ids=ids,
        text_mask=torch.ones_like(ids),
        masked_ids=ids,
        masked_positions=torch.arange(1, 5).repeat(rows, 1),
        masked_labels=ids[:, 1:5].clone(),
        boxes=torch.tensor([0.5, 0.5, 1, 1]).repeat(rows, 1),
        whole_image=torch.ones(rows, dtype=torch.bool),
        multi_grained=False,
        record_ids=[],
    ).to(device)


@click.command()
@click.option("--preset", default="base", show_default=True)
@click.option("--batch", default=4, show_default=True, help="Pairs in a step.")
@click.option("--tokens", default=16, show_default=True, help="Of each text.")
@click.option("--steps", default=3, show_default=True, help="Of each of the three kinds.")
@click.option("--device", default="auto", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Disk to write to. [temporary]")
@click.option("--json", "as_json", is_flag=True)
def command(
    preset: str,
    batch: int,
    tokens: int,
    steps: int,
    device: str,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Measure what training waits for checkpoints, and print it."""
    chosen = choose_device(device)
    torch.manual_seed(0)
    config = load_config(preset)
    model = XVLM(config.model).to(chosen)
    groups = parameter_groups(
        model.named_parameters(),
        lr=1e-6,
        weight_decay=0.01,
        new_lr_multiple=1.0,
        is_new=lambda name: False,
    )
    optimizer = adamw(groups, betas=(0.9, 0.98), eps=1e-8)
    objective = Objective(model, config.parity)
    data = random_batch(model, batch, tokens, chosen)
    with tempfile.TemporaryDirectory(dir=folder) as run:
        saver = Saver(
            Path(run), write_extras=lambda path: None, keep=Retention(1), say=lambda text: None
        )

        def step() -> float:
            started = time.perf_counter()
            for parameter in model.parameters():
                parameter.grad = None
            objective(data)["total"].backward()
            saver.before_update()
            optimizer.step()
            if chosen.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

        def save(number: int) -> None:
            parts = {MODEL: model_tensors(model)[0], OPTIMIZER: optimizer_tensors(optimizer)}
            saver.start(parts, {"step": number}, volatile_names(model))

        step()  # makes the moments
        save(0)  # makes the memory for copies, once a run
        saver.finish()
        plain = [step() for _ in range(steps)]
        beside, in_the_way, written = [], [], []
        for number in range(steps):
            saver.waited = 0.0
            save(2 * number + 1)
            step()
            beside.append(saver.waited)
            started = time.perf_counter()
            saver.finish()
            written.append(time.perf_counter() - started)
        for number in range(steps):
            started = time.perf_counter()
            save(2 * number + 2)
            saver.finish()
            in_the_way.append(time.perf_counter() - started)
        found = next((Path(run) / "checkpoints").glob("step_*"))
        size = sum(path.stat().st_size for path in found.rglob("*"))
    result: dict[str, Any] = {
        "machine": {"processor": platform.processor(), "device": str(chosen)},
        "preset": preset,
        "batch": batch,
        "checkpoint_mb": round(size / 1e6, 1),
        "step_ms": round(1e3 * statistics.median(plain), 1),
        "beside_ms": [round(1e3 * value, 1) for value in beside],
        "in_the_way_ms": [round(1e3 * value, 1) for value in in_the_way],
        "rest_of_writing_ms": [round(1e3 * value, 1) for value in written],
    }
    for kind in ("beside", "in_the_way"):
        share = statistics.median(result[f"{kind}_ms"]) / result["step_ms"]
        result[f"{kind}_share_of_a_step"] = round(share, 4)
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name}: {value}")


if __name__ == "__main__":
    command()
