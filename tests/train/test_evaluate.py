from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.train import small_manifests as small
from xvlm_data.errors import UserError
from xvlm_train import measures
from xvlm_train.commands import main
from xvlm_train.config import load_config
from xvlm_train.data.evaluation import EvalSet
from xvlm_train.evaluator import Evaluator
from xvlm_train.model.xvlm import XVLM
from xvlm_train.pictures import _spread, draw_curves, draw_grounding
from xvlm_train.saved import save_pretrained

SHRUNK = [
    "model.vision.name=swin_tiny_patch4_window7_224",
    "model.vision.image_size=32",
    "data.image_size=32",
    "model.vision.kwargs={embed_dim: 8, depths: [1, 1], num_heads: [1, 2], window_size: 4}",
    "model.text.hidden=16",
    "model.text.intermediate=32",
    "model.text.heads=2",
    "model.embed_dim=8",
]


def unit(rows: int, generator: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, 5, generator=generator), dim=1)


def test_retrieval_equals_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    owners = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11])
    images, texts = unit(12, generator), unit(len(owners), generator)
    values = measures.retrieval(images, texts, owners)
    for k in (1, 5, 10):
        hits = 0
        for t, owner in enumerate(owners.tolist()):
            order = sorted(range(12), key=lambda i: -float(texts[t] @ images[i]))
            hits += owner in order[:k]
        assert values[f"text_to_image_r{k}"] == pytest.approx(hits / len(owners))
        hits = 0
        for i in range(12):
            order = sorted(range(len(owners)), key=lambda t: -float(texts[t] @ images[i]))
            hits += any(owners[t] == i for t in order[:k])
        assert values[f"image_to_text_r{k}"] == pytest.approx(hits / 12)
        assert values[f"text_to_image_r{k}_chance"] == pytest.approx(k / 12)


def test_chance_of_retrieval_counts_all_draws() -> None:
    draws = list(itertools.combinations(range(6), 2))
    expected = sum(1 in draw or 4 in draw for draw in draws) / len(draws)
    assert measures.chance_of_hit([2], 6, 2) == pytest.approx(expected)
    assert measures.chance_of_hit([1, 6], 6, 3) == pytest.approx((3 / 6 + 1) / 2)
    assert measures.chance_of_hit([1], 3, 10) == 1


def test_equal_features_are_no_success() -> None:
    same = torch.ones(20, 5) / math.sqrt(5)
    values = measures.retrieval(same, same, torch.arange(20))
    assert values["text_to_image_r5"] == values["image_to_text_r1"] == 0


def test_features_that_are_no_numbers_are_no_success() -> None:
    torch.manual_seed(0)
    good = unit(20, torch.Generator().manual_seed(0))
    assert measures.retrieval(good, good, torch.arange(20))["text_to_image_r1"] == 1
    bad = good.clone()
    bad[0] = math.nan
    values = measures.retrieval(bad, good, torch.arange(20))
    assert values["image_to_text_r1"] == pytest.approx(19 / 20)
    assert values["text_to_image_r1"] == 0  # something that is no number before each
    values = measures.retrieval(torch.full_like(good, math.nan), good, torch.arange(20))
    assert {values[f"{way}_r10"] for way in ("text_to_image", "image_to_text")} == {0}


def test_iou_by_hand() -> None:
    # Two unit squares that share a quarter: 0.25 / 1.75.
    box = torch.tensor([0.5, 0.5, 1.0, 1.0])
    assert measures.iou(box, box + torch.tensor([0.5, 0.5, 0, 0])).item() == pytest.approx(1 / 7)
    assert measures.iou(box, box).item() == pytest.approx(1)
    assert measures.iou(box, box + torch.tensor([2.0, 0, 0, 0])).item() == 0
    assert measures.iou(torch.zeros(4), torch.zeros(4)).item() == 0


