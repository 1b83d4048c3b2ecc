"""torch.compile: the same numbers, from a stated number of graphs."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.train.small_models import GRID, VOCAB, small_config
from xvlm_train.bench.check import compare
from xvlm_train.data.batch import Batch
from xvlm_train.data.config import DataConfig
from xvlm_train.model import compiled
from xvlm_train.model.config import ComputeConfig, Parity
from xvlm_train.model.xvlm import XVLM
from xvlm_train.objectives import compute_losses
from xvlm_train.synthetic import synthetic_batch

DATA = DataConfig(image_size=32, max_tokens=8, max_masks=3)


def batch_of(stream: str, seed: int) -> Batch:
    images, texts = (6, 6) if stream == "image_text" else (4, 9)
    return synthetic_batch(
        stream, DATA, images=images, texts=texts, vocab=VOCAB, grid=(GRID, GRID), seed=seed
    ).to("cpu")


@pytest.fixture
def counter(monkeypatch) -> CompileCounter:
    """Counts the graphs that are handed to the compiler; runs them as they are."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(compiled, "BACKEND", counter)
    yield counter
    torch._dynamo.reset()
    compiled._compiled.cache_clear()


# The image encoder for either stream's number of images; and the feed-forward part, or of packed
# texts a text layer, and two cross-modal ones, with and without masks.
@pytest.mark.parametrize(("packed", "graphs"), [(False, 3), (True, 7)])
def test_texts_of_any_length_need_no_new_graph(
    counter: CompileCounter, packed: bool, graphs: int
) -> None:
    config = small_config(dropout=0.1)
    config.vision.drop_path = 0.1
    config.text.layers, config.text.fusion_layer = 6, 3  # several of each kind
    torch.manual_seed(0)
    model = XVLM(config, ComputeConfig(compile=True, packed=packed)).train()

    def steps(seeds: range) -> None:
        for seed in seeds:
            for stream in ("image_text", "multi_grained"):
                batch = batch_of(stream, seed)
                compute_losses(model(batch), batch)["total"].backward()

    steps(range(1))
    assert counter.frame_count == graphs
    lengths = {tuple(batch_of("image_text", seed).host.lengths) for seed in range(6)}
    assert len(lengths) == 6
    steps(range(1, 6))
    assert counter.frame_count == graphs


@pytest.mark.parametrize("packed", [False, True])
def test_compiled_gives_the_same(counter: CompileCounter, packed: bool) -> None:
    torch.manual_seed(0)
    model = XVLM(small_config())
    batch = batch_of("multi_grained", 0)
    naive = ComputeConfig.naive(DATA.max_tokens)
    assert compare(model, batch, ComputeConfig(compile=True, packed=packed), naive, Parity()).ok
    assert counter.frame_count > 0
