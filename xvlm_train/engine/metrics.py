"""Windowed means on the device, and where they are written: JSONL, TensorBoard, W&B, console.

A window covers the updates since the last line and nothing before them, and holds measured values
only: a stream that had no update in it has no entry.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from rich.console import Console

from xvlm_data.errors import UserError
from xvlm_train.engine.distributed import gather_over_ranks, sum_over_ranks

METRICS_FILE, EVENTS_FILE, REJECTS_FILE = "metrics.jsonl", "events.jsonl", "rejects.jsonl"


class Window:
    """Sums of named values since the last :meth:`close`; what is on a device stays there."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._means: dict[str, list[str]] = {}  # K names of each group
        self._shares: dict[str, list[str]] = {}  # S names of each group
        self._sums: dict[str, torch.Tensor] = {}  # [K + 1 + 2 S] float64: sums, weight, pairs
        self._totals: dict[str, float] = {}
        self._parts: dict[str, tuple[float, float]] = {}
        self._peaks: dict[str, float] = {}

    def add(self, group: str, values: dict[str, torch.Tensor], weight: torch.Tensor) -> None:
        """Add values of which the window reports the means over updates and ranks.

        Args:
            group: values of a group come together and share their weights.
            values: by name, the same names each time; reported as ``group/name``. Scalars are
                averaged with ``weight``; a pair [2] is a sum and the number it is of, and the
                window's mean is the sum of the sums by the sum of the numbers.
            weight: scalar; values of weight 0 do not count, be they NaN.
        """
        means = [name for name, value in values.items() if value.dim() == 0]
        shares = [name for name, value in values.items() if value.dim() == 1]
        weight = weight.detach().double()
        numbers = torch.cat(
            [
                torch.stack([values[name].detach().double() for name in means]) * weight,
                weight.reshape(1),
                *(values[name].detach().double() for name in shares),
            ]
        )
        # where, not a product alone: NaN times 0 is NaN.
        numbers = torch.where(weight > 0, numbers, 0.0)
        if group in self._sums:
            self._sums[group] += numbers
        else:
            self._means[group], self._shares[group] = means, shares
            self._sums[group] = numbers

    def count(self, name: str, value: float) -> None:
        """Add a number of the host of which the window reports the sum over updates and ranks.

        Other than in :meth:`add`, ranks may have different names; so too below.
        """
        self._totals[name] = self._totals.get(name, 0.0) + value

    def share(self, name: str, part: float, whole: float) -> None:
        """Add a part of a whole; the window reports the share over updates and ranks."""
        before = self._parts.get(name, (0.0, 0.0))
        self._parts[name] = before[0] + part, before[1] + whole

    def peak(self, name: str, value: float) -> None:
        """Add a number of which the window reports the greatest over updates and ranks."""
        self._peaks[name] = max(value, self._peaks.get(name, value))

    def close(self) -> dict[str, float]:
        """The window's values over all ranks, by name; the next window starts empty.

        A host sync, and a collective: every rank calls it having added values of the same groups.
        A mean that nothing counted for is left out.
        """
        values: dict[str, float] = {}
        if self._sums:
            numbers = sum_over_ranks(torch.cat(list(self._sums.values()))).tolist()
            for group, means in self._means.items():
                size = len(means) + 1 + 2 * len(self._shares[group])
                own, numbers = numbers[:size], numbers[size:]
                weight, pairs = own[len(means)], own[len(means) + 1 :]
                if weight > 0:
                    for name, value in zip(means, own, strict=False):
                        values[f"{group}/{name}"] = value / weight
                for name, value, count in zip(
                    self._shares[group], pairs[::2], pairs[1::2], strict=True
                ):
                    if count > 0:
                        values[f"{group}/{name}"] = value / count
        values |= self._host_values()
        self._forget()
        return values

    def _host_values(self) -> dict[str, float]:
        values: dict[str, float] = {}
        parts: dict[str, tuple[float, float]] = {}
        for totals, shares, peaks in gather_over_ranks((self._totals, self._parts, self._peaks)):
            for name, value in totals.items():
                values[name] = values.get(name, 0.0) + value
            for name, (part, whole) in shares.items():
                before = parts.get(name, (0.0, 0.0))
                parts[name] = before[0] + part, before[1] + whole
            for name, value in peaks.items():
                values[name] = max(value, values.get(name, value))
        return values | {name: part / whole for name, (part, whole) in parts.items() if whole}


