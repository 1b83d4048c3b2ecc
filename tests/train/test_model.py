"""The model: what sees what, how negatives are drawn, where weights come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForMaskedLM, BertModel

from tests.train.small_models import GRID, SIZE, VOCAB, random_batch, small_config
from xvlm_data.errors import UserError
from xvlm_train.model.config import ComputeConfig, ModelConfig, TextConfig, VisionConfig
from xvlm_train.model.pretrained import initialise, is_new_by_design
from xvlm_train.model.vision import VisionEncoder
from xvlm_train.model.xvlm import XVLM, choose_negatives, negative_weights
from xvlm_train.objectives import compute_losses


@pytest.fixture
def model() -> XVLM:
    torch.manual_seed(0)
    model = XVLM(small_config())
    for parameter in model.parameters():  # away from zeros, so that a dropped part shows
        nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        model.temp.fill_(0.07)
    return model.eval()


def test_concept_tokens_are_the_masked_mean_and_all_patches(model: XVLM) -> None:
    patches = torch.randn(2, 4, 5)
    mask = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1]])
    tokens = model.concept_tokens(patches, torch.tensor([1, 0]), mask).dense()
    assert tokens.shape == (2, 5, 5)
    torch.testing.assert_close(tokens[0, 0], (patches[1, 1] + patches[1, 2]) / 2)
    torch.testing.assert_close(tokens[1, 0], patches[0].mean(0))
    assert torch.equal(tokens[0, 1:], patches[1])


def test_texts_of_one_image_share_its_patches_without_a_difference(model: XVLM) -> None:
    batch = random_batch(2, 4, 3)
    states = model.encode_text(batch.text_ids, batch.text_mask)
    patches = model.encode_image(batch.images)
    shared = model.concept_tokens(patches, batch.image_index, batch.patch_mask)
    own = model.concept_tokens(patches[batch.image_index], torch.arange(4), batch.patch_mask)
    torch.testing.assert_close(shared.dense(), own.dense())
    torch.testing.assert_close(
        model.fuse(states, batch.text_mask, shared), model.fuse(states, batch.text_mask, own)
    )


def test_hidden_patches_and_padding_do_not_show(model: XVLM) -> None:
    batch = random_batch(1, 1, 1, seed=3)
    batch.text_mask[:, 4:] = 0
    patches = model.encode_image(batch.images)

    def fused(ids: Tensor, seen: Tensor) -> Tensor:
        vision = model.concept_tokens(seen, batch.image_index, batch.patch_mask)
        states = model.encode_text(ids, batch.text_mask)
        return model.fuse(states, batch.text_mask, vision)[:, :4]

    reference = fused(batch.text_ids, patches)
    hidden = patches.clone()
    hidden[0, batch.patch_mask[0, 1:] == 0] += 5
    torch.testing.assert_close(fused(batch.text_ids, hidden), reference)
    padded = batch.text_ids.clone()
    padded[:, 4:] = 7
    torch.testing.assert_close(fused(padded, patches), reference)
    shown = patches.clone()
    shown[0, 0] += 5  # the first patch is always visible here
    assert (fused(batch.text_ids, shown) - reference).abs().max() > 1e-3


def test_box_head_sees_the_whole_image_not_the_region(model: XVLM) -> None:
    batch = random_batch(2, 4, 4)
    before = model(batch, negatives="argmax").predicted_boxes
    batch.patch_mask[:, 2:] = 1 - batch.patch_mask[:, 2:]
    after = model(batch, negatives="argmax").predicted_boxes
    torch.testing.assert_close(before, after)


def test_unmasked_text_does_not_reach_the_token_prediction(model: XVLM) -> None:
    batch = random_batch(2, 4, 2)
    before = model(batch, negatives="argmax")
    batch.text_ids[:, 1] = (batch.text_ids[:, 1] + 1) % VOCAB
    after = model(batch, negatives="argmax")
    torch.testing.assert_close(before.mlm_logits, after.mlm_logits)
    assert not torch.allclose(before.matching_logits, after.matching_logits)


def test_matching_rows_use_the_chosen_negatives(model: XVLM) -> None:
    batch = random_batch(2, 4, 3)
    outputs = model(batch, negatives="argmax")
    vision = model.concept_tokens(
        model.encode_image(batch.images), batch.image_index, batch.patch_mask
    )
    states = model.encode_text(batch.text_ids, batch.text_mask)
    for row in range(4):
        image, text = outputs.negative_images[row], outputs.negative_texts[row]
        assert image != row
        assert text != row
        for place, (i, t) in enumerate([(row, row), (image, row), (row, text)]):
            one = vision[torch.tensor([i])]
            pair = model.fuse(states[t][None], batch.text_mask[t][None], one)
            torch.testing.assert_close(
                outputs.matching_states[4 * place + row], pair[0, 0], rtol=1e-4, atol=1e-5
            )
    assert outputs.matching_labels.tolist() == [1] * 4 + [0] * 8


def test_negatives_are_drawn_by_their_weights() -> None:
    weights = torch.tensor([[0.0, 1.0, 3.0], [0.2, 0.0, 0.0], [5.0, 4.0, 1.0]])
    draws = 20_000
    generator = torch.Generator().manual_seed(0)
    columns, found = choose_negatives(weights.repeat(draws, 1), "sample", generator)
    assert found.all()
    shares = torch.stack([columns.view(draws, 3).eq(c).float().mean(0) for c in range(3)], dim=1)
    expected = weights / weights.sum(1, keepdim=True)
    assert (shares - expected).abs().max() < 0.015  # four standard deviations
    assert (shares[weights == 0] == 0).all()
    again, _ = choose_negatives(
        weights.repeat(draws, 1), "sample", torch.Generator().manual_seed(0)
    )
    assert torch.equal(columns, again)


def test_negative_weights_by_hand() -> None:
    queries, keys = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    weights = negative_weights(queries, keys, torch.tensor(0.5))
    other = torch.tensor([[2.0, 1.2], [0.0, 1.6]]).softmax(1) + 1e-5
    torch.testing.assert_close(weights, other * torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    together = negative_weights(queries, keys, torch.tensor(0.5), torch.ones(2, 2).bool())
    assert (together == 0).all()
    assert not negative_weights(queries.requires_grad_(), keys, torch.tensor(0.5)).requires_grad


def test_a_batch_of_one_concept_trains_without_negatives(model: XVLM) -> None:
    batch = random_batch(1, 1, 1)
    outputs = model(batch)
    assert outputs.matching_labels.tolist() == [1, -100, -100]
    losses = compute_losses(outputs, batch)
    positive = nn.functional.cross_entropy(outputs.matching_logits[:1], torch.tensor([1]))
    torch.testing.assert_close(losses["matching"], positive)
    losses["total"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("raw", "clamped"), [(-3.0, 0.001), (0.07, 0.07), (9.0, 0.5)])
def test_temperature_is_clamped_in_place(model: XVLM, raw: float, clamped: float) -> None:
    with torch.no_grad():
        model.temp.fill_(raw)
    batch = random_batch(2, 3, 1)
    first = compute_losses(model(batch), batch)["total"]
    second = compute_losses(model(batch), batch)["total"]
    (first + second).backward()  # two passes before one backward
    assert model.temp.item() == pytest.approx(clamped)
    assert model.temp.grad is not None
    assert model.temp.grad != 0


class Syncs(TorchDispatchMode):
    """Counts the operations that wait for the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "multinomial")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 else None
        masked = isinstance(indices, list | tuple) and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in indices
        )
        if name in self.WAITING or masked:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("multi_grained", [True, False])
