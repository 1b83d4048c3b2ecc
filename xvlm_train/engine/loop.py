"""The training loop: up to two updates a step, each with its own stream, batch and optimiser step.

Nothing in a step waits for the device. What the loop needs of random numbers is seeded from
(seed, step, stream, rank) before each update, so that a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from xvlm_data.errors import UserError
from xvlm_train.engine import accumulate, optim
from xvlm_train.engine.bad_rows import BadRows
from xvlm_train.engine.distributed import StopAgreement, World
from xvlm_train.engine.ema import WeightAverage
from xvlm_train.engine.metrics import Log, Window
from xvlm_train.engine.preemption import Stop, stop_flag
from xvlm_train.engine.schedule import (
    Schedule,
    counter_seed,
    is_multi_grained,
    learning_rate_factor,
)
from xvlm_train.engine.watch import Watch
from xvlm_train.engine.watchdog import Watchdog

IMAGE_TEXT, MULTI_GRAINED = "image_text", "multi_grained"
Precision = Literal["fp32", "bf16", "fp16"]


class DeviceBatch(Protocol):
    """What the loop asks of a batch; the rest is between the stream and the model."""

    text_ids: Tensor  # [B, L]: B pairs of a text and an image or region
    record_ids: list[str]  # of its rows
    skipped: dict[str, int]  # rows and concepts that could not be used, by reason

    @property
    def rejects(self) -> Sequence[tuple[str, str, str]]:
        """Those of them that are rows: id, reason, detail."""

    def to(self, device: torch.device, non_blocking: bool = ...) -> Any:
        """The batch on ``device``."""

    def parts(self, count: int) -> list[Any]:
        """The batch in at most ``count`` parts."""


class Saves(Protocol):
    """What the loop asks of checkpoints (:class:`xvlm_train.engine.saving.Saver`)."""

    waited: float

    def before_update(self) -> None:
        """Weights are about to change."""

    @property
    def failed(self) -> bool:
        """Whether the last checkpoint could not be written."""

    def finish(self) -> None:
        """Wait until all is written; raises what went wrong."""


class Gradients(Protocol):
    """What the loop asks of the gradients."""

    def clip(self, most: float) -> Tensor:
        """Bring the norm of all gradients down to ``most``; what it was, a scalar."""

    def forget(self) -> None:
        """Free them."""


@dataclass
class WholeGradients:
    """Gradients that every rank has whole."""

    parameters: list[nn.Parameter]

    def clip(self, most: float) -> Tensor:
        """See :class:`Gradients`."""
        return nn.utils.clip_grad_norm_(self.parameters, most)

    def forget(self) -> None:
        """See :class:`Gradients`."""
        for parameter in self.parameters:
            parameter.grad = None


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
    kind: Schedule = "linear"
    final: float = 0.0
    decay: int = 0
    spike_sigmas: float = 0.0
    max_bad_rows: float = 1.0


@dataclass
class Trainer:
    """Runs updates from ``start_step`` to ``settings.steps``.

    Args:
        model: batch → dict of scalar tensors: the losses by name, their sum as ``total``, and any
            further values worth a curve, pairs (sum, number) among them. Wrapped for several ranks
            already.
        optimizer: over its parameters (:func:`xvlm_train.engine.optim.adamw`).
        streams: endless batches by stream name, standing at ``start_step``.
        log: on the main rank.
        save: begins to write a checkpoint of the given number of steps done, with the given state
            of the loop; on every rank.
        saves: what ``save`` began.
        evaluate: values to log from held-out data; on every rank.
        describe: host numbers of a batch to log as shares, (part, whole) by name.
        average: of the weights.
        watchdog: told where this rank is.
        gradients: of the model; the optimiser's by default.
        owes_evaluation: the run was killed between the checkpoint of ``start_step`` and the
            evaluation that follows it; equal on all ranks.
    """

    world: World
    settings: Settings
    model: nn.Module
    optimizer: torch.optim.Optimizer
    streams: dict[str, Iterator[DeviceBatch]]
    log: Log | None
    save: Callable[[int, dict[str, Any]], None]
    saves: Saves
    evaluate: Callable[[], dict[str, float]] | None = None
    describe: Callable[[Any], dict[str, tuple[float, float]]] | None = None
    average: WeightAverage | None = None
    watchdog: Watchdog | None = None
    gradients: Gradients | None = None
    start_step: int = 0
    owes_evaluation: bool = False
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        device = self.world.device
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=self.settings.precision == "fp16", init_scale=2.0**10
        )
        self._gradients = self.gradients or WholeGradients(
            [p for group in self.optimizer.param_groups for p in group["params"]]
        )
        self._window = Window()
        self._watch = Watch(self.settings.spike_sigmas)
        self._bad_rows = BadRows(self.settings.max_bad_rows)
        self._lr = 0.0

    def state(self) -> dict[str, Any]:
        """What a resumed loop has to know beside the step, as plain values."""
        return {
            "scaler": self.scaler.state_dict(),
            "watch": self._watch.state(),
            "rows": self._bad_rows.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self._watch.load_state(state["watch"])
        self._bad_rows.load_state(state["rows"])

    def fit(self) -> tuple[int, Stop]:
        """Train.

        Returns:
            The number of steps done, and why it is less than asked.

        Raises:
            UserError: ``max_skipped`` updates in a row had no finite loss and gradient; more than
                ``max_bad_rows`` of the rows could not be used.
            OSError: the last checkpoint could not be written.
        """
        settings, step = self.settings, self.start_step
        agreement = StopAgreement()
        stop = Stop.NO
        self.model.train()
        with stop_flag() as wanted:
            if self.owes_evaluation and (step == settings.steps or self._evaluates(step)):
                self._evaluate(step)
            window_start = time.monotonic()
            while step < settings.steps:
                self._step(step)
                step += 1
                last = step == settings.steps
                reason = Stop.SAVE_FAILED if self.saves.failed else wanted()
                stop = Stop.NO if last else Stop(agreement.stop_now(reason))
                save = last or stop or step % settings.save_every == 0
                # A checkpoint closes the window: a resumed run then logs what this one would have.
                if save or step % settings.log_every == 0:
                    self._close_window(step, time.monotonic() - window_start)
                    window_start = time.monotonic()
                if save and stop != Stop.SAVE_FAILED:
                    self._at(step, "saving")
                    self.save(step, self.state())
                if last or (self._evaluates(step) and not stop):
                    # Averaged weights take the place of those that are being saved.
                    self.saves.before_update()
                    began = time.monotonic()
                    self._evaluate(step)
                    window_start += time.monotonic() - began
                if stop:
                    break
            agreement.finish()
            self._at(step, "writing the last checkpoint")
            self.saves.finish()
        return step, stop

    def _evaluates(self, step: int) -> bool:
        every = self.settings.eval_every
        return bool(every) and step % every == 0

    def _at(self, step: int, doing: str) -> None:
        if self.watchdog is not None:
            self.watchdog.at(step, doing)

    def _step(self, step: int) -> None:
        settings = self.settings
        factor = learning_rate_factor(
            step,
            warmup=settings.warmup,
            total=settings.steps,
            kind=settings.kind,
            final=settings.final,
            decay=settings.decay,
        )
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
        batch = self._next(stream, step)
        self._at(step, f"{stream} update")
        record_ids = batch.record_ids
        parts = batch.parts(settings.accumulate) if settings.accumulate > 1 else [batch]
        parts = [part.to(device, non_blocking=True) for part in parts]
        keys = (settings.seed, step, stream, self.world.rank)
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.precision)
        self._gradients.forget()
        values = accumulate.backward(
            self.model,
            parts,
            in_parts=settings.accumulate > 1,
            begin=lambda n: _seed(*keys, *([n] if n else [])),
            autocast=lambda: torch.autocast(device.type, dtype=low, enabled=low is not None),
            scale=lambda loss: self.scaler.scale(_poisoned(loss)),
        )
        total = values["total"].detach()
        self.scaler.unscale_(self.optimizer)
        norm = self._gradients.clip(settings.clip_norm)
        finite = norm.isfinite()
        if not self.scaler.is_enabled():
            # What the scaler sets under fp16: the fused kernel then leaves weights and moments.
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.saves.before_update()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(finite)
        self._watch.update(step, stream, record_ids, total, finite)
        self._window.add(stream, {**values, "grad_norm": norm}, finite)

    def _next(self, stream: str, step: int) -> DeviceBatch:
        """The stream's next batch, counted."""
        self._at(step, f"waiting for a batch of {stream}")
        started = time.monotonic()
        batch = next(self.streams[stream])
        self._window.count("data_wait", time.monotonic() - started)
        self._window.count("samples", len(batch.text_ids))
        self._window.count("rows", len(batch.record_ids))
        for reason, number in batch.skipped.items():
            self._window.count(f"skipped/{reason}", number)
        self._bad_rows.add(step, stream, batch.rejects)
        if self.describe is not None:
            for name, (part, whole) in self.describe(batch).items():
                self._window.share(f"{stream}/{name}", part, whole)
        return batch

    def _close_window(self, step: int, seconds: float) -> None:
        self._at(step, "closing a window")
        self._window.peak("memory_gb", _memory(self.world.device) / 1e9)
        self._window.count("save_wait", self.saves.waited)
        self.saves.waited = 0.0
        values = self._window.close()
        events = self._watch.close()
        skipped = sum(event["event"] == "skipped_update" for event in events)
        values["lr"] = self._lr
        values["samples_per_second"] = values.pop("samples") / seconds
        for name in ("data_wait", "save_wait"):  # shares of the time
            values[name] = values[name] / self.world.size / seconds
        values["skipped_updates"] = skipped
        if self.scaler.is_enabled():
            values["loss_scale"] = self.scaler.get_scale()
        rejects = self._bad_rows.close(values.pop("rows"))
        if self.log is not None:
            self.log.write(step, values)
            self.log.progress(step, values)
            self.log.reject(rejects)
            for event in events:
                self.log.event(**event)
                self.log.say(f"[yellow]{_describe(event)}[/]")
        self._judge(step)

    def _judge(self, step: int) -> None:
        """End a run that does not learn, or whose data are not what they should be."""
        in_row, most = self._watch.skipped_in_row, self.settings.max_skipped
        if in_row >= most:
            raise UserError(
                f"step {step}: the last {in_row} updates had no finite loss and gradient (their"
                " records are in events.jsonl)",
                "resume from an earlier checkpoint with a lower --set optim.lr",
            )
        self._bad_rows.judge(step)

    def _evaluate(self, step: int) -> None:
        if self.evaluate is None:
            return
        if self.watchdog is not None:
            with self.watchdog.paused(step, "after the evaluation"):
                values = self.evaluate()
        else:
            values = self.evaluate()
        self.model.train()
        if self.log is not None:
            self.log.write(step, {f"eval/{name}": value for name, value in values.items()})


def _memory(device: torch.device) -> float:
    """Bytes: the most that was used on the device so far, or by this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(kilobytes if sys.platform == "darwin" else kilobytes * 1024)


def _seed(*keys: int | str) -> None:
    torch.manual_seed(counter_seed(*keys))


def _poisoned(loss: Tensor) -> Tensor:
    """A loss that is not finite makes every gradient NaN, and by their mean those of all ranks.

    So all skip the update, without asking each other.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def _describe(event: dict[str, Any]) -> str:
    """An event as a line for a person."""
    where = f"step {event['step']}, {event['stream']}"
    ranks = ", ".join(event["records"])
    told = f"records of rank {ranks} in events.jsonl"
    if event["event"] == "loss_spike":
        worst = max(loss for loss in event["loss"] if loss is not None)
        return f"{where}: loss {worst:.3f}, {event['expected']:.3f} was expected; {told}"
    return f"{where}: update skipped, loss or gradient not finite; {told}"
