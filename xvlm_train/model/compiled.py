"""The parts that torch.compile fuses, and how many graphs that makes.

The image encoder is one graph for each number of images in a batch: two in a run, since both
streams fill their batches. The feed-forward part of the text layers, where most of their memory
traffic is, is one graph for any number of tokens and all layers. Attention stays as it is: its
kernels are fused already, and its shapes follow the lengths of the texts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

#: Of torch.compile.
BACKEND: Any = "inductor"


def image_features(backbone: Any, images: Tensor) -> Tensor:
    """timm's features of images, compiled."""
    found: Tensor = _compiled(_features, BACKEND, dynamic=False)(backbone, images)
    return found


def feed_forward(intermediate: nn.Module, output: nn.Module, states: Tensor) -> Tensor:
    """A layer's feed-forward part on states [T, D], compiled."""
    found: Tensor = _compiled(_feed_forward, BACKEND, dynamic=True)(intermediate, output, states)
    return found


@cache
def _compiled(function: Callable[..., Tensor], backend: Any, dynamic: bool) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, backend=backend, dynamic=dynamic)
    return compiled


def _features(backbone: Any, images: Tensor) -> Tensor:
    features: Tensor = backbone.forward_features(images)
    return features


def _feed_forward(intermediate: nn.Module, output: nn.Module, states: Tensor) -> Tensor:
    new: Tensor = output(intermediate(states), states)
    return new