def test_nothing_waits_for_the_device(
    model: XVLM, multi_grained: bool, packed: bool, monkeypatch
) -> None:
    batch = random_batch(3, 3, 2 * multi_grained, multi_grained=multi_grained)
    model.train()
    as_on_a_gpu = ComputeConfig(packed=packed, length_multiple=8, read_negatives=False)
    model.compute_as(as_on_a_gpu)
    with monkeypatch.context() as patch, Syncs() as syncs:
        for name in ("numpy", "tolist", "item", "cpu", "__bool__", "__int__", "__float__"):
            patch.setattr(Tensor, name, lambda *_, name=name, **__: pytest.fail(name))
        total = compute_losses(model(batch), batch)["total"]
        total.backward()
    assert syncs.seen == []
    with Syncs() as syncs:  # the count itself works
        batch.text_ids[batch.text_mask.bool()].sum().item()
    assert len(syncs.seen) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_the_gpu(model: XVLM) -> None:
    batch = random_batch(3, 3, 2).to("cuda")
    model.cuda().train()
    compute_losses(model(batch), batch)["total"].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            outputs = model(batch)
            compute_losses(outputs, batch)["total"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert outputs.image_features.dtype == torch.float32


def test_mixed_precision_stays_close_to_full(model: XVLM) -> None:
    batch = random_batch(3, 4, 2)
    full = compute_losses(model(batch, negatives="argmax"), batch)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch, negatives="argmax")
        mixed = compute_losses(outputs, batch)
    assert outputs.image_features.dtype == torch.float32
    for name in ("mlm", "box_l1", "box_giou"):
        torch.testing.assert_close(mixed[name], full[name], rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "layout", "grid", "position"),
    [
        ("resnet18", {}, 64, "NCHW", 2, True),
        ("vit_tiny_patch16_224", {"depth": 1}, 64, "tokens", 4, False),
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1]}, 64, "NHWC", 8, False),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}, 32, "tokens", 2, False),
    ],
)
def test_any_backbone_becomes_row_major_patches(
    name: str, kwargs: dict, size: int, layout: str, grid: int, position: bool
) -> None:
    encoder = VisionEncoder(VisionConfig(name, kwargs, size, drop_path=0.0)).eval()
    assert (encoder.layout, encoder.grid) == (layout, (grid, grid))
    assert (encoder.pos_embed is not None) == position
    images = torch.randn(2, 3, size, size)
    patches = encoder(images)
    assert patches.shape == (2, grid * grid, encoder.width)
    features = encoder.backbone.forward_features(images)
    row, column = grid - 1, 0
    wanted = {
        "NCHW": lambda: features[:, :, row, column],
        "NHWC": lambda: features[:, row, column],
        "tokens": lambda: features[:, encoder.prefix_tokens + row * grid + column],
    }[layout]()
    if encoder.pos_embed is not None:
        placed = wanted + encoder.pos_embed[row * grid + column]
        wanted = torch.nn.functional.layer_norm(placed, (encoder.width,))
    torch.testing.assert_close(patches[:, row * grid + column], wanted)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VisionConfig("swin_nothing"), "'swin_nothing' is no timm model"),
        (VisionConfig("swin_tiny_patch4_window7_224", image_size=100), "unevenly; use a multiple"),
        (VisionConfig("vgg11", image_size=64), "no stochastic depth; set model.vision.drop_path"),
        (VisionConfig("resnet18", {"colour": 1}, 64), "cannot build resnet18"),
        (VisionConfig("coat_tiny"), "not a square grid"),
    ],
)
def test_backbones_that_do_not_fit_are_told(config: VisionConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        VisionEncoder(config)
    assert "\n" not in str(caught.value)


def test_config_reads_from_plain_values_and_checks_itself() -> None:
    config = small_config()
    assert msgspec.convert(dataclasses.asdict(config), ModelConfig) == config
    with pytest.raises(UserError, match="heads"):
        TextConfig(hidden=10, heads=3)
    with pytest.raises(UserError, match="fusion_layer"):
        TextConfig(layers=2, fusion_layer=2)


def test_stochastic_depth_rises_linearly_over_all_blocks() -> None:
    config = VisionConfig(
        "swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": [1, 1, 2, 1]}, drop_path=0.1
    )
    rates = [
        getattr(module.drop_path1, "drop_prob", 0.0)
        for module in VisionEncoder(config).modules()
        if hasattr(module, "drop_path1")
    ]
    assert rates == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])