def test_grounding_and_its_chance_levels() -> None:
    left, right, top = [0.2, 0.5, 0.3, 0.3], [0.8, 0.5, 0.3, 0.3], [0.5, 0.1, 0.2, 0.1]
    target = torch.tensor([left, right, left, top])
    predicted = torch.tensor([left, left, [0.2, 0.5, 0.3, 0.2], [0.5, 0.1, 0.2, 0.04]])
    values = measures.grounding(predicted, target, torch.tensor([3, 3, 0, 1]))
    assert values["grounding_accuracy"] == 0.5  # IoU 1, 0, 2/3, 0.4
    assert values["grounding_mean_iou"] == pytest.approx((1 + 0 + 2 / 3 + 0.4) / 4)
    assert values["grounding_chance_constant"] == 0.5  # always left
    assert values["grounding_chance_blind"] == 0.75  # image 3 holds two, the others one


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    config = load_config("tiny", overrides=SHRUNK)
    tokenizer = small.tokenizer()
    config.model.text.vocab = tokenizer.vocab_size
    torch.manual_seed(0)
    return Evaluator(XVLM(config.model), tokenizer, config.data.max_tokens)


def test_features_and_boxes_equal_one_item_at_a_time(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batching, padding and the book-keeping of who belongs to whom change nothing."""
    rows = [*small.boxed(5), small.row(5, [small.concept("picture five")]), *small.boxed(9)[6:]]
    rows[1]["concepts"] = [c for c in rows[1]["concepts"] if c["granularity"] != "image"]
    rows[2]["concepts"].append(small.concept("another much longer picture of two"))
    config = load_config("tiny", overrides=SHRUNK).data
    held_out = EvalSet([small.write(tmp_path / "val.parquet", rows)], config)
    items = list(held_out)

    seen: dict[str, tuple[torch.Tensor, ...]] = {}
    retrieval, grounding = measures.retrieval, measures.grounding

    def spy_retrieval(*tensors: torch.Tensor) -> dict[str, float]:
        seen["retrieval"] = tensors
        return retrieval(*tensors)

    def spy_grounding(*tensors: torch.Tensor) -> dict[str, float]:
        seen["grounding"] = tensors
        return grounding(*tensors)

    monkeypatch.setattr(measures, "retrieval", spy_retrieval)
    monkeypatch.setattr(measures, "grounding", spy_grounding)
    monkeypatch.setattr("xvlm_train.evaluator.IMAGE_BATCH", 3)
    monkeypatch.setattr("xvlm_train.evaluator.PHRASE_BATCH", 4)
    evaluator.model.train()
    values = evaluator.measure(items)
    assert evaluator.model.training

    model = evaluator.model.eval()
    images, texts, owners, boxes, targets = [], [], [], [], []
    with torch.no_grad():
        for item in items:
            patches = model.encode_image(item.image[None])
            everywhere = torch.ones(1, 1 + patches.shape[1])
            tokens = model.concept_tokens(patches, torch.zeros(1, dtype=torch.long), everywhere)
            if item.captions:
                images.append(model.image_features(tokens.cls))
            for text in [*item.captions, *(phrase.text for phrase in item.phrases)]:
                ids = torch.tensor(evaluator.tokenizer.encode([text], 24)[0])[None]
                states = model.encode_text(ids, torch.ones_like(ids))
                if text in item.captions:
                    texts.append(model.text_features(states[:, 0]))
                    owners.append(len(images) - 1)
                else:
                    fused = model.fuse(states, torch.ones_like(ids), tokens)
                    boxes.append(model.predict_boxes(fused[:, 0]))
            targets += [phrase.box for phrase in item.phrases]
    assert (values["images"], values["captions"]) == (9, len(texts)) == (9, 9)
    assert values["phrases"] == len(boxes) > 30
    expected = (torch.cat(images), torch.cat(texts), torch.tensor(owners))
    for got, want in zip(seen["retrieval"], expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["grounding"][0], torch.cat(boxes), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["grounding"][1], torch.tensor(targets))


def test_what_is_not_there_is_not_measured(evaluator: Evaluator, tmp_path: Path) -> None:
    config = load_config("tiny", overrides=SHRUNK).data
    captions = EvalSet([small.write(tmp_path / "a.parquet", small.captioned(4))], config)
    values = evaluator.measure(captions)
    assert "text_to_image_r1" in values and "grounding_accuracy" not in values
    with pytest.raises(UserError, match="no image has a phrase"):
        draw_grounding(evaluator, captions, 2, tmp_path / "none")


def test_pictures_show_boxes(evaluator: Evaluator, tmp_path: Path) -> None:
    rows = small.boxed(3)
    rows[0]["id"] = "odd/../name $x$"
    rows[0]["concepts"][1]["text"] = "a thing for $5 or $6_"
    config = load_config("tiny", overrides=SHRUNK).data
    held_out = EvalSet([small.write(tmp_path / "a.parquet", rows)], config)
    paths = draw_grounding(evaluator, held_out, 2, tmp_path / "pictures")
    assert len(set(paths)) == 2
    assert all(path.parent == tmp_path / "pictures" for path in paths)
    assert all(Image.open(path).width > 100 for path in paths)


@given(total=st.integers(0, 300), count=st.integers(1, 20))
def test_pictures_are_spread_over_the_whole_set(total: int, count: int) -> None:
    chosen = _spread(range(total), count)  # type: ignore[arg-type]
    assert len(chosen) == min(total, count)
    gaps = [b - a for a, b in zip([0, *chosen], [*chosen, total], strict=True)]
    assert all(0 <= gap <= 2 * total / count + 2 for gap in gaps)


def test_curves_of_all_losses(tmp_path: Path) -> None:
    lines = [
        json.loads(json.dumps({"step": s, "image_text/mlm": 9 / s, "multi_grained/box_l1": None}))
        for s in range(1, 9)
    ]
    lines.append({"step": 8, "eval/grounding_accuracy": 0.4})
    draw_curves(lines, tmp_path / "deep" / "curves.png")
    assert Image.open(tmp_path / "deep" / "curves.png").width > 300
    with pytest.raises(UserError, match="no losses"):
        draw_curves([{"step": 1, "eval/x": 1.0}], tmp_path / "none.png")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights as a folder for use, which tells of no step."""
    config = load_config("tiny", overrides=SHRUNK)
    tokenizer = small.tokenizer()
    config.model.text.vocab = tokenizer.vocab_size
    folder = tmp_path_factory.mktemp("exported") / "model"
    save_pretrained(folder, XVLM(config.model), config, tokenizer)
    return folder


def xvlm(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_folder_for_use_has_no_step_to_tell(exported: Path, tmp_path: Path) -> None:
    small.write(tmp_path / "val.parquet", small.boxed(3))
    result = xvlm("evaluate", exported, "--manifest", tmp_path / "val.parquet")
    assert result.exit_code == 0, result.output
    assert "R@1" in result.stdout and "(step" not in result.stdout and "None" not in result.stdout


def test_an_empty_manifest_is_named(exported: Path, tmp_path: Path) -> None:
    small.write(tmp_path / "val.parquet", small.boxed(3))
    small.write(tmp_path / "none.parquet", [])
    given = [f"--manifest={tmp_path / name}.parquet" for name in ("val", "none")]
    result = xvlm("evaluate", exported, *given)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'none.parquet'}: the manifest is empty;")


@pytest.mark.parametrize("place", ["file", "file/deep/er"])
def test_pictures_into_a_file_are_refused_before_anything_is_measured(
    exported: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "measure", lambda *_: pytest.fail("measured"))
    small.write(tmp_path / "val.parquet", small.boxed(3))
    (tmp_path / "file").touch()
    val, out = tmp_path / "val.parquet", tmp_path / place
    result = xvlm("evaluate", exported, "--manifest", val, "--pictures", 2, out)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert result.stderr.startswith(f"error: {tmp_path / 'file'}: a file, but pictures go into")


@pytest.mark.parametrize("place", ["file/x.png", "file/deep/x.png"])
def test_curves_below_a_file_are_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: a file, but pictures go into a folder"):
        draw_curves([{"step": 1, "image_text/mlm": 1.0}], tmp_path / place)
