"""AdamW with the paper's parameter groups.

Two choices are made for every parameter: weight decay or none, and the learning-rate multiple
(2 for weights that no pre-trained model gave). Two rules decide on decay:

* ``clean``: no decay for biases, for every normalisation layer, for the temperature and for
  position tables (relative-position bias, class and position embeddings of a ViT) — that is, for
  every parameter of fewer than two dimensions and every position table.
* ``official``: the original's test on names. It differs in that the temperature and the
  LayerNorms of the two heads *are* decayed.

The update is torch's AdamW. The original adds ``eps`` to the square root *before* the bias
correction (ours after: the same within eps / sqrt(1 - beta2^t), which only shows in the first
steps of parameters with gradients near 1e-8) and decays the weights after the step instead of
before it (a difference of second order in the learning rate).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

DecayRule = Literal["clean", "official"]

_POSITION_TABLES = ("relative_position_bias_table", "pos_embed", "cls_token", "dist_token")
_OFFICIAL_NO_DECAY = ("bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight")


def decays(name: str, dims: int, rule: DecayRule) -> bool:
    """Whether a parameter is decayed.

    Args:
        name: its name; under ``official``, the name the original gives it.
        dims: its number of dimensions.
        rule: see the module's text.
    """
    if rule == "official":
        return not any(part in name for part in _OFFICIAL_NO_DECAY)
    return dims >= 2 and not name.endswith(_POSITION_TABLES)


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    new_lr_multiple: float,
    is_new: Callable[[str], bool],
    multiple: Callable[[str], float] = lambda name: 1.0,
    rule: DecayRule = "clean",
    official_name: Callable[[str], str] = lambda name: name,
) -> list[dict[str, Any]]:
    """Groups by (pre-trained, new weights) x (decay, no decay) x multiple, in a fixed order.

    Each group carries ``names`` beside ``params``, and ``lr_mult``, by which the schedule's rate is
    multiplied.

    Args:
        parameters: names and parameters; frozen ones are left out.
        lr: base learning rate.
        weight_decay: of the groups with decay.
        new_lr_multiple: ``lr_mult`` of new weights (paper: 2).
        is_new: whether the parameter of this name came from no pre-trained model.
        multiple: a further factor of the learning rate of the parameter of this name.
        rule: who is decayed.
        official_name: our name → the original's, for the rule ``official``.
    """
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        rule_name = official_name(name) if rule == "official" else name
        decayed, new = decays(rule_name, parameter.dim(), rule), is_new(name)
        factor = (new_lr_multiple if new else 1.0) * multiple(name)
        group = groups.setdefault(
            (new, not decayed, -factor),
            {
                "params": [],
                "names": [],
                "lr": lr * factor,
                "lr_mult": factor,
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def adamw(
    groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """Fused AdamW: one kernel per group of tensors, and able to skip an update on the device."""
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the schedule's rate of this step, times each group's multiple."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]


def set_fused(optimizer: torch.optim.Optimizer, fused: bool) -> None:
    """One kernel for all tensors, or a loop over them as the original has; for comparisons."""
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = fused, False
