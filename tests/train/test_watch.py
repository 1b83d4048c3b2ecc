"""What goes wrong in a run is told with the records it was of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.train.small_models import random_batch, small_config
from tests.train.test_checkpoint import build, trainer
from xvlm_data.errors import UserError
from xvlm_train.commands import main
from xvlm_train.engine.loop import Settings
from xvlm_train.engine.metrics import EVENTS_FILE, Log, Window, read_events, read_metrics
from xvlm_train.engine.preemption import Stop, stop_flag
from xvlm_train.engine.watch import Level, Watch
from xvlm_train.engine.watchdog import HUNG, Watchdog
from xvlm_train.model.xvlm import XVLM
from xvlm_train.telemetry import host_measures, measures

GOOD, BAD = torch.tensor(True), torch.tensor(False)


def test_skipped_updates_are_written_with_their_records(tmp_path: Path) -> None:
    model, optimizer = build()
    run = trainer(tmp_path, model, optimizer, bad=range(2, 4), iter_perc=0.0)
    with Log(tmp_path, resume_step=0, total_steps=6) as log:
        run.log = log
        run.fit()
    events = read_events(tmp_path)
    assert [(e["event"], e["step"], e["stream"]) for e in events] == [
        ("skipped_update", 2, "image_text"),
        ("skipped_update", 3, "image_text"),
    ]
    assert [e["records"] for e in events] == [{"0": ["toy/2"]}, {"0": ["toy/3"]}]
    assert [e["loss"] for e in events] == [[None], [None]]
    assert [line["skipped_updates"] for line in read_metrics(tmp_path)] == [0, 1, 1, 0]


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is() -> None:
    """inf + something differentiable: every gradient is finite, the loss is not."""
    model, optimizer = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    original = model.forward

    def forward(batch: object) -> dict[str, torch.Tensor]:
        values = original(batch)  # type: ignore[arg-type]
        return values | {"total": values["total"] + torch.inf}

    model.forward = forward  # type: ignore[method-assign,assignment]
    run = trainer(Path("/nowhere"), model, optimizer, iter_perc=0.0)
    run._step(0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    (event,) = run._watch.close()
    assert event["event"] == "skipped_update" and run._watch.skipped_in_row == 1


def test_a_row_of_skipped_updates_is_counted_over_a_resume() -> None:
    watch = Watch(0.0)
    for step in range(3):
        watch.update(step, "s", [], torch.tensor(1.0), BAD)
    watch.close()
    other = Watch(0.0)
    other.load_state(watch.state())
    other.update(3, "s", [], torch.tensor(1.0), BAD)
    other.close()
    assert other.skipped_in_row == 4
    other.update(4, "s", [], torch.tensor(1.0), GOOD)
    other.close()
    assert other.skipped_in_row == 0


def test_a_spike_is_reported_once_and_a_new_level_is_learnt() -> None:
    noise = torch.Generator().manual_seed(0)
    watch = Watch(6.0)

    def feed(step: int, level: float) -> None:
        loss = level + 0.1 * torch.randn((), generator=noise)
        watch.update(step, "image_text", [f"toy/{step}"], loss, GOOD)

    for step in range(300):
        feed(step, 8.0 if step == 200 else 2.0)
    (event,) = watch.close()
    assert event["event"] == "loss_spike" and event["step"] == 200
    assert event["records"] == {"0": ["toy/200"]}
    assert event["expected"] == pytest.approx(2.0, abs=0.1) and event["sigmas"] > 30
    # A level that stays is no spike for ever, and a fall is none at all.
    for step in range(300, 900):
        feed(step, 3.0)
    reported = [e["step"] for e in watch.close()]
    assert reported and max(reported) < 700
    for step in range(900, 1200):
        feed(step, 0.5)
    assert watch.close() == []


def test_the_running_level_is_that_of_a_long_mean() -> None:
    level = Level()
    values = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 0.5 + 3
    for value in values.tolist():
        level.take(value, 0.0)
    assert level.mean == pytest.approx(3, abs=0.2)
    assert level.variance == pytest.approx(0.25, rel=0.5)


def settled(**changes: float) -> Settings:
    run = trainer(Path("/nowhere"), *build(), **changes)
    return run.settings


def test_waiting_for_a_checkpoint_is_a_share_of_the_time(tmp_path: Path) -> None:
    """Though an evaluation follows the checkpoint, whose own time counts for nothing."""
    slow = 0.3
    model, optimizer = build()
    settings = {"log_every": 1, "save_every": 2, "eval_every": 2, "iter_perc": 0.0}
    run = trainer(tmp_path, model, optimizer, extras=lambda folder: time.sleep(slow), **settings)
    run.evaluate = lambda: time.sleep(slow / 3) or {"x": 1.0}
    with Log(tmp_path, resume_step=0, total_steps=6) as log:
        run.log = log
        run.fit()
    waits = {line["step"]: line["save_wait"] for line in read_metrics(tmp_path) if "lr" in line}
    assert all(0 <= share <= 1 for share in waits.values()), waits
    assert waits[5] > 0.5  # for the checkpoint of step 2, before that of step 4 began


def test_a_rank_that_hangs_tells_where_and_ends(tmp_path: Path) -> None:
    code = f"""
        import sys, time
        from pathlib import Path
        from xvlm_train.engine.watchdog import Watchdog

        def deep_in_a_read():
            time.sleep(60)

        say = lambda text: print(text, flush=True)
        with Watchdog(Path({str(tmp_path)!r}), 3, 0.2, say) as watchdog:
            watchdog.at(17, "waiting for a batch of image_text")
            deep_in_a_read()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == HUNG, done.stderr
    report = (tmp_path / "hangs" / "rank_3.txt").read_text()
    assert "rank 3 hangs" in report
    assert "in step 17, waiting for a batch of image_text" in report
    assert "deep_in_a_read" in report
    first, last = done.stdout.strip().splitlines()
    assert "step 17" in first and "hangs/rank_3.txt" in first
    assert "ends itself" in last


