"""FSDP2 beside DDP, on two gloo ranks with the real command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.killing import measured, run_on_two_ranks
from tests.train.small_runs import SETTINGS, arguments, xvlm
from xvlm_train.engine import checkpoint
from xvlm_train.engine.metrics import read_metrics
from xvlm_train.engine.weights import load_optimizer, optimizer_tensors
from xvlm_train.saved import load_saved

STEPS = 20
# A larger eps, because some gradients (of attention's key biases) are zero but for rounding, which
# AdamW would else blow up to steps of the full rate.
WHOLE = [*SETTINGS, "train.save_every=10", "optim.ema=0.5", "optim.eps=1e-3"]
SHARDED = [*WHOLE, "train.sharding=fsdp"]
PACKED = ["compute.packed=yes"]  # as on GPUs
CONVOLUTIONS = [
    "model.vision.name=resnet10t",
    "model.vision.kwargs={output_stride: 16, channels: [8, 8, 16, 16], stem_width: 8}",
]
LOW = ["train.sharding_dtype=bf16", "train.precision=bf16"]


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Equal runs, whole and sharded, and the sharded one resumed at its half."""
    folder = tmp_path_factory.mktemp("runs")
    names = ("whole", "sharded", "resumed", "thrifty", "low", "packed", "packed_sharded")
    names += ("convolutions", "convolutions_sharded")
    found = {name: folder / name for name in names}
    val = ("--val-manifest", str(data / "val.parquet"), "--steps", str(STEPS))
    half = found["sharded"] / "checkpoints" / "step_00000010"
    run_on_two_ranks(
        folder,
        [
            arguments(data, found["whole"], *val, settings=WHOLE),
            arguments(data, found["sharded"], *val, settings=SHARDED),
            ["pretrain", "--resume", str(half), "--out", str(found["resumed"])],
            arguments(
                data, found["thrifty"], *val, settings=[*SHARDED, "compute.checkpointing=yes"]
            ),
            arguments(data, found["low"], *val, settings=[*SHARDED, *LOW]),
            arguments(data, found["packed"], *val, settings=[*WHOLE, *PACKED]),
            arguments(
                data,
                found["packed_sharded"],
                *val,
                settings=[*SHARDED, *PACKED, "compute.checkpointing=yes"],
            ),
            *(
                arguments(data, found[name], "--steps", "3", settings=[*settings, *CONVOLUTIONS])
                for name, settings in (("convolutions", WHOLE), ("convolutions_sharded", SHARDED))
            ),
        ],
    )
    return found


CPU = torch.device("cpu")


