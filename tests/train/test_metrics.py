from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from xvlm_data.errors import UserError
from xvlm_train.engine.metrics import METRICS_FILE, Log, Window, read_metrics

ONE = torch.tensor(1.0)


def test_a_window_shows_a_step_in_the_series_at_once() -> None:
    """The published log is a mean since step 0, which would show 1.5 here."""
    window = Window()
    for _ in range(10):
        window.add("image_text", {"mlm": torch.tensor(1.0)}, ONE)
    assert window.close() == {"image_text/mlm": 1.0}
    for _ in range(10):
        window.add("image_text", {"mlm": torch.tensor(2.0)}, ONE)
    assert window.close() == {"image_text/mlm": 2.0}
    assert window.close() == {}


def test_means_are_of_what_counts_and_streams_do_not_mix() -> None:
    window = Window()
    window.add("image_text", {"mlm": torch.tensor(1.0), "itc": torch.tensor(5.0)}, ONE)
    window.add("image_text", {"mlm": torch.tensor(float("nan")), "itc": ONE}, torch.tensor(False))
    window.add("image_text", {"mlm": torch.tensor(3.0), "itc": torch.tensor(7.0)}, ONE)
    window.add("multi_grained", {"box_l1": torch.tensor(9.0)}, torch.tensor(0))
    window.count("samples", 3)
    window.count("samples", 4)
    assert window.close() == {"image_text/mlm": 2.0, "image_text/itc": 6.0, "samples": 7.0}


def test_resuming_drops_lines_that_will_be_written_again(tmp_path: Path) -> None:
    with Log(tmp_path, resume_step=0, total_steps=30) as log:
        for step in (10, 20, 30):
            log.write(step, {"lr": 0.1, "eval/x": float("nan")})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 40, "lr"')  # a crash in the middle of a line
    with Log(tmp_path, resume_step=20, total_steps=30) as log:
        log.write(30, {"lr": 0.2})
    lines = read_metrics(tmp_path)
    assert [(line["step"], line["lr"]) for line in lines] == [(10, 0.1), (20, 0.1), (30, 0.2)]
    assert lines[0]["eval/x"] is None
    # Strict JSON: no NaN tokens.
    for text in (tmp_path / METRICS_FILE).read_text().splitlines():
        json.loads(text, parse_constant=lambda token: pytest.fail(token))
    assert list((tmp_path / "tensorboard").iterdir())


def test_no_metrics_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        read_metrics(tmp_path)