def test_a_rank_that_moves_or_may_take_its_time_is_left_alone(tmp_path: Path) -> None:
    told: list[str] = []
    with Watchdog(tmp_path, 0, 0.3, told.append) as watchdog:
        for step in range(10):
            watchdog.at(step, "update")
            time.sleep(0.05)
        with watchdog.paused(10, "after the evaluation"):
            time.sleep(1.5)
    assert told == [] and not (tmp_path / "hangs").exists()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGINT, Stop.INTERRUPTED),
        (signal.SIGTERM, Stop.PREEMPTED),
        (signal.SIGUSR1, Stop.PREEMPTED),
    ],
)
def test_signals_stop_after_the_step_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, reason: Stop
) -> None:
    model, optimizer = build()
    run = trainer(tmp_path, model, optimizer, save_every=100)
    original = run._step

    def step(at: int) -> None:
        original(at)
        if at == 2:
            os.kill(os.getpid(), number)
            if number != signal.SIGINT:  # launchers repeat it
                os.kill(os.getpid(), number)

    run._step = step  # type: ignore[method-assign]
    assert run.fit() == (3, reason)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "latest",
        "step_00000003",
    ]


def test_signals_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_flag() as wanted:
        assert signal.getsignal(signal.SIGTERM) != before
        assert wanted() == Stop.NO
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_full_disk_stops_the_run_and_leaves_it_resumable(tmp_path: Path) -> None:
    """The second checkpoint fails in its thread; the run ends soon after, not at its last step."""
    model, optimizer = build()
    saved = threading.Event()

    def extras(folder: Path) -> None:
        if saved.is_set():
            raise OSError(28, "No space left on device")
        saved.set()

    run = trainer(tmp_path, model, optimizer, extras=extras, save_every=2, steps=10_000)
    run.settings.max_skipped = 10_000
    with pytest.raises(OSError, match="No space left"):
        run.fit()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", "step_00000002"]


def test_pairs_are_means_over_all_updates_and_shares_over_all_batches() -> None:
    window = Window()
    for total, number in ((6.0, 3.0), (0.0, 0.0), (1.0, 1.0)):
        values = {"total": torch.tensor(number), "mlm_region": torch.tensor([total, number])}
        window.add("multi_grained", values, torch.tensor(1.0))
    window.add(
        "multi_grained",
        {"total": torch.tensor(float("nan")), "mlm_region": torch.tensor([float("nan"), 9.0])},
        torch.tensor(0.0),
    )
    window.share("multi_grained/padding", 30, 40)
    window.share("multi_grained/padding", 0, 10)
    window.peak("memory_gb", 1.5)
    window.peak("memory_gb", 0.5)
    assert window.close() == {
        "multi_grained/total": pytest.approx(4 / 3),
        "multi_grained/mlm_region": pytest.approx(7 / 4),
        "multi_grained/padding": pytest.approx(0.6),
        "memory_gb": 1.5,
    }
    assert window.close() == {}


