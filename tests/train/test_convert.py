"""The original's checkpoints into our folders and back, and what is refused on the way."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor

from tests.shared import SHARED, shared_path
from tests.train import small_manifests
from tests.train.small_models import small_config
from xvlm_data.errors import UserError
from xvlm_train.commands import main
from xvlm_train.config import PretrainConfig, dump_config, load_config
from xvlm_train.convert import read_official
from xvlm_train.model.official import official_name, our_name, to_official
from xvlm_train.model.xvlm import XVLM
from xvlm_train.saved import from_pretrained, load_saved, save_pretrained

CASES = sorted(path.name for path in (SHARED / "parity").glob("*/"))


def xvlm(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def refused(*args: object) -> str:
    result = xvlm(*args)
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: "), result.stderr
    return line


def config_of(**vision: object) -> PretrainConfig:
    config = load_config("tiny", overrides=["tokenizer.name=x"])
    config.model = small_config()
    for key, value in vision.items():
        setattr(config.model.vision, key, value)
    config.data = load_config(overrides=["data.image_size=32", "model.vision.image_size=32"]).data
    return config


def entries(seed: int = 0) -> dict[str, Tensor]:
    """What the original would save of a small model."""
    torch.manual_seed(seed)
    return to_official(XVLM(small_config()))


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    """The small model's sizes in the original's words."""
    text = small_config().text
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "vision": {
                    **{"image_res": 32, "window_size": 2, "embed_dim": 8},
                    **{"depths": [1, 2], "num_heads": [1, 2]},
                },
                "text": {
                    **{"hidden_size": text.hidden, "num_hidden_layers": text.layers},
                    **{"fusion_layer": text.fusion_layer, "num_attention_heads": text.heads},
                    **{"intermediate_size": text.intermediate, "vocab_size": text.vocab},
                    "max_position_embeddings": text.max_positions,
                },
                "embed_dim": 8,
            }
        )
    )
    return path


@pytest.mark.skipif(not CASES, reason="needs ../shared/parity")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", [".safetensors", ".th"])
def test_a_parity_case_in_and_out_is_the_identity(name: str, kind: str, tmp_path: Path) -> None:
    case = shared_path(f"parity/{name}")
    before = load_file(case / "state_dict.safetensors")
    source = case / "state_dict.safetensors"
    if kind == ".th":
        source = tmp_path / "official.th"
        torch.save({"model": before, "epoch": 3, "config": {"lr": 1e-4}}, source)
    model, back = tmp_path / "model", tmp_path / f"back{kind}"
    sizes = ("--config", case / "config.json", "--no-tokenizer")
    result = xvlm("import", source, *sizes, "--out", model)
    assert result.exit_code == 0, result.stderr
    result = xvlm("export", model, "--out", back, "--dtype", "float16")
    assert result.exit_code == 0, result.stderr
    after = read_official(back)
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert after[key].dtype == value.dtype and torch.equal(after[key], value), key


def test_every_entry_of_the_base_model_is_known() -> None:
    lines = shared_path("parity/base_state_dict_keys.tsv").read_text().splitlines()[1:]
    expected = {line.split("\t")[0]: json.loads(line.split("\t")[1]) for line in lines}
    assert len(expected) == 644
    with torch.device("meta"):
        model = XVLM(load_config("base").model)
    ours = {name: list(value.shape) for name, value in to_official(model).items()}
    assert ours == expected


class Evil:
    """What a pickle can do to whoever loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["archive", "legacy", "bare"])
def test_a_malicious_pickle_is_refused_and_not_run(how: str, tmp_path: Path, sizes: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "evil.th"
    document = {"model": {**entries(), "x": Evil(ran)}}
    if how == "bare":
        path.write_bytes(pickle.dumps({"model": Evil(ran)}, protocol=2))
    else:
        torch.save(document, path, _use_new_zipfile_serialization=how == "archive")
    line = refused("import", path, "--config", sizes, "--no-tokenizer", "--out", tmp_path / "m")
    assert "evil.th: refused, its pickle asks for" in line and "system" in line
    assert not ran.exists() and not (tmp_path / "m").exists()
    # The file is as malicious as it is meant to be.
    if how == "bare":
        pickle.loads(path.read_bytes())
        assert ran.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "no weights", "zip"])
