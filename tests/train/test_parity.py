"""Our model beside the original's numbers, and the command that shows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from tests.shared import SHARED, shared_path
from xvlm_data.errors import UserError
from xvlm_train.commands import main
from xvlm_train.model.config import ModelConfig, Parity
from xvlm_train.model.official import from_official, official_name, our_name, to_official
from xvlm_train.model.xvlm import XVLM
from xvlm_train.objectives import compute_losses
from xvlm_train.parity import make_batch, read_config
from xvlm_train.verify import verify

CASES = sorted(path.name for path in (SHARED / "parity").glob("*/"))
needs_cases = pytest.mark.skipif(not CASES, reason="needs ../shared/parity")


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A copy of a case, free to be damaged."""
    source = shared_path("parity/tiny_seed0")
    copy = tmp_path / "case"
    copy.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, copy / path.name)
    return copy


def edit(path: Path, **changes) -> None:
    tensors = load_file(path)
    for key, change in changes.items():
        tensors[key] = change(tensors[key])
    save_file(tensors, path)


@needs_cases
@pytest.mark.parametrize("name", CASES)
def test_every_quantity_of_every_case_agrees(name: str) -> None:
    folder = shared_path(f"parity/{name}")
    checks = verify(folder)
    assert [check for check in checks if not check.ok] == []
    # Everything that the files hold was looked at.
    looked_at = {(check.batch, check.quantity) for check in checks}
    for batch in ("image_text", "region"):
        stored = set(load_file(folder / f"{batch}_outputs.safetensors"))
        stored -= {"fn/pred", "fn/target", "fn/target_degenerate", "fn/is_image"}
        norms = json.loads((folder / f"{batch}_scalars.json").read_text())["grad_norms"]
        assert stored | {f"grad_norms/{key}" for key in norms} <= {
            quantity for of, quantity in looked_at if of == batch
        }


@needs_cases
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch_name", ["image_text", "region"])
def test_the_clean_defaults_give_the_original_losses(name: str, batch_name: str) -> None:
    folder = shared_path(f"parity/{name}")
    model = XVLM(read_config(folder / "config.json")).eval()
    model.load_state_dict(from_official(load_file(folder / "state_dict.safetensors"), model))
    images = load_file(folder / "images.safetensors")["image_u8"].float() / 64 - 2
    inputs = load_file(folder / f"{batch_name}_inputs.safetensors")
    batch = make_batch(images, inputs, batch_name == "region", model, batch_name)
    with torch.no_grad():
        losses = compute_losses(model(batch, negatives="argmax"), batch, config=Parity.clean())
    expected = load_file(folder / f"{batch_name}_outputs.safetensors")
    names = {"contrastive": "itc", "matching": "itm", "box_l1": "bbox", "box_giou": "giou"}
    for key, value in losses.items():
        wanted = expected[f"loss_{names.get(key, key)}"]
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-3)


@needs_cases
@pytest.mark.parametrize("name", CASES)
def test_state_dict_makes_the_round_trip(name: str) -> None:
    folder = shared_path(f"parity/{name}")
    model = XVLM(read_config(folder / "config.json"))
    official = load_file(folder / "state_dict.safetensors")
    model.load_state_dict(from_official(official, model))
    back = to_official(model)
    assert back.keys() == official.keys()
    for key, value in official.items():
        assert torch.equal(back[key].to(value.dtype), value), key