def test_twenty_steps_equal_ddp(runs: dict[str, Path]) -> None:
    for average in (False, True):
        whole, sharded = (
            load_saved(runs[name], CPU, average=average).model.state_dict()
            for name in ("whole", "sharded")
        )
        assert whole.keys() == sharded.keys()
        for name, value in whole.items():
            torch.testing.assert_close(sharded[name], value, rtol=1e-5, atol=1e-5, msg=name)
    lines = [[v for v in measured(runs[name]) if "lr" in v] for name in ("whole", "sharded")]
    assert len(lines[0]) == len(lines[1]) == STEPS
    for ours, theirs in zip(*lines, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    evaluated = [read_metrics(runs[name])[-1] for name in ("whole", "sharded")]
    assert evaluated[0]["eval/images"] == evaluated[1]["eval/images"] == 5
    assert "eval/ema/grounding_mean_iou" in evaluated[1]


@pytest.mark.parametrize(("plain", "saving"), [("whole", "thrifty"), ("packed", "packed_sharded")])
def test_activations_can_be_computed_again(runs: dict[str, Path], plain: str, saving: str) -> None:
    whole, thrifty = (load_saved(runs[name], CPU).model.state_dict() for name in (plain, saving))
    for name, value in whole.items():
        torch.testing.assert_close(thrifty[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_convolutions_are_sharded_too(runs: dict[str, Path]) -> None:
    """Their weights lie channels last on a CPU, which FSDP2 does not take."""
    plain, sharded = (
        load_saved(runs[name], CPU).model.state_dict()
        for name in ("convolutions", "convolutions_sharded")
    )
    assert any("conv" in name for name in plain)
    for name, value in plain.items():
        torch.testing.assert_close(sharded[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_parameters_can_be_gathered_in_half_precision(runs: dict[str, Path]) -> None:
    """bfloat16 has 8 bits: losses agree to some percent, and the weights that are kept to more."""
    lines = [[v for v in measured(runs[name]) if "lr" in v] for name in ("whole", "low")]
    for ours, theirs in zip(*lines, strict=True):
        assert theirs["image_text/total"] == pytest.approx(ours["image_text/total"], rel=0.05)
    assert lines[0][0]["image_text/total"] != lines[1][0]["image_text/total"]
    kept = load_saved(runs["low"], CPU).model.state_dict()
    assert {value.dtype for value in kept.values() if value.is_floating_point()} == {torch.float32}


def test_a_sharded_checkpoint_has_a_file_for_each_rank(runs: dict[str, Path]) -> None:
    folder = checkpoint.find(runs["sharded"]).path
    for part in ("model", "optimizer", "ema"):
        assert len(list((folder / part).glob("*.safetensors"))) == 2
    assert not list(folder.glob("*.safetensors"))
    whole = checkpoint.find(runs["whole"]).path / "model.safetensors"
    sizes = [path.stat().st_size for path in (folder / "model").iterdir()]
    assert max(sizes) < 0.75 * whole.stat().st_size  # each holds about half


def test_it_resumes_bit_for_bit(runs: dict[str, Path]) -> None:
    final = [runs[name] / "checkpoints" / f"step_{STEPS:08d}" for name in ("sharded", "resumed")]
    for part in ("model", "optimizer", "ema"):
        theirs, ours = (shards(path / part) for path in final)
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs), part


def shards(folder: Path) -> dict[str, torch.Tensor]:
    """Every rank's part of each tensor, by rank and name; what is whole is in either's file."""
    found = {}
    for path in sorted(folder.iterdir()):
        for name, value in load_file(path).items():
            found[name if value.dim() == 0 else f"{path.name}/{name}"] = value
    return found


def test_one_process_goes_on_with_it(runs: dict[str, Path], tmp_path: Path) -> None:
    """Weights, moments and averages of both ranks' files, in a run without sharding."""
    out = tmp_path / "one"
    line = ["pretrain", "--resume", str(runs["sharded"]), "--out", str(out), "--steps", "21"]
    result = xvlm(*line)
    assert result.exit_code == 0, result.stderr
    assert "2 ranks before, 1 now" in result.stderr
    assert checkpoint.find(out).step == 21
    # Its moments are those of DDP's checkpoint.
    moments = []
    for name in ("whole", "sharded"):
        saved = load_saved(runs[name], CPU)
        group = {
            "params": list(saved.model.parameters()),
            "names": [name for name, _ in saved.model.named_parameters()],
        }
        optimizer = torch.optim.AdamW([group])
        load_optimizer(checkpoint.find(runs[name]), optimizer)
        moments.append(optimizer_tensors(optimizer))
    assert moments[0].keys() == moments[1].keys()
    for key, value in moments[0].items():
        torch.testing.assert_close(moments[1][key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_export_puts_it_together(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert xvlm("export", str(runs["sharded"]), "--out", str(out)).exit_code == 0
    exported = load_saved(out, CPU).model.state_dict()
    for name, value in load_saved(runs["sharded"], CPU).model.state_dict().items():
        assert torch.equal(exported[name], value), name


def test_a_damaged_shard_is_seen(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs["sharded"], copy)
    shard = sorted((copy / "checkpoints" / f"step_{STEPS:08d}" / "model").iterdir())[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    found = checkpoint.find(copy)
    assert found.step == 10 and shard.name in found.passed_over[0]
