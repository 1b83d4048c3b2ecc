"""Parts of a batch, on 1, 2 and 4 ranks, add up to the gradients of one process with all of it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
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
from xvlm_train.engine import accumulate
from xvlm_train.model import xvlm
from xvlm_train.model.config import Parity
from xvlm_train.objective import Objective
from xvlm_train.objectives import compute_losses, concept_keys, same_pairs

#: What each rank holds: 5, 3, 1 and 4 concepts.
RANKS = (
    random_batch(3, 5, 3, seed=1),
    random_batch(1, 3, 1, seed=2),
    random_batch(1, 1, 1, seed=9),
    random_batch(3, 4, 2, seed=10),
)
# One text on two ranks, and once more in another part of the first.
for rank, row in ((0, 4), (3, 1)):
    for name in ("text_ids", "text_mask", "masked_ids", "masked_positions", "masked_labels"):
        getattr(RANKS[rank], name)[row] = getattr(RANKS[0], name)[0]
RANKS = tuple(replace(batch) for batch in RANKS)
CASES = [(parts, how) for parts in (1, 3) for how in ("keep", "ignore", "positive")]
choose = xvlm.choose_negatives


def likeliest(weights: Tensor, how: str, generator: torch.Generator | None):
    return choose(weights, "argmax", generator)


def objective(how: str) -> Objective:
    torch.manual_seed(3)
    return Objective(xvlm.XVLM(small_config()).eval().double(), Parity(same_text_negatives=how))


def doubled(batch: Batch) -> Batch:
    return replace(batch, images=batch.images.double())


def summed(model: nn.Module, module: Objective, batch: Batch, parts: int) -> dict[str, Tensor]:
    values = accumulate.backward(
        model,
        doubled(batch).parts(parts),
        in_parts=parts > 1,
        begin=lambda n: None,
        autocast=nullcontext,
        scale=lambda loss: loss,
    )
    found = {f"value/{name}": value.detach() for name, value in values.items()}
    return found | {n: p.grad for n, p in module.model.named_parameters() if p.grad is not None}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    xvlm.choose_negatives = likeliest
    for world in (4, 2):
        if rank >= world:
            continue
        store = f"file://{folder}/store{world}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        for parts, how in CASES:
            module = objective(how)
            ddp = DistributedDataParallel(module, find_unused_parameters=True)
            found = summed(ddp, module, RANKS[rank], parts)
            save_file(found, f"{folder}/{world}-{parts}-{how}-{rank}.safetensors")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=4)
    return folder


def joined(batches: tuple[Batch, ...]) -> Batch:
    values = {
        field.name: torch.cat([getattr(batch, field.name) for batch in batches])
        for field in fields(Batch)
        if isinstance(getattr(batches[0], field.name), Tensor)
    }
    first, index = 0, []
    for batch in batches:
        index.append(batch.image_index + first)
        first += len(batch.images)
    return replace(batches[0], **values | {"image_index": torch.cat(index)})


def alone(batches: tuple[Batch, ...], parts: int, how: str, patch) -> dict[str, Tensor]:
    """One process and one pass; negatives stay within the part that holds the concept."""
    owners = []
    for rank, batch in enumerate(batches):
        size = len(batch.images)
        count = min(parts, size)
        edges = torch.tensor([size * n // count for n in range(1, count + 1)])
        owners.append(10 * rank + torch.searchsorted(edges, batch.image_index, right=True))
    owner = torch.cat(owners)

    def choose_own(weights: Tensor, how: str, generator: torch.Generator | None):
        return choose(weights * (owner[:, None] == owner), "argmax", generator)

    patch.setattr(xvlm, "choose_negatives", choose_own)
    module = objective(how)
    batch = doubled(joined(batches))
    keys = None if how == "keep" else concept_keys(batch)
    outputs = module.model(batch, same=None if keys is None else same_pairs(keys))
    losses = compute_losses(outputs, batch, config=module.parity, keys=keys)
    losses["total"].backward()
    found = {f"value/{name}": value.detach() for name, value in losses.items()}
    return found | {n: p.grad for n, p in module.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(("parts", "how"), CASES)
def test_ranks_and_parts_give_the_joint_gradients(
    results: Path, world: int, parts: int, how: str, monkeypatch
) -> None:
    expected = alone(RANKS[:world], parts, how, monkeypatch)
    if world == 1:
        monkeypatch.setattr(xvlm, "choose_negatives", likeliest)
        module = objective(how)
        found = [summed(module, module, RANKS[0], parts)]
    else:
        names = [f"{world}-{parts}-{how}-{rank}.safetensors" for rank in range(world)]
        found = [load_file(results / name) for name in names]
    for key, value in expected.items():
        if key.startswith("value/"):
            mean = torch.stack([rank[key] for rank in found]).mean(0)
            # Sums of float32 and float64 parts are of either type.
            torch.testing.assert_close(mean.double(), value.double(), rtol=1e-5, atol=1e-6)
            continue
        for rank in found:
            noise = 1e-5 * max(1.0, value.abs().max().item())
            torch.testing.assert_close(rank[key], value, rtol=0, atol=noise, msg=key)
    assert expected["temp"].abs() > 1e-3


def test_what_counts_as_the_same_changes_the_loss() -> None:
    batch = doubled(RANKS[0])
    losses = {}
    for how in ("keep", "ignore", "positive"):
        torch.manual_seed(0)
        losses[how] = objective(how)(batch)["contrastive"].item()
    # The only negative that is left out can but lower the loss.
    assert losses["ignore"] < losses["keep"]
    # Equal texts have equal features, so it makes no difference which of them is the positive.
    assert losses["positive"] == pytest.approx(losses["keep"])


def test_keys_are_equal_for_equal_texts_and_equal_views_only() -> None:
    batch = random_batch(2, 6, 6, seed=4)
    batch.text_ids[3] = batch.text_ids[1]
    batch.patch_mask[4] = batch.patch_mask[2]  # of the same image
    batch.patch_mask[5] = batch.patch_mask[0]  # of another
    same = same_pairs(concept_keys(batch))
    expected = torch.eye(6, dtype=torch.bool)
    for a, b in ((1, 3), (2, 4)):
        expected[a, b] = expected[b, a] = True
    assert torch.equal(same, expected)
    # Images of another part are others, equal texts are not.
    across = concept_keys(batch)[:, None] == concept_keys(batch, part=1)[None]
    assert not across[..., 1].any()
    assert torch.equal(across[..., 0].diagonal(), torch.ones(6, dtype=torch.bool))


def test_keys_of_many_patches() -> None:
    batch = random_batch(2, 3, 3, seed=4)
    batch.patch_mask = torch.ones(3, 1 + 48 * 48)
    batch.patch_mask[1, -1] = 0
    batch.image_index[:] = 0
    assert same_pairs(concept_keys(batch)).tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]


def test_same_texts_are_never_drawn_as_negatives() -> None:
    batch = RANKS[0]
    same = same_pairs(concept_keys(batch))
    assert same[0, 4]
    model = objective("ignore").model.float()
    for seed in range(20):
        torch.manual_seed(seed)
        outputs = model(batch, same=same)
        for row, (image, text) in enumerate(
            zip(outputs.negative_images, outputs.negative_texts, strict=True)
        ):
            assert not same[row, image]
            assert not same[row, text]


def test_both_passes_of_a_part_see_the_same_dropout(monkeypatch) -> None:
    torch.manual_seed(0)
    model = xvlm.XVLM(small_config()).train()
    seen: list[Tensor] = []
    encode = model.encode

    def watched(batch: Batch):
        encoded = encode(batch)
        seen.append(torch.cat([encoded.image_features, encoded.text_features]).detach())
        return encoded

    monkeypatch.setattr(model, "encode", watched)
    module = Objective(model, Parity())
    run = partial(
        accumulate.backward,
        module,
        RANKS[0].parts(2),
        in_parts=True,
        autocast=nullcontext,
        scale=lambda loss: loss,
    )
    run(begin=lambda n: torch.manual_seed(n))
    assert [torch.equal(a, b) for a, b in zip(seen[:2], seen[2:], strict=True)] == [True, True]
    seen.clear()
    run(begin=lambda n: None)  # the comparison can fail
    assert not torch.equal(seen[0], seen[2])


def test_parts_hold_every_image_and_concept_once() -> None:
    batch = random_batch(5, 12, 6, seed=3)
    parts = batch.parts(3)
    assert [len(part.images) for part in parts] == [1, 2, 2]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    pairs = {
        (tuple(image.flatten()[:4].tolist()), tuple(ids.tolist()))
        for image, ids in zip(batch.images[batch.image_index], batch.text_ids, strict=True)
    }
    found = [
        (tuple(image.flatten()[:4].tolist()), tuple(ids.tolist()))
        for part in parts
        for image, ids in zip(part.images[part.image_index], part.text_ids, strict=True)
    ]
    assert len(found) == 12
    assert set(found) == pairs
    assert [part.host.lengths.sum() for part in parts] == [int(p.text_mask.sum()) for p in parts]
    assert len(batch.parts(99)) == 5
    assert batch.parts(1) == [batch]
