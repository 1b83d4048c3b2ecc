"""The configuration of a run: one typed tree, from a preset, a file and the command line.

``xvlm-train pretrain --preset base --config mine.yaml --set optim.lr=3e-4`` merges the three in
this order. Every key is checked against the tree, every value against its type.
"""

from __future__ import annotations

import difflib
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from xvlm_data.errors import UserError
from xvlm_train.data.config import DataConfig
from xvlm_train.model.config import ComputeConfig, ModelConfig, Parity

PRESETS = ("tiny", "small", "base")


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW and its groups (paper, section 4.1; :mod:`xvlm_train.engine.optim`)."""

    lr: float = 1e-4  # full learning rate, of weights that a pre-trained model gave
    #: Multiple of the learning rate of weights that no pre-trained model gave.
    new_lr_multiple: float = 2.0
    #: AdamW's decay of the means of the gradient and of its square.
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8  # AdamW's epsilon
    weight_decay: float = 0.01  # AdamW's weight decay
    #: What has no weight decay. clean: whatever has fewer than two dimensions, and position
    #: tables; official: by the original's test on names.
    decay_rule: Literal["clean", "official"] = "clean"
    clip_norm: float = 1.0  # largest norm of the gradient over all parameters; `.inf`: no clipping
    #: Rate of each encoder layer by that of the next (ELECTRA, BEiT); 1: the same for all.
    layer_decay: float = 1.0
    #: Multiples of the learning rate by parameter name, * allowed.
    lr_multiples: dict[str, float] = field(default_factory=dict)
    freeze: list[str] = field(default_factory=list)  # parameters that stay, * allowed
    ema: float = 0.0  # decay of the average of the weights an update; 0: none

    def __post_init__(self) -> None:
        for name in ("lr", "new_lr_multiple", "eps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"optim.{name} is {getattr(self, name)}", "a number, at least 0")
        if not self.clip_norm > 0:
            raise UserError(f"optim.clip_norm is {self.clip_norm}", "above 0; .inf: no clipping")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optim.betas is {list(self.betas)}", "give 0 to 1, not 1")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"optim.layer_decay is {self.layer_decay}", "give 0 to 1, not 0")
        if not 0 <= self.ema < 1:
            raise UserError(f"optim.ema is {self.ema}", "give 0 to 1, not 1")


@dataclass(kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then a decay that ends at ``train.steps``."""

    #: Form of the decay. wsd: stable, then linear decay.
    kind: Literal["linear", "cosine", "wsd"] = "linear"
    warmup: int = 2500  # length of the warm-up in steps
    final: float = 0.0  # where the decay ends, as a share of the full rate
    decay: int = 0  # steps of the decay of wsd

    def __post_init__(self) -> None:
        _at_least("schedule.warmup", self.warmup, 0)
        _at_least("schedule.decay", self.decay, 0)
        if not 0 <= self.final <= 1:
            raise UserError(f"schedule.final is {self.final}", "give 0 to 1")
        if self.decay and self.kind != "wsd":
            raise UserError(
                f"schedule.decay is for the kind wsd, this is {self.kind}", "leave it at 0"
            )


