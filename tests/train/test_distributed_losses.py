"""Two ranks (gloo, DDP) give the gradients of one process with the joint batch."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.train.small_models import random_batch, small_config
from xvlm_train.data.batch import Batch
from xvlm_train.model import xvlm
from xvlm_train.model.config import Parity
from xvlm_train.objectives import compute_losses, gather_rows

#: Concepts of each rank, in different numbers of everything that is counted.
RANKS = {
    "regions": (random_batch(2, 5, 3, seed=1), random_batch(1, 3, 1, seed=2)),
    "no_region_on_one": (random_batch(2, 2, 0, seed=3), random_batch(2, 4, 3, seed=4)),
    "one_concept_on_one": (random_batch(1, 1, 1, seed=5), random_batch(2, 4, 2, seed=6)),
    "image_text": (
        random_batch(3, 3, 0, seed=7, multi_grained=False),
        random_batch(2, 2, 0, seed=8, multi_grained=False),
    ),
}
LOSSES = ("contrastive", "matching", "mlm", "box_l1", "box_giou", "total")
TWO = Parity(contrastive_gradient="official:2")
POSITIVE = Parity(same_text_negatives="positive")


class Objective(nn.Module):
    def __init__(self, config: Parity, keys: Tensor | None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.model = xvlm.XVLM(small_config()).eval().double()
        self.config, self.keys = config, keys

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        outputs = self.model(batch, negatives="argmax")
        return compute_losses(outputs, batch, config=self.config, keys=self.keys)


def double(batch: Batch) -> Batch:
    return replace(batch, images=batch.images.double(), boxes=batch.boxes)


def joined(parts: tuple[Batch, ...]) -> Batch:
    """One batch of all ranks' images and concepts."""
    values = {
        field.name: torch.cat([getattr(part, field.name) for part in parts])
        for field in fields(Batch)
        if isinstance(getattr(parts[0], field.name), Tensor)
    }
    offsets = torch.tensor([0, len(parts[0].images)]).repeat_interleave(
        torch.tensor([len(part.text_ids) for part in parts])
    )
    values["image_index"] = values["image_index"] + offsets
    return replace(parts[0], **values)


def gradients(objective: nn.Module, module: Objective, batch: Batch) -> dict[str, Tensor]:
    """``loss/parameter`` → gradient, and ``loss`` → value."""
    found: dict[str, Tensor] = {}
    for loss in LOSSES:
        if not batch.multi_grained and loss.startswith("box"):
            continue
        module.zero_grad(set_to_none=True)
        losses = objective(double(batch))
        losses[loss].backward()
        found[loss] = losses[loss].detach()
        for name, parameter in module.model.named_parameters():
            if parameter.grad is not None:
                found[f"{loss}/{name}"] = parameter.grad.clone()
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for case, parts in RANKS.items():
        for name, config in {"exact": Parity(), "official": TWO}.items():
            module = Objective(config, None)
            ddp = DistributedDataParallel(module, find_unused_parameters=True)
            found = gradients(ddp, module, parts[rank])
            save_file(found, f"{folder}/{case}-{name}-{rank}.safetensors")
    parts = RANKS["regions"]
    module = Objective(POSITIVE, keys_of(parts)[rank])
    ddp = DistributedDataParallel(module, find_unused_parameters=True)
    save_file(gradients(ddp, module, parts[rank]), f"{folder}/keys-exact-{rank}.safetensors")
    own = torch.arange(rank + 1.0)[:, None].requires_grad_()
    everyone = gather_rows(own, [1, 2])
    (everyone * torch.tensor([[1.0], [2.0], [3.0]]) * (rank + 1)).sum().backward()
    save_file({"rows": everyone.detach(), "grad": own.grad}, f"{folder}/gather{rank}.safetensors")
    dist.destroy_process_group()


def keys_of(parts: tuple[Batch, ...]) -> list[Tensor]:
    """Labels that join concepts within and across ranks."""
    return [(torch.arange(len(part.text_ids)) % 3)[:, None] for part in parts]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return folder


def alone(parts: tuple[Batch, ...], keys: Tensor | None, patch) -> dict[str, Tensor]:
    """One process, the joint batch; negatives stay within the rank's own part, as they do there."""
    sizes = torch.tensor([len(part.text_ids) for part in parts])
    owner = torch.arange(2).repeat_interleave(sizes)
    choose = xvlm.choose_negatives

    def choose_own(weights: Tensor, how, generator) -> tuple[Tensor, Tensor]:
        return choose(weights * (owner[:, None] == owner), how, generator)

    patch.setattr(xvlm, "choose_negatives", choose_own)
    module = Objective(Parity() if keys is None else POSITIVE, keys)
    return gradients(module, module, joined(parts))


def compare(folder: Path, case: str, expected: dict[str, Tensor], scale=lambda key: 1.0) -> None:
    ranks = [load_file(folder / f"{case}-{rank}.safetensors") for rank in (0, 1)]
    for key, value in expected.items():
        if "/" not in key:  # a loss: the mean over ranks is the joint one
            mean = (ranks[0][key] + ranks[1][key]) / 2
            torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-7)
            continue
        for rank in ranks:
            given = rank.get(key)
            assert given is not None, key
            # Features and losses are float32: rounding is relative to the tensor's largest entry.
            noise = 1e-5 * max(1.0, value.abs().max().item())
            torch.testing.assert_close(given, value * scale(key), rtol=0, atol=noise, msg=key)


@pytest.mark.parametrize("case", RANKS)
def test_two_ranks_give_the_joint_gradients(results: Path, case: str, monkeypatch) -> None:
    expected = alone(RANKS[case], None, monkeypatch)
    assert expected["contrastive/temp"].abs() > 1e-3
    compare(results, f"{case}-exact", expected)


@pytest.mark.parametrize("case", RANKS)
def test_official_gives_encoders_half_and_temperature_all(
    results: Path, case: str, monkeypatch
) -> None:
    expected = alone(RANKS[case], None, monkeypatch)
    # Of the contrastive loss alone: in the total the other losses come in full.
    expected = {key: value for key, value in expected.items() if key.startswith("contrastive")}

    def scale(key: str) -> float:
        return 1.0 if key.endswith("/temp") else 0.5

    compare(results, f"{case}-official", expected, scale)


def test_equal_keys_reach_over_ranks(results: Path, monkeypatch) -> None:
    parts = RANKS["regions"]
    expected = alone(parts, torch.cat(keys_of(parts)), monkeypatch)
    compare(results, "keys-exact", expected)


def test_gather_pads_and_sums_gradients(results: Path) -> None:
    for rank in (0, 1):
        found = load_file(results / f"gather{rank}.safetensors")
        assert found["rows"].flatten().tolist() == [0, 0, 1]
        # Weights (1, 2, 3), once from rank 0 and twice from rank 1.
        assert found["grad"].flatten().tolist() == [[3.0], [6.0, 9.0]][rank]
