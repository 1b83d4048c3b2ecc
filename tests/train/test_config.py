from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xvlm_data.errors import UserError
from xvlm_train.config import PRESETS, differences, dump_config, load_config
from xvlm_train.model.xvlm import XVLM


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_builds_and_survives_a_round_trip(
    preset: str, tmp_path: Path
) -> None:
    config = load_config(preset)
    with torch.device("meta"):
        model = XVLM(config.model)
    assert model.grid[0] * model.grid[1] >= 16
    # All of the longest text fits the position table, and the encoder has fusion layers.
    assert config.data.max_tokens <= config.model.text.max_positions
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(files=[path]) == config


def test_base_is_the_papers() -> None:
    config = load_config("base")
    with torch.device("meta"):
        model = XVLM(config.model)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 215_637_241
    # Spec, "Hyper-parameters of the paper's runs", 4M.
    assert (config.data.batch_size, config.data.max_images, config.data.max_texts) == (128, 48, 128)
    assert (config.data.max_tokens, config.data.max_masks, config.data.max_concepts) == (40, 8, 5)
    assert (config.optim.lr, config.optim.betas, config.optim.eps) == (1e-4, (0.9, 0.98), 1e-8)
    assert (config.optim.weight_decay, config.optim.new_lr_multiple) == (0.01, 2.0)
    assert (config.optim.clip_norm, config.schedule.warmup) == (1.0, 2500)
    assert (config.train.steps, config.train.iter_perc) == (200_000, 0.5)


def test_later_settings_win(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim: {lr: 3e-4, eps: 1e-6}\ntrain: {steps: 7}\n")
    config = load_config("tiny", [path], ["optim.lr=5e-5", "optim.betas=[0.8, 0.9]"])
    assert (config.optim.lr, config.optim.eps, config.train.steps) == (5e-5, 1e-6, 7)
    assert config.optim.betas == (0.8, 0.9)
    assert config.data.image_size == load_config("tiny").data.image_size


def test_another_backbone_replaces_the_arguments_of_the_presets() -> None:
    config = load_config("tiny", overrides=["model.vision.kwargs={depth: 2}"])
    assert config.model.vision.kwargs == {"depth": 2}


def test_official_parity_sets_every_switch() -> None:
    clean, official = load_config("base"), load_config("base", official=True)
    changed = {line.split(":")[0] for line in differences(clean, official)}
    assert changed == {
        "parity.contrastive_gradient",
        "parity.degenerate_giou",
        "parity.no_region_rows",
        "optim.decay_rule",
        "data.flip_guard",
        "data.distinct_texts",
        "data.pixels",
    }
    overridden = load_config("base", official=True, overrides=["data.flip_guard=true"])
    assert overridden.data.flip_guard and not overridden.data.distinct_texts


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.step=3", "unknown configuration key train.step; did you mean steps"),
        ("modle.embed_dim=3", "did you mean model"),
        ("model.vision.size=3", "unknown configuration key model.vision.size"),
        ("train.steps=many", "train.steps: Expected `int`, got `str`"),
        ("train.steps=1.5", "train.steps: Expected `int`, got `float`"),
        ("train.precision=fp8", "train.precision: Invalid enum value 'fp8'"),
        ("optim.betas=[0.9]", "optim.betas"),
        ("train=3", "train: Expected `object`"),
        ("train.iter_perc=2", "train.iter_perc is 2"),
        ("train.steps=0", "train.steps is 0; at least 1"),
        ("data.image_size=64", "set both to the same"),
        ("data.max_tokens=400", "a model has a position for every token"),
        ("optim.betas=[1.5, 2]", "optim.betas is [1.5, 2.0]"),
        ("optim.eps=-1", "optim.eps is -1.0; a number, at least 0"),
        ("optim.lr=-1", "optim.lr is -1.0"),
        ("optim.lr=.nan", "optim.lr is nan"),
        ("optim.clip_norm=0", "optim.clip_norm is 0.0"),
        ("train.seed=100000000000000000000000000", "train.seed is"),
        ("model.temperature=0", "model.temperature is 0.0; give 0.001 to 0.5"),
        ("model.embed_dim=0", "model.embed_dim is 0"),
        ("model.text.heads=0", "model.text.heads is 0"),
        ("model.vision.kwargs={checkpoint_path: a.pth}", "kwargs.checkpoint_path is no argument"),
        ("model.vision.kwargs={pretrained_cfg: {file: a.pth}}", "kwargs.pretrained_cfg is no arg"),
        ("optim.lr", "not of the form key=value"),
        ("optim.lr=[1", "not valid YAML"),
    ],
)
def test_wrong_settings_are_told_in_one_line(override: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("tiny", overrides=[override])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "not found"), ("[1, 2]", "not a mapping"), ("a: [", "not valid YAML"), ("x: 1", "x")],
)
def test_wrong_files_are_told(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=told):
        load_config("tiny", [path])


def test_unknown_preset() -> None:
    with pytest.raises(UserError, match="use one of tiny, small, base"):
        load_config("huge")