@dataclass(kw_only=True)
class TrainConfig:
    """How long, how precise, and how often to tell."""

    steps: int = 200_000  # steps, one image-text batch each
    iter_perc: float = 0.5  # share of steps with a multi-grained batch and update before
    #: What is computed in. auto: fp32 on CPU; on GPUs bf16, or fp16 where there is no bf16.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: int = 1  # parts a batch is computed in, one after the other, to save memory
    device: str = "auto"  # auto (a GPU where there is one), or a torch device such as cpu or cuda
    seed: int = 42  # seed of initial weights, dropout, negatives and of the choice of streams
    log_every: int = 50  # metrics are written every so many steps
    #: Held-out manifests are evaluated every so many steps; 0: at the end only.
    eval_every: int = 5000
    eval_images: int = 1000  # images of the held-out manifest, at most
    #: A checkpoint is written every so many steps; the last step is always saved.
    save_every: int = 5000
    keep_last: int = 3  # newest checkpoints that stay
    keep_every: int = 0  # every so many steps; checkpoints of these stay for good; 0: none
    max_skipped: int = 50  # updates in a row without a finite loss and gradient end the run
    max_bad_rows: float = 0.05  # share of the rows that may be unusable before the run ends
    spike_sigmas: float = 6.0  # deviations above its mean at which a loss is reported; 0: never
    hang_seconds: float = 600.0  # seconds at one place before a rank reports itself; 0: never
    #: How ranks hold the model. none: each has the whole (DDP); fsdp: each has a part (FSDP2).
    sharding: Literal["none", "fsdp"] = "none"
    sharding_dtype: Literal["fp32", "bf16"] = "fp32"  # type of parameters while they are gathered
    wandb: str | None = None  # project of Weights & Biases to log to as well

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "log_every",
            "eval_images",
            "save_every",
            "keep_last",
            "max_skipped",
            "accumulate",
        ):
            _at_least(f"train.{name}", getattr(self, name), 1)
        _at_least("train.eval_every", self.eval_every, 0)
        if not 0 <= self.seed < 2**63:
            raise UserError(f"train.seed is {self.seed}", "give 0 to 2^63 - 1")
        _at_least("train.keep_every", self.keep_every, 0)
        for name in ("spike_sigmas", "hang_seconds"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name} is {getattr(self, name)}", "at least 0")
        if not 0 <= self.max_bad_rows <= 1:
            raise UserError(f"train.max_bad_rows is {self.max_bad_rows}", "give 0 to 1")
        if self.sharding != "none" and self.precision == "fp16":
            raise UserError("train.sharding with train.precision fp16 is not supported", "use bf16")
        if self.sharding != "none" and self.accumulate > 1:
            raise UserError(
                "train.sharding with train.accumulate above 1 is not supported",
                "use compute.checkpointing, which saves memory too",
            )
        if not 0 <= self.iter_perc <= 1:
            raise UserError(f"train.iter_perc is {self.iter_perc}", "give 0 to 1")


@dataclass(kw_only=True)
class TokenizerConfig:
    """The vocabulary: a published one, or one built from the manifests' own text."""

    name: str | None = "bert-base-uncased"  # hub name or folder; null: build one
    vocab_size: int = 30522  # tokens at most, when one is built


@dataclass(kw_only=True)
class PretrainConfig:
    """All of a pre-training run except its manifests and its folder."""

    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parity: Parity = field(default_factory=Parity)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        model, data = self.model.vision.image_size, self.data.image_size
        if model != data:
            raise UserError(
                f"model.vision.image_size is {model}, data.image_size is {data}",
                "set both to the same",
            )
        if self.data.max_tokens > self.model.text.max_positions:
            raise UserError(
                f"data.max_tokens is {self.data.max_tokens}, and model.text.max_positions"
                f" {self.model.text.max_positions}",
                "a model has a position for every token",
            )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} is {value}", f"at least {least}")


#: ``--parity official``: everything that follows the released code where our default does not.
OFFICIAL: dict[str, Any] = {
    "parity": asdict(Parity.official()),
    "optim": {"decay_rule": "official"},
    "data": {"flip_guard": False, "distinct_texts": False, "pixels": "exact"},
}


