"""Windowed means on the device, and where they are written: JSONL, TensorBoard, console.

A window covers the updates since the last line and nothing before them, and holds measured values
only: a stream that had no update in it has no entry.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console

from xvlm_data.errors import UserError
from xvlm_train.engine.distributed import sum_over_ranks, union_over_ranks

METRICS_FILE = "metrics.jsonl"


class Window:
    """Sums of named values since the last :meth:`close`; what is on a device stays there."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._sums: dict[str, torch.Tensor] = {}  # [K + 1] float64: weighted sums, sum of weights
        self._totals: dict[str, float] = {}

    def add(self, group: str, values: dict[str, torch.Tensor], weight: torch.Tensor) -> None:
        """Add scalars of which the window reports the means over updates and ranks.

        Args:
            group: values of a group come together and share their weights.
            values: scalars by name, the same names each time; reported as ``group/name``.
            weight: scalar; values of weight 0 do not count, be they NaN.
        """
        numbers = torch.stack([value.detach().double() for value in values.values()])
        weight = weight.detach().double()
        # where, not a product alone: NaN times 0 is NaN.
        numbers = torch.where(weight > 0, numbers * weight, 0.0)
        numbers = torch.cat([numbers, weight.reshape(1)])
        if group in self._sums:
            self._sums[group] += numbers
        else:
            self._names[group], self._sums[group] = list(values), numbers

    def count(self, name: str, value: float) -> None:
        """Add a number of the host of which the window reports the sum over updates and ranks.

        Other than in :meth:`add`, ranks may have different names.
        """
        self._totals[name] = self._totals.get(name, 0.0) + value

    def close(self) -> dict[str, float]:
        """The window's values over all ranks, by name; the next window starts empty.

        The one host sync of a window, and a collective: every rank calls it having added values of
        the same groups. A mean that nothing counted for is left out.
        """
        counted = union_over_ranks(self._totals)
        parts = list(self._sums.values())
        device = parts[0].device if parts else torch.device("cpu")
        totals = torch.tensor(
            [self._totals.get(name, 0.0) for name in counted], dtype=torch.float64, device=device
        )
        numbers = sum_over_ranks(torch.cat([*parts, totals])).tolist()
        values: dict[str, float] = {}
        for group, names in self._names.items():
            *sums, weight = numbers[: len(names) + 1]
            numbers = numbers[len(names) + 1 :]
            if weight > 0:
                values |= {
                    f"{group}/{name}": value / weight
                    for name, value in zip(names, sums, strict=True)
                }
        values |= dict(zip(counted, numbers, strict=True))
        self._names, self._sums, self._totals = {}, {}, {}
        return values


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics file, oldest first; a line cut off by a crash is left out.

    Raises:
        UserError: the run has no such file.
    """
    try:
        text = (run / METRICS_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{run / METRICS_FILE}: not found", "name the folder of a run") from None
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


class Log:
    """Writes metrics of the main rank: JSONL and TensorBoard always, a compact console line.

    Args:
        run: the run's folder.
        resume_step: steps done before this process; lines about later steps, written by a process
            that died before its next checkpoint, are dropped, as those steps are done again.
        total_steps: of the whole run, for the ETA.
    """

    def __init__(self, run: Path, *, resume_step: int, total_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._total = total_steps
        self._first_step = resume_step
        self._started = time.monotonic()
        path = run / METRICS_FILE
        if path.exists():
            kept = [line for line in read_metrics(run) if line["step"] <= resume_step]
            partial = path.with_suffix(".tmp")
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            partial.replace(path)
        self._file = path.open("a", encoding="utf-8")
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
        self._board.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record ``values`` after ``step`` steps; values that are not finite become null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = {"step": step, "time": round(time.time(), 3), **finite}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

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