def test_granularities_add_up_to_the_whole_batch() -> None:
    torch.manual_seed(0)
    model = XVLM(small_config()).eval()
    batch = random_batch(4, 7, 4)
    with torch.no_grad():
        outputs = model(batch)
        values = measures(outputs, batch)
    rows = len(batch.text_ids)
    whole = torch.nn.functional.cross_entropy(
        outputs.matching_logits[:rows], outputs.matching_labels[:rows], reduction="sum"
    )
    matching = values["matching_image"] + values["matching_region"]
    torch.testing.assert_close(matching, torch.stack([whole, torch.tensor(7.0)]))
    assert values["matching_region"][1] == 4
    logits, labels = outputs.mlm_logits, outputs.mlm_labels
    mean = torch.nn.functional.cross_entropy(logits, labels)
    mlm = values["mlm_image"] + values["mlm_region"]
    torch.testing.assert_close(mlm[0] / mlm[1], mean)


def test_false_negatives_are_counted() -> None:
    torch.manual_seed(0)
    model = XVLM(small_config()).eval()
    batch = random_batch(4, 4, 0, multi_grained=False)
    with torch.no_grad():
        outputs = model(batch)
    assert measures(outputs, batch)["false_negatives"].tolist() == [0.0, 8.0]
    batch.text_ids[:] = batch.text_ids[0]  # every text is every other
    assert measures(outputs, batch)["false_negatives"].tolist() == [8.0, 8.0]
    assert host_measures(batch, 128).keys() == {"padding"}
    regions = random_batch(3, 6, 3)
    shares = host_measures(regions, 8)
    assert shares["fill"] == (6.0, 8.0)
    assert shares["padding"] == (float((regions.text_mask == 0).sum()), 36.0)


def test_the_report_is_one_safe_page(tmp_path: Path) -> None:
    run = tmp_path / "run <b>"
    run.mkdir()
    (run / "config.yaml").write_text("train:\n  wandb: <script>alert(1)</script>\n")
    with Log(run, resume_step=0, total_steps=30) as log:
        for step in (10, 20, 30):
            log.write(
                step,
                {
                    **{"image_text/mlm": 3.0 - step / 20, "multi_grained/box_l1": 0.5},
                    **{"samples_per_second": 12.0, "lr": 1e-4, "skipped/truncated": 2},
                },
            )
        log.write(30, {"eval/text_to_image_r1": 0.25})
        log.event(0, "start", ranks=2)
        log.event(12, "loss_spike", stream="image_text", records={"0": ["<img src=x>"]})
    (run / "checkpoints" / "step_00000030").mkdir(parents=True)
    result = CliRunner().invoke(main, ["report", str(run)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 5  # mlm, box_l1, learning rate, pairs a second, held out
    assert "<script" not in page and "<img" not in page and "<b>" not in page
    for told in ("loss_spike", "step_00000030", "6 truncated", "0.25", "&lt;script&gt;"):
        assert told in page, told
    empty = CliRunner().invoke(main, ["report", str(tmp_path)], catch_exceptions=False)
    assert empty.exit_code == 2 and "not found" in empty.output


def test_events_of_a_crash_are_kept(tmp_path: Path) -> None:
    with Log(tmp_path, resume_step=0, total_steps=3) as log:
        log.event(7, "start", ranks=1)
    with (tmp_path / EVENTS_FILE).open("a") as file:
        file.write('{"event": "sta')
    with Log(tmp_path, resume_step=2, total_steps=3) as log:
        log.event(2, "start", ranks=1)
    assert [event["step"] for event in read_events(tmp_path)] == [7, 2]


def test_wandb_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="not installed"):
        Log(tmp_path, resume_step=0, total_steps=1, wandb="mine")


def test_wandb_gets_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):  # the second run goes on with the first
        with Log(tmp_path, resume_step=step - 1, total_steps=2, wandb="mine") as log:
            log.write(step, {"image_text/itc": 0.5, "image_text/itm": float("nan")})
    written = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len({path.stem for path in written}) == 1
    assert all(b"image_text/itc" in path.read_bytes() for path in written)
