"""bench, plan and the GPU script: what they count is what is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from tests.train.small_models import GRID, VOCAB, small_config
from xvlm_train import plan
from xvlm_train.bench.flops import count_work, useful_flops
from xvlm_train.commands import main
from xvlm_train.config import load_config
from xvlm_train.data.config import DataConfig
from xvlm_train.model.config import ComputeConfig
from xvlm_train.model.xvlm import XVLM
from xvlm_train.objectives import compute_losses
from xvlm_train.synthetic import synthetic_batch, text_lengths

DATA = DataConfig(image_size=32, max_tokens=8, max_masks=3)
SMALL = ("--batch", "3", "--images", "2", "--rounds", "1", "--warmup", "0", "--threads", "1")


def run(*arguments: str) -> tuple[int, str]:
    threads = torch.get_num_threads()
    try:
        result = CliRunner().invoke(main, arguments)
    finally:
        torch.set_num_threads(threads)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def test_bench_times_both_variants_and_their_phases() -> None:
    code, output = run("bench", *SMALL, "--naive", "--json")
    assert code == 0
    report = json.loads(output)
    for stream, images in (("image_text", 3), ("multi_grained", 2)):
        found = report["streams"][stream]
        assert (found["images"], found["texts"]) == (images, 3)
        ours, naive = found["variants"]["ours"], found["variants"]["naive"]
        assert found["ratios"] == [naive["seconds"][0] / ours["seconds"][0]]
        for row in (ours, naive):
            # Phases cover the step but for what lies between them.
            assert 0.5 < sum(row["phases"].values()) / row["step_seconds"] <= 1.01
            assert row["pairs_per_second"] == pytest.approx(3 / row["step_seconds"])
            assert row["executed_tflop"] >= found["useful_tflop"] * 0.999
        assert ours["padding_share"] == 0
        assert naive["padding_share"] > 0.3
        assert naive["executed_tflop"] > 1.2 * ours["executed_tflop"]


def test_bench_check_passes_and_tells_the_worst() -> None:
    code, output = run("bench", *SMALL, "--check", "--json")
    assert code == 0
    report = json.loads(output)
    assert report["ok"]
    assert {found["ok"] for found in report["streams"].values()} == {True}


def test_bench_tells_a_wrong_setting_in_one_line() -> None:
    result = CliRunner().invoke(main, ["bench", "--set", "compute.length_group=3"])
    assert result.exit_code == 2
    assert "did you mean length_groups" in result.stderr


def test_operations_of_the_base_model_are_those_of_the_closed_form() -> None:
    config = load_config("base")
    batch = synthetic_batch(
        "image_text", config.data, images=2, texts=2, vocab=30522, grid=(7, 7), seed=0
    )
    work = count_work(config.model, ComputeConfig.naive(40), batch, "cpu")
    tokens, width, inner, vision, keys = 40, 768, 3072, 1024, 50
    self_attention = 8 * width**2 * tokens + 4 * tokens**2 * width
    feed_forward = 4 * width * inner * tokens
    cross = 4 * width**2 * tokens + 4 * vision * width * keys + 4 * tokens * keys * width
    text = 6 * (self_attention + feed_forward)
    fusion = 6 * (self_attention + cross + feed_forward)
    head = 8 * (2 * width**2 + 2 * width * 30522)
    swin = 30.86e9  # of Swin-B at 224 pixels, 15.43 GMAC in its paper
    pair = swin + 2 * text + 4 * fusion + head
    assert work.forward / 2 == pytest.approx(pair, rel=0.01)
    assert work.backward == pytest.approx(2 * work.forward, rel=0.01)
    assert work.tokens == 6 * 2 * 40
    ours = count_work(config.model, ComputeConfig(), batch, "cpu")
    assert ours.tokens == ours.real_tokens == 6 * batch.host.lengths.sum()
    assert useful_flops(config.model, batch) == ours.flops


@pytest.mark.parametrize("stream", ["image_text", "multi_grained"])
def test_operations_without_weights_are_those_of_a_real_step(stream: str) -> None:
    config = small_config()
    batch = synthetic_batch(
        stream, DATA, images=4, texts=4, vocab=VOCAB, grid=(GRID, GRID), seed=1
    ).to("cpu")
    for compute, tolerance in ((ComputeConfig.naive(8), 0), (ComputeConfig(), 0.05)):
        model = XVLM(config, compute).train()
        with FlopCounterMode(display=False) as counter:
            compute_losses(model(batch), batch)["total"].backward()
        # Ours depends a little on which negative texts are drawn.
        work = count_work(config, compute, batch, "cpu")
        assert work.flops == pytest.approx(counter.get_total_flops(), rel=tolerance, abs=0)


def test_lengths_are_those_of_the_papers_sources() -> None:
    rng = np.random.default_rng(0)
    captions = text_lengths("image_text", 20_000, 40, rng)
    assert captions.mean() == pytest.approx(11.7, abs=0.3)
    assert 33 <= np.mean([text_lengths("image_text", 128, 40, rng).max() for _ in range(50)]) <= 37
    assert text_lengths("multi_grained", 20_000, 40, rng).mean() == pytest.approx(4.8, abs=0.3)
    assert captions.min() >= 2


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("bench", *SMALL, "--check"), "yes"),
        (("bench", *SMALL, "--naive"), "naive / ours"),
        (("plan", "--preset", "base", "--gpu", "H100"), "22.1 of 86 GB, fits"),
    ],
)
def test_tables_are_for_people(command: tuple[str, ...], told: str) -> None:
    code, output = run(*command)
    assert code == 0
    assert told in output
    assert "[/" not in output  # markup that nobody reads


def test_plan_of_the_papers_run() -> None:
    code, output = run("plan", "--preset", "base", "--json")
    assert code == 0
    report = json.loads(output)
    assert report["parameters"] == 215_637_241
    assert report["memory"]["moments"] == 8 * 215_637_241
    assert (report["steps"], report["updates"]) == (200_000, 300_000)
    assert report["global_batch"] == 1024
    seconds = report["tflop_per_step"] / (989 * plan.DEFAULT_MFU)
    assert report["seconds_per_step"] == pytest.approx(seconds)
    assert report["hours"] == pytest.approx(200_000 * seconds / 3600)
    # 128 images, and with probability one half 48 more.
    assert report["images_per_second_per_gpu"] == pytest.approx(152 / seconds)


def test_plan_counts_the_bytes_that_a_real_step_keeps() -> None:
    settings = ["data.batch_size=3", "compute.channels_last=false", "compute.length_multiple=8"]
    config = load_config("tiny", [], [*settings, "compute.packed=no"])
    config.model.text.vocab = VOCAB
    planned = plan.activation_bytes(config, "image_text", "fp32")
    compute = ComputeConfig(
        channels_last=False, length_multiple=8, read_negatives=False, skip_dropped=False
    )
    model = XVLM(config.model, compute).train()
    batch = synthetic_batch(
        "image_text", config.data, images=3, texts=3, vocab=VOCAB, grid=model.grid
    ).to("cpu")
    assert planned == pytest.approx(plan.saved_bytes(model, batch), rel=0.02)
    # What kernels keep: no padding, and no copy of an image for each of its texts.
    packed = load_config("tiny", [], [*settings, "compute.packed=yes"])
    packed.model.text.vocab = VOCAB
    assert plan.activation_bytes(packed, "image_text", "fp32") < 0.95 * planned


def test_checkpointing_keeps_less() -> None:
    plain = load_config("small", [], ["data.batch_size=4"])
    saving = load_config("small", [], ["data.batch_size=4", "compute.checkpointing=true"])
    kept = plan.activation_bytes(saving, "image_text")
    assert kept < 0.5 * plan.activation_bytes(plain, "image_text")


def test_plan_takes_measured_seconds(tmp_path: Path) -> None:
    measured = {
        stream: {"variants": {"ours": {"step_seconds": seconds}}}
        for stream, seconds in (("image_text", 0.2), ("multi_grained", 0.1))
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"streams": measured}))
    code, output = run("plan", "--preset", "tiny", "--bench", str(path), "--json")
    assert code == 0
    assert json.loads(output)["seconds_per_step"] == pytest.approx(0.3)
    path.write_text("[]")
    result = CliRunner().invoke(main, ["plan", "--bench", str(path)])
    assert result.exit_code == 2
    assert "not a result of bench" in result.stderr


def test_the_gpu_script_runs_dry(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import step_gpu

    from xvlm_train.model import compiled

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(compiled, "BACKEND", compiled.BACKEND)
    result = CliRunner().invoke(step_gpu.main, ["--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["graphs"] == 3
    assert report["new_graphs"] == 0
    assert report["passes"]["no_recompilation"] is True
    sys.modules.pop("step_gpu")
    torch._dynamo.reset()
    compiled._compiled.cache_clear()


def test_dropped_images_are_no_work() -> None:
    config = small_config()
    config.vision.drop_path = 0.5
    batch = synthetic_batch("image_text", DATA, images=32, texts=32, vocab=VOCAB, grid=(GRID, GRID))
    kept = count_work(config, ComputeConfig(), batch, "cpu")
    every = count_work(config, ComputeConfig(skip_dropped=False), batch, "cpu")
    assert kept.flops < 0.95 * every.flops
