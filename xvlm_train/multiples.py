"""Learning rates by layer and by name, and parameters that stay as they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

from timm.models import group_parameters

from xvlm_data.errors import UserError
from xvlm_train.model.xvlm import XVLM

_TEXT_LAYER = re.compile(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.")


def layer_multiples(model: XVLM, decay: float) -> dict[str, float]:
    """``decay ** (layers above)`` for every parameter of both encoders; 1 for all others.

    Counted are, in the text encoder, the embeddings, each layer and the prediction head; in the
    vision encoder what timm counts for its own layer decay: stem and blocks, the last norm with
    the last block.

    Raises:
        UserError: the backbone does not say what its layers are.
    """
    if decay == 1:
        return {}
    layers = model.config.text.layers
    depths = {}
    for name, _ in model.named_parameters():
        if name.startswith("text_encoder."):
            match = _TEXT_LAYER.match(name)
            head = name.startswith("text_encoder.cls.")
            depths[name] = int(match[1]) + 1 if match else (layers + 1) * head
    multiples = {name: decay ** (layers + 1 - depth) for name, depth in depths.items()}
    backbone = model.vision_encoder.backbone
    if not hasattr(backbone, "group_matcher"):
        raise UserError(
            f"optim.layer_decay: timm's {model.vision_encoder.name} does not tell its layers",
            "leave it at 1 and use optim.lr_multiples",
        )
    found = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    last = max(found.values(), default=0)
    for name, depth in found.items():
        multiples[f"vision_encoder.backbone.{name}"] = decay ** (last - depth)
    return multiples


def rate_multiple(
    model: XVLM, decay: float, patterns: Mapping[str, float]
) -> Callable[[str], float]:
    """The factor of a parameter's learning rate: its layer's, times those of matching patterns.

    Raises:
        UserError: a pattern without any parameter; a backbone without known layers.
    """
    _check("optim.lr_multiples", patterns, model)
    by_layer = layer_multiples(model, decay)

    def multiple(name: str) -> float:
        factor = by_layer.get(name, 1.0)
        for pattern, more in patterns.items():
            if fnmatchcase(name, pattern):
                factor *= more
        return factor

    return multiple


def freeze(model: XVLM, patterns: Iterable[str]) -> int:
    """Let the parameters that match any of the patterns stay as they are; how many numbers.

    Raises:
        UserError: a pattern without any parameter, or nothing is left to train.
    """
    patterns = list(patterns)
    _check("optim.freeze", patterns, model)
    frozen = 0
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("optim.freeze freezes every parameter", "leave some to train")
    return frozen


def _check(key: str, patterns: Iterable[str], model: XVLM) -> None:
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(
                f"{key}: no parameter is named {pattern!r}",
                f"names look like {names[len(names) // 2]}; * stands for any text",
            )