# Pre-trained weights


def bert_config(**changes) -> BertConfig:
    return BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=changes.get("heads", 2),
        intermediate_size=changes.get("intermediate", 24),
        max_position_embeddings=40,
    )


def save_bert(bert: nn.Module, folder: Path) -> Path:
    for parameter in bert.parameters():
        nn.init.normal_(parameter, std=0.3)
    bert.save_pretrained(folder)
    return folder


def test_bert_weights_give_berts_outputs(tmp_path: Path) -> None:
    bert = BertModel(bert_config()).eval()
    save_bert(bert, tmp_path)
    model = XVLM(small_config(pretrained=str(tmp_path), fusion_layer=2)).eval()
    report = initialise(model)
    batch = random_batch(1, 4, 1)
    with torch.no_grad():
        expected = bert(batch.text_ids, batch.text_mask, output_hidden_states=True).hidden_states[2]
        ours = model.encode_text(batch.text_ids, batch.text_mask)
    seen = batch.text_mask.bool()
    torch.testing.assert_close(ours[seen], expected[seen], rtol=1e-4, atol=1e-5)
    assert report.sources == {"text": str(tmp_path / "model.safetensors")}
    assert "text: bert.pooler.dense.weight" in report.dropped
    # A bare BERT has no token prediction head: new, like what is new by design; nothing else.
    for name, _ in model.named_parameters():
        new = ".cls." in name or ".crossattention." in name or name.split(".")[0] in NEW
        assert (name in report.new) == new, name