def test_what_is_no_checkpoint_is_told(damage: str, tmp_path: Path, sizes: Path) -> None:
    path = tmp_path / "official.th"
    buffer = io.BytesIO()
    torch.save({"model": entries()}, buffer)
    contents = {
        "cut": buffer.getvalue()[:5000],
        "empty": b"",
        "text": b"<!doctype html><title>404</title>",
    }
    if damage == "no weights":
        torch.save({"epoch": 3}, path)
    elif damage == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.txt", "x")
    else:
        path.write_bytes(contents[damage])
    line = refused("import", path, "--config", sizes, "--no-tokenizer", "--out", tmp_path / "m")
    assert "official.th" in line
    missing = refused("import", tmp_path / "no.th", "--no-tokenizer", "--out", tmp_path / "m")
    assert "not found" in missing


def test_unused_missing_and_other_shapes_are_told(tmp_path: Path, sizes: Path) -> None:
    state = {f"module.{name}": value for name, value in entries().items()}
    state["module.vision_encoder.head.weight"] = torch.zeros(10, 16)
    path = tmp_path / "official.pth"
    torch.save({"state_dict": state}, path)
    options = ("--config", sizes, "--no-tokenizer")
    result = xvlm("import", path, *options, "--out", tmp_path / "all")
    assert result.exit_code == 0, result.stderr
    assert "1 entries not used:\n  vision_encoder.head.weight\n" in result.stderr
    del state["module.bbox_head.0.bias"]
    torch.save(state, path)  # without the dictionary around it
    line = refused("import", path, *options, "--out", tmp_path / "less")
    assert "lacks 1 entries" in line and "bbox_head.0.bias" in line
    allowed = (*options, "--out", tmp_path / "less", "--allow-missing")
    assert xvlm("import", path, *allowed).exit_code == 0
    state["module.text_proj.bias"] = torch.zeros(9)
    torch.save(state, path)
    line = refused("import", path, *allowed[:-3], "--out", tmp_path / "other", "--allow-missing")
    assert "text_proj.bias has shape [9], not [8]" in line