def test_base_model_has_the_original_entries_and_parameters() -> None:
    with torch.device("meta"):
        model = XVLM(ModelConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 215_637_241
    lines = shared_path("parity/base_state_dict_keys.tsv").read_text().splitlines()[1:]
    wanted = {}
    for line in lines:
        name, shape, dtype, kind = line.split("\t")
        wanted[name] = (json.loads(shape), f"torch.{dtype}")
        if kind == "param":
            assert official_name(our_name(name)) == name
            assert our_name(name) in dict(model.named_parameters())
    ours = {n: (list(v.shape), str(v.dtype)) for n, v in to_official(model).items()}
    assert ours == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("temp"), "lacks 1 entries, such as temp"),
        (lambda s: s.update(extra=torch.zeros(1)), "entry extra is not known"),
        (lambda s: s.update(temp=torch.zeros(2)), r"entry temp has shape \[2\], not \[\]"),
        (
            lambda s: s["text_encoder.cls.predictions.decoder.bias"].add_(1),
            "decoder.bias differs from text_encoder.cls.predictions.bias",
        ),
        (
            lambda s: s["vision_encoder.layers.0.blocks.0.attn.relative_position_index"].add_(1),
            "relative_position_index does not agree with the configuration",
        ),
    ],
)
def test_every_entry_of_a_state_dict_is_accounted_for(change, message: str) -> None:
    folder = shared_path("parity/tiny_seed0")
    model = XVLM(read_config(folder / "config.json"))
    state = load_file(folder / "state_dict.safetensors")
    change(state)
    with pytest.raises(UserError, match=message):
        from_official(state, model)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["verify", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_command_prints_a_table_and_passes(case: Path) -> None:
    code, output = run(str(case))
    assert code == 0
    assert "loss_giou_all_rows" in output
    assert "all within tolerance" in output


@pytest.mark.parametrize(
    ("file", "key", "quantity"),
    [
        ("region_outputs", "loss_mlm", "loss_mlm"),
        ("region_outputs", "fn/loss_giou_degenerate", "fn/loss_giou_degenerate"),
        ("region_outputs", "fn/loss_bbox_all_images", "fn/loss_bbox_all_images"),
        ("image_text_outputs", "sampling_weights_t2i_idx", "sampling_weights_t2i_idx"),
        ("image_text_outputs", "neg_text_idx", "neg_text_idx"),
        ("image_text_outputs", "grad/temp", "grad/temp"),
    ],
)
def test_command_finds_a_wrong_number(case: Path, file: str, key: str, quantity: str) -> None:
    # 1 % off; an index or a zero by one, and what should be NaN a number.
    edit(
        case / f"{file}.safetensors",
        **{key: lambda t: (t * 1.01).nan_to_num(nan=1.0) if t.abs().max() % 1 else t + 1},
    )
    code, output = run(str(case), "--json")
    assert code == 1
    report = json.loads(output)
    assert not report["ok"]
    assert [check["quantity"] for check in report["checks"] if not check["ok"]] == [quantity]


def test_command_finds_a_forgotten_bias(case: Path) -> None:
    name = "text_encoder.bert.encoder.layer.2.crossattention.output.dense.bias"
    edit(case / "state_dict.safetensors", **{name: torch.zeros_like})
    code, output = run(str(case), "--json")
    assert code == 1
    bad = {check["quantity"] for check in json.loads(output)["checks"] if not check["ok"]}
    assert {"cross_embeds", "itm_cls", "mlm_logits_row0"} <= bad
    assert not bad & {"text_embeds", "image_feat", "loss_itc"}


def test_command_fails_on_what_it_does_not_know(case: Path) -> None:
    path = case / "region_outputs.safetensors"
    save_file(load_file(path) | {"loss_new": torch.zeros(())}, path)
    code, output = run(str(case))
    assert code == 1
    assert "loss_new" in output


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "state_dict.safetensors",
        "images.safetensors",
        "image_text_inputs.safetensors",
        "image_text_outputs.safetensors",
        "image_text_scalars.json",
        "region_inputs.safetensors",
        "region_outputs.safetensors",
        "region_scalars.json",
    ],
)
def test_missing_and_cut_files_are_told_in_one_line(case: Path, file: str) -> None:
    whole = (case / file).read_bytes()
    (case / file).write_bytes(whole[: len(whole) // 2])
    code, output = run(str(case))
    assert code == 2
    assert output.count("\n") == 1
    assert file in output
    (case / file).unlink()
    code, output = run(str(case))
    assert code == 2
    assert output.count("\n") == 1
    assert f"{file}: not found" in output


def test_inputs_that_do_not_fit_the_model_are_told(case: Path) -> None:
    edit(case / "region_inputs.safetensors", image_atts=lambda t: t[:, :-1].contiguous())
    code, output = run(str(case))
    assert code == 2
    assert "image_atts has shape [8, 49], not [8, 50]" in output


def test_no_folder_is_told(tmp_path: Path) -> None:
    code, output = run(str(tmp_path / "none"))
    assert code == 2
    assert "no such folder" in output
    (tmp_path / "README.md").touch()
    code, output = run(str(tmp_path / "README.md"))
    assert code == 2
    assert "a file, not a folder" in output and "no such" not in output
