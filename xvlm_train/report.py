"""``xvlm-train report``: what a run did and how it went, on one page of HTML without scripts."""

from __future__ import annotations

import html
import io
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from xvlm_data.errors import UserError

#: Panels after the losses: title, unit of the axis, and the metrics drawn in it.
_PANELS = (
    ("matching accuracy", ("image_text/matching_accuracy", "multi_grained/matching_accuracy")),
    (
        "loss by granularity",
        tuple(
            f"multi_grained/{loss}_{kind}"
            for loss in ("matching", "mlm")
            for kind in ("image", "region")
        ),
    ),
    ("false negatives", ("image_text/false_negatives", "multi_grained/false_negatives")),
    ("temperature", ("image_text/temperature", "multi_grained/temperature")),
    ("gradient norm", ("image_text/grad_norm", "multi_grained/grad_norm")),
    ("learning rate", ("lr",)),
    ("pairs a second", ("samples_per_second",)),
    ("waiting, share of the time", ("data_wait", "save_wait")),
    ("padding and fill", ("image_text/padding", "multi_grained/padding", "multi_grained/fill")),
    ("memory, GB", ("memory_gb",)),
)
_LOSSES = ("contrastive", "matching", "mlm", "box_l1", "box_giou", "total")
_STREAMS = ("image_text", "multi_grained")
#: Points drawn of a curve at most; longer ones are thinned evenly.
_POINTS = 1000
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em;
  color: #222; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .2em .9em .2em 0; text-align: left;
  border-bottom: 1px solid #ddd; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.curves { display: flex; flex-wrap: wrap; gap: .5em; } .curves svg { width: 24em; height: auto; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: .85em; }
"""


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: RUN/report.html]"
)
def report_command(run: Path, out: Path | None) -> None:
    """Write a page about RUN, a run's folder: curves, results, events, checkpoints, settings.

    The page is one file without scripts, to be mailed or archived. It can be written at any time,
    while the run goes on too.

    \b
    xvlm-train report runs/first
    xvlm-train report runs/first --out first.html
    """
    target = out or run / "report.html"
    page = report(run)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(target)
    click.echo(f"wrote {target}")


def report(run: Path) -> str:
    """The page about a run's folder.

    Raises:
        UserError: no run there, or nothing logged yet.
    """
    from xvlm_train.engine.metrics import read_events, read_metrics

    lines = read_metrics(run)
    if not lines:
        raise UserError("the run has logged nothing yet", "let it reach train.log_every steps")
    events = read_events(run)
    config = run / "config.yaml"
    settings = config.read_text(encoding="utf-8") if config.is_file() else ""
    title = html.escape(run.absolute().name)
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
            _table([], _summary(run, lines, events)),
            "<h2>Curves</h2>",
            f'<div class="curves">{"".join(_curves(lines, events))}</div>',
            *_section("Held out", _table(["measure", "result"], _held_out(lines))),
            *_section("Events", _table(["when", "step", "what"], _events(events))),
            *_section("Checkpoints", _table(["step", "MB", "written"], _checkpoints(run))),
            *_section("Settings", f"<pre>{html.escape(settings)}</pre>" if settings else ""),
            "</body></html>",
            "",
        ]
    )


def _section(title: str, content: str) -> list[str]:
    return [f"<h2>{html.escape(title)}</h2>", content] if content else []


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def cell(value: object) -> str:
        if isinstance(value, int | float):
            return f'<td class="n">{value:,}</td>'
        return f"<td>{html.escape(str(value))}</td>"

    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    if not body:
        return ""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f"<table>{f'<tr>{top}</tr>' if top else ''}{body}</table>"


def _summary(
    run: Path, lines: list[dict[str, Any]], events: list[dict[str, Any]]
) -> list[tuple[str, object]]:
    last = max(lines, key=lambda line: line["step"])
    trained = [line for line in lines if line.get("samples_per_second") is not None]
    kinds = Counter(str(event["event"]) for event in events)
    rows: list[tuple[str, object]] = [("folder", run.absolute()), ("steps done", last["step"])]
    starts = [event for event in events if event["event"] == "start"]
    if starts:
        rows.append(("ranks", starts[-1].get("ranks", "")))
        rows.append(("started, then gone on", f"1, {len(starts) - 1}"))
    if trained:
        speeds = sorted(line["samples_per_second"] for line in trained)
        rows.append(("pairs a second, median", round(speeds[len(speeds) // 2], 1)))
        skipped = Counter[str]()
        for line in trained:
            for name, value in line.items():
                if name.startswith("skipped/") and value:
                    skipped[name.removeprefix("skipped/")] += int(value)
        told = ", ".join(f"{number:,} {reason}" for reason, number in skipped.most_common())
        rows.append(("rows and concepts left out", told or "none"))
    rows.append(("updates skipped", kinds["skipped_update"]))
    rows.append(("loss spikes", kinds["loss_spike"]))
    hangs = sorted(path.name for path in (run / "hangs").glob("rank_*.txt"))
    if hangs:
        rows.append(("reports of hanging ranks", ", ".join(hangs)))
    return rows


def _curves(lines: list[dict[str, Any]], events: list[dict[str, Any]]) -> Iterable[str]:
    spikes = [event["step"] for event in events if event["event"] == "loss_spike"]
    panels = [(loss, tuple(f"{stream}/{loss}" for stream in _STREAMS)) for loss in _LOSSES]
    held_out = ("eval/text_to_image_r1", "eval/image_to_text_r1", "eval/grounding_accuracy")
    for title, names in [*panels, *_PANELS, ("held out", held_out)]:
        curves = {}
        for name in names:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if points:
                curves[name] = points[:: -(-len(points) // _POINTS)]
        if curves:
            yield _draw(title.replace("_", " "), curves, spikes if title in _LOSSES else [])


def _draw(title: str, curves: dict[str, list[tuple[int, float]]], marks: Sequence[int]) -> str:
    """A panel as SVG; labels stay text, so that the page can be searched."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 3), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for name, points in curves.items():
        stream, _, measure = name.partition("/")
        label = measure if len(curves) > 2 or stream == "eval" else stream
        axes.plot(*zip(*points, strict=True), label=label.replace("_", " "), linewidth=1.2)
    for step in marks[:_POINTS]:
        axes.axvline(step, color="#c00", alpha=0.25, linewidth=0.8)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    drawn = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def _held_out(lines: list[dict[str, Any]]) -> list[tuple[str, object]]:
    measured = [line for line in lines if any(name.startswith("eval/") for name in line)]
    if not measured:
        return []
    return [("after step", measured[-1]["step"])] + [
        (name.removeprefix("eval/").replace("_", " "), round(value, 4))
        for name, value in measured[-1].items()
        if name.startswith("eval/") and value is not None
    ]


def _events(events: list[dict[str, Any]]) -> list[tuple[str, object, str]]:
    rows = []
    for event in events:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.get("time", 0)))
        rest = {k: v for k, v in event.items() if k not in ("event", "step", "time") and v}
        told = ", ".join(f"{name}: {value}" for name, value in rest.items())
        rows.append((when, event["step"], f"{event['event']}{': ' * bool(told)}{told[:2000]}"))
    return rows


def _checkpoints(run: Path) -> list[tuple[object, object, str]]:
    rows: list[tuple[object, object, str]] = []
    for path in sorted((run / "checkpoints").glob("step_*")):
        files = [file for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / 1e6
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
        rows.append((path.name, round(size, 1), written))
    return rows
