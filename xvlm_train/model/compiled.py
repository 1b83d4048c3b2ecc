"""The parts that torch.compile fuses, and how many graphs that makes.

The image encoder is one graph for each number of images in a batch: two in a run, since both
streams fill their batches. With ``compute.cuda_graphs`` its kernels, over a thousand that a host
launches one by one, are recorded and replayed on a GPU. Of the text encoder, packed texts make one
graph a kind of layer (text, cross-modal, and the last one, with few queries) for any number of
tokens. Where texts are grouped by length it is the feed-forward part alone, one graph for all
layers: the shapes that attention sees there follow the lengths of the texts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as shapes

#: Of torch.compile.
BACKEND: Any = "inductor"


def image_features(backbone: Any, images: Tensor, *, graphs: bool = False) -> Tensor:
    """timm's features of images, compiled.

    Args:
        backbone: of timm.
        images: [I, 3, R, R].
        graphs: on a GPU, record the launches of all kernels once and replay them. Gradients then
            lie in memory that the next call uses again.
    """
    graphs = graphs and images.is_cuda
    found: Tensor = _compiled(_features, BACKEND, dynamic=False, graphs=graphs)(backbone, images)
    return found


def feed_forward(intermediate: nn.Module, output: nn.Module, states: Tensor) -> Tensor:
    """A layer's feed-forward part on states [T, D], compiled."""
    found: Tensor = _compiled(_feed_forward, BACKEND, dynamic=True)(intermediate, output, states)
    return found


def packed_layer(layer: Any, states: Tensor, *call: Any) -> Tensor:
    """A layer on packed texts, compiled: see :class:`.packed_attention.PackedCall`."""
    found: Tensor = _compiled(_packed_layer, BACKEND, dynamic=True)(layer, states, *call)
    return found


@cache
def _compiled(
    function: Callable[..., Tensor], backend: Any, dynamic: bool, graphs: bool = False
) -> Callable[..., Any]:
    # Sizes that are equal in a first batch by chance would be one number to its graph, and a batch
    # in which they differ would need another graph. torch names this switch where it tells of it.
    shapes.use_duck_shape = False
    compiled: Callable[..., Any] = torch.compile(
        function,
        backend=backend,
        dynamic=dynamic,
        options={"triton.cudagraphs": True} if graphs else None,
    )
    return compiled


def _features(backbone: Any, images: Tensor) -> Tensor:
    features: Tensor = backbone.forward_features(images)
    return features


def _feed_forward(intermediate: nn.Module, output: nn.Module, states: Tensor) -> Tensor:
    new: Tensor = output(intermediate(states), states)
    return new


def _packed_layer(layer: Any, states: Tensor, *call: Any) -> Tensor:
    new: Tensor = layer.on_packed(states, *call)
    return new