def load_config(
    preset: str | None = None,
    files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    *,
    official: bool = False,
    model: Mapping[str, Any] | None = None,
) -> PretrainConfig:
    """Merge preset, files and ``a.b=value`` overrides, later ones winning, into a checked tree.

    With ``official``, the switches of :data:`OFFICIAL` come between files and overrides; ``model``,
    the settings that an initial model dictates, come between preset and files.

    Raises:
        UserError: unknown preset or key (with near matches), a value of the wrong type or outside
            its range, a file that is missing or no YAML mapping.
    """
    tree: dict[str, Any] = {}
    if preset is not None:
        _merge(tree, _read_preset(preset), f"preset {preset}")
    if model is not None:
        _merge(tree, model, "the initial model")
    for file in files:
        _merge(tree, _read_file(file), str(file))
    if official:
        _merge(tree, OFFICIAL, "--parity official")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"--set {override}: not of the form key=value", "e.g. optim.lr=3e-4")
        branch: Any = _parse(text, f"--set {override}")
        for part in reversed(key.strip().split(".")):
            branch = {part: branch}
        _merge(tree, branch, f"--set {override}")
    return _convert(tree)


def parse_config(tree: Mapping[str, Any], origin: str) -> PretrainConfig:
    """A checked tree of a mapping, as :func:`load_config` of a file.

    Raises:
        UserError: unknown keys, values of the wrong type or outside their range.
    """
    checked: dict[str, Any] = {}
    _merge(checked, tree, origin)
    return _convert(checked)


def config_tree(config: PretrainConfig) -> dict[str, Any]:
    """The whole tree as plain values, for :func:`parse_config`."""
    tree: dict[str, Any] = msgspec.to_builtins(asdict(config))
    return tree


def dump_config(config: PretrainConfig) -> str:
    """The whole tree as YAML that :func:`load_config` reads back to an equal one."""
    return yaml.safe_dump(config_tree(config), sort_keys=False)


def differences(before: PretrainConfig, after: PretrainConfig) -> dict[str, str]:
    """``old → new`` by key, for every setting that differs."""

    def walk(old: Any, new: Any, key: str) -> dict[str, str]:
        if isinstance(old, dict) and isinstance(new, dict):
            names = [*old, *(name for name in new if name not in old)]
            changed: dict[str, str] = {}
            for name in names:
                changed |= walk(old.get(name), new.get(name), f"{key}.{name}")
            return changed
        return {} if old == new else {key[1:]: f"{old} → {new}"}

    return walk(asdict(before), asdict(after), "")


def _convert(tree: dict[str, Any]) -> PretrainConfig:
    try:
        return msgspec.convert(tree, PretrainConfig, strict=True)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        place = place.rstrip("`").removeprefix(".")
        raise UserError(f"configuration: {place}: {message}", "see --print-config") from None


def _merge(
    tree: dict[str, Any],
    branch: Mapping[str, Any],
    origin: str,
    kind: type = PretrainConfig,
    prefix: str = "",
) -> None:
    """Put ``branch`` over ``tree``; every key must be a field of ``kind``.

    Sections merge key by key; all else, a free mapping such as ``model.vision.kwargs`` too, is
    replaced as a whole.
    """
    hints = typing.get_type_hints(kind)
    known = [item.name for item in fields(kind)]
    for key, value in branch.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3)
            fix = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{origin}: unknown configuration key {prefix}{key}", fix)
        if isinstance(value, dict) and is_dataclass(hints[key]):
            if not isinstance(tree.get(key), dict):
                tree[key] = {}
            _merge(tree[key], value, origin, typing.cast("type", hints[key]), f"{prefix}{key}.")
        else:
            tree[key] = value


def _read_preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}", f"use one of {', '.join(PRESETS)}")
    text = resources.files("xvlm_train").joinpath(f"presets/{name}.yaml").read_text("utf-8")
    return typing.cast("dict[str, Any]", _parse(text, f"preset {name}"))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: not found", "give the path of a YAML file to --config") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file", "give a YAML file to --config") from None
    tree = _parse(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a mapping of keys", "see --print-config for the layout")
    return tree


class _Loader(yaml.SafeLoader):
    """YAML whose 1e-4 is a number, as everybody expects and YAML 1.1 denies."""


_Loader.yaml_implicit_resolvers = {
    first: list(pairs) for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise UserError(f"{origin}: not valid YAML ({line})", "correct it") from None
