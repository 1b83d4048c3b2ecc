"""The five losses against values worked out by hand or by other code."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import generalized_box_iou

from tests.train.small_models import random_batch, small_config
from xvlm_data.errors import UserError
from xvlm_train.model.config import Parity
from xvlm_train.model.xvlm import XVLM
from xvlm_train.objectives import (
    box_losses,
    compute_losses,
    contrastive_loss,
    generalised_iou,
    is_degenerate,
    matching_accuracy,
    matching_loss,
    mlm_loss,
    to_corners,
)


def features(rows: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 6, generator=draw, dtype=torch.float64), dim=1)


def mean(loss) -> float:
    return (loss.sum / loss.count).item()


def test_contrastive_loss_is_cross_entropy_both_ways() -> None:
    images, texts = features(3, 0), features(3, 1)
    scores = (images @ texts.T / 0.2).tolist()
    expected = 0.0
    for b in range(3):
        row = sum(math.exp(scores[b][other]) for other in range(3))
        column = sum(math.exp(scores[other][b]) for other in range(3))
        expected -= math.log(math.exp(scores[b][b]) ** 2 / (row * column)) / 2 / 3
    assert mean(contrastive_loss(images, texts, torch.tensor(0.2))) == pytest.approx(expected)


def test_contrastive_targets_spread_over_the_group() -> None:
    images, texts = features(3, 0), features(3, 1)
    log_rows = (images @ texts.T / 0.2).log_softmax(1)
    log_columns = (images @ texts.T / 0.2).log_softmax(0)
    target = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]).double()
    expected = -((target * log_rows).sum() + (target * log_columns).sum()) / 2 / 3
    keys = torch.tensor([[4], [9], [4]])
    loss = contrastive_loss(images, texts, torch.tensor(0.2), keys=keys, same="positive")
    assert mean(loss) == pytest.approx(expected.item())


def test_equal_features_are_at_chance() -> None:
    same = F.normalize(torch.ones(8, 4), dim=1)
    assert mean(contrastive_loss(same, same, torch.tensor(0.07))) == pytest.approx(math.log(8))


def test_official_gradient_is_a_fraction_for_encoders_and_whole_for_temperature() -> None:
    gradients = {}
    for scale in (1.0, 1 / 8):
        leaves = [features(4, 0).requires_grad_(), features(4, 1).requires_grad_()]
        temperature = torch.tensor(0.1, requires_grad=True)
        loss = contrastive_loss(*leaves, temperature, encoder_gradient_scale=scale)
        loss.sum.backward()
        gradients[scale] = [leaf.grad for leaf in leaves], temperature.grad, loss.sum.item()
    for true, official in zip(gradients[1.0][0], gradients[1 / 8][0], strict=True):
        torch.testing.assert_close(official, true / 8)
    assert gradients[1.0][1] == gradients[1 / 8][1] != 0
    assert gradients[1.0][2] == gradients[1 / 8][2]


def test_parity_presets() -> None:
    assert Parity.clean() == Parity()
    assert Parity.clean().encoder_gradient_scale == 1
    assert Parity.official(24).encoder_gradient_scale == 1 / 24
    for wrong in ("official", "official:0", "official:x", "Exact"):
        with pytest.raises(UserError, match="contrastive_gradient"):
            Parity(contrastive_gradient=wrong)


def test_matching_loss_leaves_out_rows_without_a_negative() -> None:
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 50.0]])
    loss = matching_loss(logits, torch.tensor([1, 0, -100]))
    assert loss.count == 2
    assert mean(loss) == pytest.approx((math.log(2) + math.log(1 + math.exp(-2))) / 2)


def test_mlm_loss_is_a_mean_over_chosen_tokens_not_over_texts() -> None:
    logits = torch.zeros(4, 4)
    logits[0, 1] = 3
    loss = mlm_loss(logits, torch.tensor([1, 0, 2, -100]))
    right = math.log(math.exp(3) + 3) - 3
    assert loss.count == 3
    assert mean(loss) == pytest.approx((right + 2 * math.log(4)) / 3, rel=1e-5)


TARGET = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0], [0.25, 0.25, 0.5, 0.5]])
GUESS = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.75, 0.5, 0.5, 1.0], [0.25, 0.25, 0.5, 0.5]])
WHOLE = torch.tensor([True, False, False])


def test_box_losses_by_hand() -> None:
    l1, giou = box_losses(GUESS, TARGET, WHOLE)
    # Row 1: centres 0.5 apart; two halves that touch: IoU 0, hull = union, GIoU 0. Row 2: equal.
    assert mean(l1) == pytest.approx(0.5 / 2)
    assert mean(giou) == pytest.approx((1 + 0) / 2)
    l1, giou = box_losses(GUESS, TARGET)
    # Row 0: a quarter of the image inside the image: IoU 1/4, hull = union.
    assert mean(l1) == pytest.approx((1.0 + 0.5) / 3)
    assert mean(giou) == pytest.approx((0.75 + 1) / 3)


@pytest.mark.parametrize("row", [0, 2])
def test_a_degenerate_box_costs_its_row_or_in_the_original_the_batch(row: int) -> None:
    target = TARGET.clone()
    target[row, 2] = -0.1
    _, clean = box_losses(GUESS, target, WHOLE)
    assert clean.sum == pytest.approx(1.0)  # row 1, whose box is sound
    _, official = box_losses(GUESS, target, WHOLE, degenerate="batch")
    assert official.sum == 0


corner = st.floats(-1, 2, width=32)
box = st.tuples(corner, corner, corner, corner).map(
    lambda c: [min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3])]
)


@given(box, box)
def test_giou_properties(a: list[float], b: list[float]) -> None:
    first, second = torch.tensor([a]).double(), torch.tensor([b]).double()
    value = generalised_iou(first, second)
    assert torch.isfinite(value).all()
    assert -1 <= value.item() <= 1 + 1e-9
    torch.testing.assert_close(value, generalised_iou(second, first))
    areas = [(c[:, 2:] - c[:, :2]).prod(1).item() for c in (first, second)]
    if min(areas) > 1e-6:
        torch.testing.assert_close(value, generalized_box_iou(first, second)[0])
        assert generalised_iou(first, first).item() == pytest.approx(1)


def test_corners_and_degeneracy() -> None:
    corners = to_corners(torch.tensor([[0.5, 0.4, 0.2, 0.6], [0.5, 0.4, 0.2, -0.6]]))
    torch.testing.assert_close(corners[0], torch.tensor([0.4, 0.1, 0.6, 0.7]))
    assert is_degenerate(corners).tolist() == [False, True]


@pytest.mark.parametrize("empty", [[0.3, 0.3, 0.0, 0.0], [0.3, 0.3, 1e-30, 1e-30]])
def test_empty_boxes_have_finite_losses_and_gradients(empty: list[float]) -> None:
    predicted = torch.tensor([empty], requires_grad=True)
    l1, giou = box_losses(predicted, torch.tensor([empty]))
    (l1.sum + giou.sum).backward()
    assert torch.isfinite(giou.sum)
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()


@pytest.mark.parametrize(
    ("regions", "parity"), [(0, Parity()), (0, Parity.official()), (2, Parity())]
)
def test_total_is_the_plain_sum_and_no_region_row_is_zero_or_nan(regions: int, parity) -> None:
    torch.manual_seed(0)
    model = XVLM(small_config()).eval()
    batch = random_batch(2, 4, regions)
    losses = compute_losses(model(batch), batch, config=parity)
    assert list(losses) == ["contrastive", "matching", "mlm", "box_l1", "box_giou", "total"]
    if regions == 0 and parity != Parity():
        assert losses["box_l1"].isnan()
        assert losses["box_giou"].isnan()
        return
    if regions == 0:
        assert losses["box_l1"] == losses["box_giou"] == 0
    torch.testing.assert_close(losses["total"], sum(list(losses.values())[:-1]))
    losses["total"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_image_text_batch_has_no_box_losses() -> None:
    model = XVLM(small_config()).eval()
    batch = random_batch(4, 4, 0, multi_grained=False)
    losses = compute_losses(model(batch), batch)
    assert list(losses) == ["contrastive", "matching", "mlm", "total"]
    losses["total"].backward()
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith("bbox_head"))


def test_whole_image_switch_counts_whole_images() -> None:
    model = XVLM(small_config()).eval()
    batch = random_batch(2, 4, 1)
    outputs = model(batch)
    assert outputs.predicted_boxes is not None
    every = compute_losses(outputs, batch, config=Parity(whole_image_boxes=True))
    expected = (outputs.predicted_boxes - batch.boxes).abs().sum() / 4
    torch.testing.assert_close(every["box_l1"], expected)


def test_matching_accuracy_counts_valid_rows() -> None:
    batch = random_batch(1, 1, 1)
    outputs = XVLM(small_config()).eval()(batch)
    outputs.matching_logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    outputs.matching_labels = torch.tensor([1, 0, -100])
    assert matching_accuracy(outputs) == 0.5