def read_events(run: Path) -> list[dict[str, Any]]:
    """All events of a run, oldest first: skipped updates, spikes, starts, stops."""
    path = run / EVENTS_FILE
    return list(_lines(path)) if path.exists() else []


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics file, oldest first; a line cut off by a crash is left out.

    Raises:
        UserError: the run has no such file.
    """
    try:
        return list(_lines(run / METRICS_FILE))
    except FileNotFoundError:
        raise UserError(f"{run / METRICS_FILE}: not found", "name the folder of a run") from None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                values = json.loads(line)
            except json.JSONDecodeError:  # cut off by a crash
                continue
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                yield values


def _reopened(path: Path, last_step: int) -> TextIO:
    """A file of lines, to be gone on with, without those of steps after ``last_step``."""
    if path.exists():
        partial = path.with_suffix(".tmp")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(
                json.dumps(line) + "\n" for line in _lines(path) if line["step"] <= last_step
            )
        partial.replace(path)
    return path.open("a", encoding="utf-8")


class Log:
    """Writes metrics of the main rank: JSONL and TensorBoard always, a compact console line.

    Args:
        run: the run's folder.
        resume_step: steps done before this process; lines about later steps, written by a process
            that died before its next checkpoint, are dropped, as those steps are done again.
        total_steps: of the whole run, for the ETA.
        wandb: project of Weights & Biases to write to as well; none: do not.

    Raises:
        UserError: ``wandb`` is asked for and not installed, or cannot be reached.
    """

    def __init__(
        self, run: Path, *, resume_step: int, total_steps: int, wandb: str | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._total = total_steps
        self._first_step = resume_step
        self._started = time.monotonic()
        # Metrics are numbered by the steps done, rejects by the step that met them.
        self._file = _reopened(run / METRICS_FILE, resume_step)
        self._rejects = _reopened(run / REJECTS_FILE, resume_step - 1)
        self._events = (run / EVENTS_FILE).open("a+", encoding="utf-8")
        self._events.seek(0)
        if (text := self._events.read()) and not text.endswith("\n"):  # cut off by a crash
            self._events.write("\n")
        self._wandb = _start_wandb(wandb, run) if wandb else None
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=resume_step + 1)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._rejects.close()
        self._events.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record ``values`` after ``step`` steps; values that are not finite become null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = {"step": step, "time": round(time.time(), 3), **finite}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def event(self, step: int, event: str, **values: Any) -> None:
        """Record something that happened in ``step`` beside the metrics; nothing is ever dropped.

        Args:
            step: zero-based step, or steps done.
            event: what, as one word.
            values: plain values.
        """
        line = {"event": event, "step": step, "time": round(time.time(), 3), **values}
        self._events.write(json.dumps(line) + "\n")
        self._events.flush()

    def reject(self, lines: list[dict[str, Any]]) -> None:
        """Name rows that could not be used, each with the zero-based step that met it."""
        self._rejects.write("".join(json.dumps(line) + "\n" for line in lines))
        self._rejects.flush()

    def progress(self, step: int, values: dict[str, float]) -> None:
        """One console line: the losses of both streams, rate, speed, time left."""
        done = step - self._first_step
        left = (self._total - step) * (time.monotonic() - self._started) / max(1, done)
        parts = [f"[bold]{step:>{len(str(self._total))}}[/]/{self._total}"]
        for stream, short in (("image_text", "image-text"), ("multi_grained", "multi-grained")):
            losses = [
                f"{name.removeprefix(stream + '/').replace('contrastive', 'ctr')} {value:.3f}"
                for name, value in values.items()
                if name.startswith(stream + "/") and name.split("/")[1] in _SHOWN
            ]
            if losses:
                parts.append(f"[cyan]{short}[/] " + " ".join(losses))
        parts.append(f"lr {values['lr']:.2e}")
        parts.append(f"{values['samples_per_second']:.1f}/s")
        parts.append(f"ETA {_duration(left)}")
        self.say(" · ".join(parts))

    def say(self, text: str) -> None:
        """A line for the person at the console (stderr; stdout is for results)."""
        self._console.print(text)


#: Losses shown on the console, the rest being in the files.
_SHOWN = ("contrastive", "matching", "mlm", "box_l1", "box_giou")


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _start_wandb(project: str, run: Path) -> Any:
    """A run of Weights & Biases that a resumed run of ours goes on with."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            "Weights & Biases is asked for (train.wandb), but not installed",
            "pip install -e '.[wandb]' in the clone, or --set train.wandb=null",
        ) from None
    remembered = run / "wandb_id"
    if not remembered.exists():
        remembered.write_text(uuid.uuid4().hex + "\n", encoding="utf-8")
    try:
        return wandb.init(
            project=project,
            id=remembered.read_text(encoding="utf-8").strip(),
            name=run.name,
            dir=str(run),
            resume="allow",
        )
    except wandb.errors.Error as error:
        what = f"Weights & Biases cannot be started ({str(error).splitlines()[0]})"
        raise UserError(what, "set WANDB_MODE=offline, or --set train.wandb=null") from None