def test_swin_tables_are_resized_and_nothing_else(tmp_path: Path, sizes: Path) -> None:
    """From windows of 2 to windows of 4: 3 x 3 relative positions become 7 x 7."""
    state = entries()
    path = tmp_path / "official.th"
    torch.save({"model": state}, path)
    larger = json.loads(sizes.read_text())
    larger["vision"] |= {"image_res": 64, "window_size": 4}
    sizes.write_text(json.dumps(larger))
    out = tmp_path / "m"
    result = xvlm("import", path, "--config", sizes, "--no-tokenizer", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "3 entries resized:" in result.stderr
    assert "recomputed for this resolution" in result.stderr
    model = from_pretrained(out).model
    for name, value in to_official(model).items():
        if name.endswith("relative_position_bias_table"):
            assert value.shape[0] == 49
            expected = resize_rel_pos_bias_table(state[name], (4, 4), tuple(value.shape))
            torch.testing.assert_close(value, expected)
            # The nine known offsets lie among the new ones: the centre and the corners stay.
            old, new = state[name].view(3, 3, -1), value.view(7, 7, -1)
            torch.testing.assert_close(new[3, 3], old[1, 1], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(new[::6, ::6], old[::2, ::2], rtol=1e-3, atol=1e-4)
        elif name in state and value.shape == state[name].shape and value.is_floating_point():
            assert name.endswith("attn_mask") or torch.equal(value, state[name]), name


def test_a_vit_grows_with_its_images(tmp_path: Path) -> None:
    config = config_of(
        name="vit_tiny_patch16_224",
        kwargs={"embed_dim": 12, "depth": 1, "num_heads": 2},
    )
    torch.manual_seed(0)
    model = XVLM(config.model)
    with torch.no_grad():  # a plane over the grid of 2 x 2, which any interpolation keeps
        model.vision_encoder.backbone.pos_embed[0, 1:] = torch.tensor([0.0, 1, 2, 3])[:, None]
    save_pretrained(tmp_path / "m", model, config, None)
    grown = from_pretrained(tmp_path / "m", image_size=64).model
    assert grown.grid == (4, 4)
    before, after = (m.vision_encoder.backbone.pos_embed for m in (model, grown))
    assert torch.equal(after[:, 0], before[:, 0])
    plane = after[0, 1:, 0].view(4, 4)
    assert torch.all(plane.diff(dim=0) > 0) and torch.all(plane.diff(dim=1) > 0)
    torch.testing.assert_close(plane.mean(), torch.tensor(1.5))
    rest = {k: v for k, v in model.state_dict().items() if not k.endswith("pos_embed")}
    assert all(torch.equal(grown.state_dict()[key], value) for key, value in rest.items())


@pytest.mark.parametrize("form", [".th", ".safetensors"])
def test_a_convolutional_net_out_and_in_is_the_identity(form: str, tmp_path: Path) -> None:
    """Its positions lie beside the backbone, and its weights channels last."""
    config, tokenizer = config_of(name="resnet10t", kwargs={}), small_manifests.tokenizer()
    config.model.text.vocab = tokenizer.vocab_size
    model = XVLM(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_()
    save_pretrained(tmp_path / "m", model, config, tokenizer)
    dump = tmp_path / "config.yaml"
    dump.write_text(dump_config(config))
    out = tmp_path / f"w{form}"
    assert xvlm("export", tmp_path / "m", "--out", out).exit_code == 0
    again = (
        "import",
        out,
        "--config",
        dump,
        "--tokenizer",
        tmp_path / "m",
        "--out",
        tmp_path / "a",
    )
    done = xvlm(*again, "--tokenizer", tmp_path / "m")
    assert done.exit_code == 0, done.stderr
    found = from_pretrained(tmp_path / "a").model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


def test_positions_beside_a_net_are_not_those_in_it() -> None:
    config = config_of(
        name="vit_tiny_patch16_224",
        kwargs={"embed_dim": 12, "depth": 1, "num_heads": 2},
        position="learned",
    )
    model = XVLM(config.model)
    assert len(to_official(model)) >= len(model.state_dict())
    assert {our_name(official_name(name)) for name in model.state_dict()} == {*model.state_dict()}


def test_a_tokenizer_of_more_tokens_than_the_model_is_told(tmp_path: Path) -> None:
    model = XVLM(config_of().model)  # 50
    save_pretrained(tmp_path / "m", model, config_of(), small_manifests.tokenizer())
    with pytest.raises(UserError, match="its model 50; put back the tokenizer"):
        from_pretrained(tmp_path / "m")


def test_a_folder_of_the_hub_layout_is_the_model(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config, tokenizer = config_of(), small_manifests.tokenizer()
    config.model.text.vocab = tokenizer.vocab_size
    model = XVLM(config.model)
    folder = tmp_path / "m"
    save_pretrained(folder, model, config, tokenizer)
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "README.md")
    }
    saved = from_pretrained(folder)
    assert saved.config == config
    assert saved.model.state_dict().keys() == model.state_dict().keys()
    for key, value in saved.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert saved.tokenizer is not None
    ids = [t.encode(["picture one"], 9)[0] for t in (saved.tokenizer, tokenizer)]
    assert ids[0] == ids[1]
    # The library of the Hub's own tokenizers reads the same folder.
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert theirs("picture one", add_special_tokens=False)["input_ids"] == ids[0][1:]
    with pytest.raises(UserError, match="exists"):
        saved.save_pretrained(folder)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("how", ["gone", "cut", "other"])
def test_damaged_folders_are_told(name: str, how: str, tmp_path: Path) -> None:
    config = config_of()
    save_pretrained(tmp_path / "m", XVLM(config.model), config, None)
    path = tmp_path / "m" / name
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif name == "config.json":
        path.write_text(json.dumps({"model_type": "bert", "config": {}}))
    else:
        save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"config\.json|model\.safetensors|no checkpoint"):
        load_saved(tmp_path / "m", torch.device("cpu"))


def test_a_name_that_is_neither_here_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="neither a folder here nor"):
        from_pretrained("nobody/nothing")


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path, sizes: Path) -> None:
    torch.save({"model": entries()}, tmp_path / "official.th")
    small_manifests.tokenizer().save(tmp_path / "t")
    line = refused(
        *("import", tmp_path / "official.th", "--config", sizes, "--tokenizer", tmp_path / "t"),
        *("--out", tmp_path / "m"),
    )
    assert "the model has 50" in line
    shutil.rmtree(tmp_path / "t")
