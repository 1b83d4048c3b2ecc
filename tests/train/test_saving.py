"""Checkpoints that are damaged, and checkpoints that are written while the training goes on."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.test_checkpoint import build, trainer
from xvlm_data.errors import UserError
from xvlm_train.engine import checkpoint
from xvlm_train.engine.checkpoint import EMA, MODEL, OPTIMIZER, Retention
from xvlm_train.engine.saving import Saver
from xvlm_train.engine.weights import load_model, load_optimizer

FILES = (
    "model.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "state.json",
    "config.yaml",
    "tokenizer/vocab.txt",
    "SHA256SUMS",
)


def quiet(run: Path, keep: Retention = Retention(3), **more: object) -> Saver:  # noqa: B008
    extras = more.get("extras", lambda folder: None)
    return Saver(run, write_extras=extras, keep=keep, say=lambda text: None)  # type: ignore[arg-type]


def write_extras(folder: Path) -> None:
    (folder / "config.yaml").write_text("train:\n  steps: 6\n")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("[PAD]\n[UNK]\n")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the checkpoints of steps 3 and 6."""
    run = tmp_path_factory.mktemp("good")
    model, optimizer = build()
    trainer(run, model, optimizer, extras=write_extras).fit()
    for step in (3, 6):
        folder = run / "checkpoints" / f"step_{step:08d}"
        names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert names == set(FILES)
    return run


def damage(path: Path, kind: str, where: float, byte: int) -> None:
    """One of the ways a file dies; ``where`` is a place in it, 0 to 1."""
    content = bytearray(path.read_bytes())
    place = min(int(where * len(content)), len(content) - 1)
    if kind == "gone":
        path.unlink()
        return
    if kind == "cut":
        content = content[:place]
    elif kind == "half written":  # the length is there, the rest of the bytes never came
        content[place:] = bytes(len(content) - place) if any(content[place:]) else b"\1"
    elif kind == "longer":
        content += bytes([byte])
    else:
        content[place] ^= byte
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, "latest"])
@settings(max_examples=25)
@given(
    st.sampled_from(["gone", "cut", "half written", "longer", "changed"]),
    st.floats(0, 1),
    st.integers(1, 255),
)
def test_any_damage_is_seen_and_the_last_good_one_is_used(
    good: Path, name: str, kind: str, where: float, byte: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        shutil.copytree(good, run)
        newest = run / "checkpoints" / "step_00000006"
        if name == "latest":
            damage(run / "checkpoints" / name, kind, where, byte)
            found = checkpoint.find(run)
            assert found.step in (3, 6)  # either is good; a byte may name the other
        else:
            damage(newest / name, kind, where, byte)
            with pytest.raises(UserError):
                checkpoint.read(newest)
            found = checkpoint.find(run)
            assert found.step == 3
            (problem,) = found.passed_over
            assert "step_00000006" in problem and "damaged" in problem
        model, optimizer = build(seed=5)
        load_model(found, model)
        load_optimizer(found, optimizer)
        expected, moments = build(seed=6)
        source = checkpoint.find(good / "checkpoints" / f"step_{found.step:08d}")
        load_model(source, expected)
        load_optimizer(source, moments)
        for key, value in expected.state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key


def test_what_is_not_used_is_not_read(good: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(good, run)
    path = run / "checkpoints" / "step_00000006" / "optimizer.safetensors"
    damage(path, "changed", 0.5, 1)
    assert checkpoint.find(run, unused=(OPTIMIZER,)).step == 6
    assert checkpoint.find(run, unused=(EMA,)).step == 3


def test_a_run_of_damaged_checkpoints_does_not_start_again_by_itself(
    good: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(good, run)
    for step in (3, 6):
        (run / "checkpoints" / f"step_{step:08d}" / "state.json").unlink()
    assert checkpoint.begun(run)
    with pytest.raises(UserError, match="every checkpoint is damaged") as error:
        checkpoint.find(run)
    assert "step_00000003" in str(error.value) and "step_00000006" in str(error.value)


def test_training_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    """Weights change, forward buffers too, while the checkpoint of before is written."""
    weight, buffer = torch.zeros(1000), torch.zeros(3)
    disk = threading.Event()
    saver = quiet(tmp_path, extras=lambda folder: disk.wait(30))
    tensors = {"weight": weight, "buffer": buffer}
    saver.start({MODEL: tensors}, {"step": 1}, {"buffer"})
    buffer += 1  # a forward pass
    saver.before_update()
    weight += 1  # an update
    assert not disk.is_set() and not list((tmp_path / "checkpoints").glob("step_*"))
    disk.set()
    saver.start({MODEL: tensors}, {"step": 2}, set())  # waits for the first
    assert checkpoint.find(tmp_path).step == 1
    saver.finish()
    first, second = (
        checkpoint.find(tmp_path / "checkpoints" / f"step_0000000{step}") for step in (1, 2)
    )
    for found, value in ((first, 0.0), (second, 1.0)):
        model = torch.nn.Module()
        model.weight = torch.nn.Parameter(torch.full((1000,), 9.0))
        model.register_buffer("buffer", torch.full((3,), 9.0))
        load_model(found, model)
        assert torch.equal(model.weight, torch.full((1000,), value))
        assert torch.equal(model.buffer, torch.full((3,), value))


def test_milestones_stay(tmp_path: Path) -> None:
    saver = quiet(tmp_path, Retention(last=2, every=4))
    for step in range(1, 11):
        saver.start({MODEL: {"weight": torch.zeros(1)}}, {"step": step})
    saver.finish()
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert names == [f"step_{step:08d}" for step in (4, 8, 9, 10)]


def test_a_crash_between_two_renames_loses_nothing(good: Path, tmp_path: Path) -> None:
    """A new checkpoint is there, ``latest`` not yet; and leftovers of a save lie about."""
    run = tmp_path / "run"
    shutil.copytree(good, run)
    folder = run / "checkpoints"
    (folder / "latest").write_text("step_00000003\n")
    shutil.copytree(folder / "step_00000003", folder / ".step_00000009.partial")
    assert checkpoint.find(run).step == 3
    (folder / "latest").unlink()
    assert checkpoint.find(run).step == 6
    model, optimizer = build()
    trainer(run, model, optimizer, steps=1, save_every=1).fit()
    assert not list(folder.glob(".*"))
