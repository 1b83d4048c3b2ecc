"""The training loop: up to two updates a step, each with its own stream, batch and optimiser step.

Nothing in a step waits for the device. What the loop needs of random numbers is seeded from
(seed, step, stream, rank) before each update, so that a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import nn

from xvlm_data.errors import UserError
from xvlm_train.engine import accumulate, optim
from xvlm_train.engine.distributed import StopAgreement, World
from xvlm_train.engine.metrics import Log, Window
from xvlm_train.engine.schedule import counter_seed, is_multi_grained, learning_rate_factor

IMAGE_TEXT, MULTI_GRAINED = "image_text", "multi_grained"
Precision = Literal["fp32", "bf16", "fp16"]


class DeviceBatch(Protocol):
    """What the loop asks of a batch; the rest is between the stream and the model."""

    text_ids: torch.Tensor  # [B, L]: B pairs of a text and an image or region
    skipped: dict[str, int]  # rows and concepts that could not be used, by reason

    def to(self, device: torch.device, non_blocking: bool = ...) -> Any:
        """The batch on ``device``."""

    def parts(self, count: int) -> list[Any]:
        """The batch in at most ``count`` parts."""


@dataclass(kw_only=True)
class Settings:
    """The numbers of a loop; those of the configuration, under the names it has there."""

    steps: int
    iter_perc: float
    lr: float
    warmup: int
    clip_norm: float
    precision: Precision
    seed: int
    log_every: int
    eval_every: int
    save_every: int
    max_skipped: int
    accumulate: int = 1  # parts a batch is computed in


@dataclass
class Trainer:
    """Runs updates from ``start_step`` to ``settings.steps``.

    Args:
        model: batch → dict of scalar tensors: the losses by name, their sum as ``total``, and any
            further values worth a curve. Wrapped for several ranks already.
        optimizer: over its parameters (:func:`xvlm_train.engine.optim.adamw`).
        streams: endless batches by stream name, standing at ``start_step``.
        log: on the main rank.
        save: writes a checkpoint of the given number of steps done (main rank only).
        evaluate: values to log from held-out data (main rank only).
    """

    world: World
    settings: Settings
    model: nn.Module
    optimizer: torch.optim.Optimizer
    streams: dict[str, Iterator[DeviceBatch]]
    log: Log | None
    save: Callable[[int], None]
    evaluate: Callable[[], dict[str, float]] | None = None
    start_step: int = 0
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        device = self.world.device
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=self.settings.precision == "fp16", init_scale=2.0**10
        )
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._window = Window()
        # Updates without a finite gradient, in this window and in a row until now.
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._skipped_in_row = torch.zeros_like(self._skipped)
        self._lr = 0.0

    def fit(self) -> int:
        """Train; returns the number of steps done, which is less than asked after an interrupt.

        Raises:
            UserError: ``max_skipped`` updates in a row had no finite gradient.
        """
        settings, step = self.settings, self.start_step
        agreement = StopAgreement()
        window_start = time.monotonic()
        self.model.train()
        with interrupt_flag() as interrupted:
            while step < settings.steps:
                self._step(step)
                step += 1
                last = step == settings.steps
                stop = agreement.stop_now(interrupted()) and not last
                save = last or stop or step % settings.save_every == 0
                # A checkpoint closes the window: a resumed run then logs what this one would have.
                if save or step % settings.log_every == 0:
                    self._close_window(step, time.monotonic() - window_start)
                    window_start = time.monotonic()
                if last or (settings.eval_every and step % settings.eval_every == 0 and not stop):
                    self._evaluate(step)
                    window_start = time.monotonic()
                if save:
                    if self.world.is_main:
                        self.save(step)
                    window_start = time.monotonic()
                if stop:
                    break
        agreement.finish()
        return step

    def _step(self, step: int) -> None:
        settings = self.settings
        factor = learning_rate_factor(step, warmup=settings.warmup, total=settings.steps)
        self._lr = settings.lr * factor
        optim.set_learning_rate(self.optimizer, self._lr)
        if MULTI_GRAINED in self.streams and is_multi_grained(
            settings.seed, step, settings.iter_perc
        ):
            self._update(MULTI_GRAINED, step)
        if IMAGE_TEXT in self.streams:
            self._update(IMAGE_TEXT, step)

    def _update(self, stream: str, step: int) -> None:
        settings, device = self.settings, self.world.device
        started = time.monotonic()
        batch = next(self.streams[stream])
        self._window.count("data_wait", time.monotonic() - started)
        self._window.count("samples", len(batch.text_ids))
        for reason, number in batch.skipped.items():
            self._window.count(f"skipped/{reason}", number)
        parts = batch.parts(settings.accumulate) if settings.accumulate > 1 else [batch]
        parts = [part.to(device, non_blocking=True) for part in parts]
        keys = (settings.seed, step, stream, self.world.rank)
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.precision)
        self.optimizer.zero_grad(set_to_none=True)
        values = accumulate.backward(
            self.model,
            parts,
            in_parts=settings.accumulate > 1,
            begin=lambda n: _seed(*keys, *([n] if n else [])),
            autocast=lambda: torch.autocast(device.type, dtype=low, enabled=low is not None),
            scale=self.scaler.scale,
        )
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, settings.clip_norm)
        finite = norm.isfinite()
        if not self.scaler.is_enabled():
            # What the scaler sets under fp16: the fused kernel then leaves weights and moments.
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._skipped += ~finite
        self._skipped_in_row = torch.where(finite, 0, self._skipped_in_row + 1)
        self._window.add(stream, {**values, "grad_norm": norm}, finite)

    def _close_window(self, step: int, seconds: float) -> None:
        values = self._window.close()
        skipped, in_row = torch.stack([self._skipped, self._skipped_in_row]).tolist()
        self._skipped.zero_()
        values["lr"] = self._lr
        values["samples_per_second"] = values.pop("samples") / seconds
        values["data_wait"] = values["data_wait"] / self.world.size / seconds  # share of the time
        values["skipped_updates"] = skipped
        if self.scaler.is_enabled():
            values["loss_scale"] = self.scaler.get_scale()
        if self.log is not None:
            self.log.write(step, values)
            self.log.progress(step, values)
            if skipped:
                self.log.say(f"[yellow]{skipped} updates skipped: gradient not finite[/]")
        if in_row >= self.settings.max_skipped:
            raise UserError(
                f"step {step}: the last {in_row} updates had no finite gradient",
                "resume from an earlier checkpoint with a lower --set optim.lr",
            )

    def _evaluate(self, step: int) -> None:
        if self.evaluate is None or self.log is None:
            return
        values = {f"eval/{name}": value for name, value in self.evaluate().items()}
        self.model.train()
        self.log.write(step, values)


@contextmanager
def interrupt_flag() -> Iterator[Callable[[], bool]]:
    """While active, a first Ctrl-C only sets the flag that is yielded; a second one interrupts."""
    wanted = False

    def handler(signum: int, frame: object) -> None:
        nonlocal wanted
        if wanted:
            raise KeyboardInterrupt
        wanted = True

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: wanted
    finally:
        signal.signal(signal.SIGINT, before)


def _seed(*keys: int | str) -> None:
    torch.manual_seed(counter_seed(*keys))