NEW = {"temp", "vision_proj", "text_proj", "itm_head", "bbox_head"}


def test_token_prediction_head_and_old_names_load(tmp_path: Path) -> None:
    bert = BertForMaskedLM(bert_config()).eval()
    save_bert(bert, tmp_path)
    path = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value.contiguous()
        for name, value in load_file(path).items()
    }
    save_file(old, path)
    model = XVLM(small_config(pretrained=str(path))).eval()
    report = initialise(model)
    states = torch.randn(2, 3, 16)
    torch.testing.assert_close(model.text_encoder.token_logits(states), bert.cls(states))
    assert report.new == {n for n, _ in model.named_parameters() if is_new_by_design(n)}


def test_swin_weights_load_and_resize_to_the_window(tmp_path: Path) -> None:
    config = small_config()
    kwargs = config.vision.kwargs
    published = timm.create_model(config.vision.name, img_size=64, **{**kwargs, "window_size": 4})
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    config.vision.pretrained = str(tmp_path)
    model = XVLM(config)
    report = initialise(model)
    assert sorted(report.dropped) == ["vision: head.fc.bias", "vision: head.fc.weight"]
    ours, theirs = model.vision_encoder.backbone.state_dict(), published.state_dict()
    for name, value in ours.items():
        if name.endswith("relative_position_bias_table"):
            assert value.shape[0] == 9
            assert theirs[name].shape[0] == 49
            assert value.abs().sum() > 0
        else:
            assert torch.equal(value, theirs[name]), name
    # With the token grid's own window nothing is resized and the features are timm's.
    same = timm.create_model(config.vision.name, img_size=SIZE, **kwargs).eval()
    same.load_state_dict(ours, strict=False)
    images = torch.randn(1, 3, SIZE, SIZE)
    torch.testing.assert_close(
        model.eval().encode_image(images).view(1, GRID, GRID, -1), same.forward_features(images)
    )


def test_from_scratch_only_the_designed_parts_are_new() -> None:
    model = XVLM(small_config())
    report = initialise(model)
    assert report.sources == {}
    assert {name.split(".")[0] for name in report.new} == NEW | {"text_encoder"}
    assert all(".crossattention." in n for n in report.new if n.startswith("text_encoder"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 4}, "4 attention heads, here 2"),
        ({"intermediate": 32}, r"has shape \[32, 16\], here \[24, 16\]"),
    ],
)
def test_other_bert_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    save_bert(BertModel(bert_config(**change)), tmp_path)
    with pytest.raises(UserError, match=message):
        initialise(XVLM(small_config(pretrained=str(tmp_path))))


def test_weights_that_cannot_be_used_are_told(tmp_path: Path, monkeypatch) -> None:
    def answer(name: str) -> str:
        with pytest.raises(UserError) as caught:
            initialise(XVLM(small_config(pretrained=name)))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pickles" in answer(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    assert "cannot be read" in answer(str(tmp_path))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "entries lack" in answer(str(tmp_path))
    vision = small_config()
    vision.vision.pretrained = "no_such_backbone"
    with pytest.raises(UserError, match="neither a local path nor a model"):
        initialise(XVLM(vision))

    # An empty cache and no network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert "offline; download model.safetensors and config.json" in answer("someone/some-bert")
