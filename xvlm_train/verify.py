"""``xvlm-train verify``: our model beside a folder of reference tensors, quantity by quantity.

A folder holds a configuration, a state dict under the reference's names, four kinds of inputs and
what the reference computed from them: features, negatives, losses and gradients in evaluation mode,
float32, one process, with the likeliest negative instead of a drawn one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xvlm_data.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from xvlm_train.data.batch import Batch
    from xvlm_train.model.xvlm import XVLM

#: Both batches of a case: file prefix, and whether it is the multi-grained one.
BATCHES = (("image_text", False), ("region", True))


@dataclass(frozen=True)
class Tolerance:
    """``|ours - reference| <= absolute + relative * |reference|``, element by element."""

    absolute: float
    relative: float

    def times(self, factor: float) -> Tolerance:
        """A wider one."""
        return Tolerance(self.absolute * factor, self.relative * factor)

    def __str__(self) -> str:
        return f"{self.absolute:.0e} + {self.relative:.0e} rel" if self.absolute else "exact"


EXACT = Tolerance(0, 0)
OUTPUT = Tolerance(1e-4, 1e-4)
GRADIENT = Tolerance(1e-5, 1e-3)
#: Zero in exact arithmetic, so that the reference holds rounding noise.
_ZERO_GRADIENT = ".self.key.bias"
KEY_BIAS = Tolerance(1e-5, 0)
#: At the lower clamp of τ (0.001) rounding errors are multiplied on their way through the logits.
CLAMP_FACTOR = 10
_CLAMP_SENSITIVE = ("loss_itc", "loss_total", "sampling_weights")


@dataclass(frozen=True)
class Check:
    """One quantity: how far ours is from the reference."""

    batch: str
    quantity: str
    max_absolute: float
    """Largest |ours - reference|; infinite where only one of the two is a number."""
    max_relative: float
    """Largest |ours - reference| / |reference| where the latter exceeds the absolute tolerance."""
    tolerance: str
    ok: bool


def verify(folder: Path) -> list[Check]:
    """Every quantity of a parity folder.

    Raises:
        UserError: a file is missing, corrupt, or does not fit the others.
    """
    import torch

    from xvlm_train.model.official import from_official
    from xvlm_train.model.xvlm import XVLM
    from xvlm_train.parity import entry_of, make_batch, read_config, read_json, read_tensors

    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}", "give the folder of one parity case")
    config = read_config(folder / "config.json")
    model = XVLM(config).eval()
    weights = read_tensors(folder / "state_dict.safetensors")
    state = from_official(weights, model)
    images = entry_of(read_tensors(folder / "images.safetensors"), "image_u8", "images")
    checks: list[Check] = []
    for name, multi_grained in BATCHES:
        # Afresh for each batch: the forward pass clamps the temperature in place.
        model.load_state_dict(state)
        inputs = read_tensors(folder / f"{name}_inputs.safetensors")
        expected: dict[str, Any] = dict(read_tensors(folder / f"{name}_outputs.safetensors"))
        scalars = read_json(folder / f"{name}_scalars.json")
        batch = make_batch(images.float() / 64 - 2, inputs, multi_grained, model, name)
        ours = dict(_compute(model, batch, inputs, expected, name))
        if multi_grained:
            ours |= _box_functions(expected, name)
        expected |= _flatten(scalars, name)
        lower_clamp = bool(torch.isclose(model.temp.detach(), torch.tensor(0.001)))
        checks += _compare(name, ours, expected, lower_clamp)
    return checks


def _compute(
    model: XVLM,
    batch: Batch,
    inputs: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    name: str,
) -> Iterator[tuple[str, Any]]:
    """Our value of every quantity, under the reference's names."""
    import torch

    from xvlm_train.model.config import Parity
    from xvlm_train.model.official import official_name
    from xvlm_train.objectives import compute_losses, same_pairs
    from xvlm_train.parity import entry_of

    parity = Parity.official(world=1)
    yield "temp_raw", model.temp.item()
    model.zero_grad(set_to_none=True)
    outputs = model(batch, negatives="argmax")
    losses = compute_losses(outputs, batch, config=parity)
    losses["total"].backward()
    yield from _named_losses(losses, "")
    yield "temp_after_clamp", model.temp.detach()
    yield "image_feat", outputs.image_features
    yield "text_feat", outputs.text_features
    yield "sampling_weights_t2i", outputs.image_weights
    yield "sampling_weights_i2t", outputs.text_weights
    yield "neg_image_idx", outputs.negative_images
    yield "neg_text_idx", outputs.negative_texts
    yield "itm_cls", outputs.matching_states
    yield "itm_logits", outputs.matching_logits

    norms = []
    for ours, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is not None:
            norms.append(gradient.double().norm())
        yield f"grad_norms/{official_name(ours)}", None if gradient is None else norms[-1].item()
        if gradient is not None:
            yield f"grad/{official_name(ours)}", gradient
    yield "global_grad_norm", torch.stack(norms).norm().item()

    with torch.no_grad():
        patches = model.encode_image(batch.images)
        vision = model.concept_tokens(patches, batch.image_index, batch.patch_mask)
        states = model.encode_text(batch.text_ids, batch.text_mask)
        fused = model.fuse(states, batch.text_mask, vision)
        yield "text_embeds", states
        hidden = model.encode_text(batch.masked_ids, batch.text_mask)
        row = model.fuse(hidden, batch.text_mask, vision)[0, batch.masked_positions[0]]
        yield "mlm_logits_row0", model.text_encoder.token_logits(row)
        yield "cross_embeds", fused[:, : entry_of(expected, "cross_embeds", name).shape[1]]
        if batch.multi_grained:
            yield "region_embeds_cls", vision.cls
            yield "predicted_bbox", outputs.predicted_boxes
            every = replace(parity, whole_image_boxes=True)
            all_rows = compute_losses(outputs, batch, config=every)
            yield "loss_bbox_all_rows", all_rows["box_l1"]
            yield "loss_giou_all_rows", all_rows["box_giou"]
        else:
            yield "image_embeds", vision.dense()
        keys = entry_of(inputs, "idx", f"{name}_inputs")[:, None]
        grouped = model(batch, negatives="argmax", same=same_pairs(keys))
        with_keys = replace(parity, same_text_negatives="positive")
        idx_losses = compute_losses(grouped, batch, config=with_keys, keys=keys)
    yield "loss_itc_idx", idx_losses["contrastive"]
    yield "loss_itm_idx", idx_losses["matching"]
    yield "sampling_weights_t2i_idx", grouped.image_weights
    yield "sampling_weights_i2t_idx", grouped.text_weights
    yield "neg_image_with_idx", grouped.negative_images
    yield "neg_text_with_idx", grouped.negative_texts


def _named_losses(losses: Mapping[str, Tensor], suffix: str) -> Iterator[tuple[str, Tensor]]:
    names = {
        "contrastive": "itc",
        "matching": "itm",
        "mlm": "mlm",
        "box_l1": "bbox",
        "box_giou": "giou",
        "total": "total",
    }
    for key, value in losses.items():
        yield f"loss_{names[key]}{suffix}", value


def _box_functions(expected: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The box losses on the stored boxes by themselves, as the original computes them."""
    from xvlm_train.objectives import box_losses
    from xvlm_train.parity import entry_of

    def entry(key: str) -> Tensor:
        return entry_of(expected, f"fn/{key}", f"{name}_outputs")

    predicted, target, is_image = entry("pred"), entry("target"), entry("is_image")
    cases: dict[str, tuple[Tensor, Tensor | None]] = {
        "": (target, is_image),
        "_no_is_image": (target, None),
        "_degenerate": (entry("target_degenerate"), is_image),
        "_all_images": (target, is_image.new_ones(len(is_image))),
    }
    result = {}
    for suffix, (boxes, whole) in cases.items():
        l1, giou = box_losses(predicted, boxes, whole, degenerate="batch")
        result[f"fn/loss_bbox{suffix}"] = l1.sum / l1.count
        result[f"fn/loss_giou{suffix}"] = giou.sum / giou.count
    return result


#: Stored beside the quantities as inputs of the box function.
_BOX_INPUTS = ("fn/pred", "fn/target", "fn/target_degenerate", "fn/is_image")


def _compare(
    name: str, ours: Mapping[str, Any], expected: Mapping[str, Any], lower_clamp: bool
) -> list[Check]:
    # Only some gradients are stored in full; everything else of ours must be there.
    lacking = [
        key
        for key in ours
        if not key.startswith("grad/") and key not in expected and f"json/{key}" not in expected
    ]
    if lacking:
        raise UserError(f"{name} outputs: {lacking[0]} is missing", "give a complete parity folder")
    checks = []
    for key, reference in expected.items():
        if key in _BOX_INPUTS:
            continue
        quantity = key.removeprefix("json/")
        if quantity not in ours:
            # Never pass over something that the folder promises.
            checks.append(Check(name, key, float("inf"), float("inf"), "not computed", False))
            continue
        tolerance = _tolerance(quantity, lower_clamp)
        checks.append(_check(name, key, ours[quantity], reference, tolerance))
    return checks


def _tolerance(quantity: str, lower_clamp: bool) -> Tolerance:
    factor = CLAMP_FACTOR if lower_clamp else 1
    if quantity.endswith(_ZERO_GRADIENT):
        return KEY_BIAS.times(factor)
    if quantity.startswith(("grad/", "grad_norms/", "global_grad_norm")):
        return GRADIENT.times(factor)
    if quantity.startswith("neg_"):
        return EXACT
    return OUTPUT.times(factor) if quantity.startswith(_CLAMP_SENSITIVE) else OUTPUT


def _check(name: str, key: str, ours: Any, reference: Any, tolerance: Tolerance) -> Check:
    import torch

    def done(absolute: float, relative: float, ok: bool) -> Check:
        return Check(name, key, absolute, relative, str(tolerance), ok)

    if ours is None or reference is None:  # no gradient
        agree = ours is None and reference is None
        return done(0.0 if agree else float("inf"), 0.0 if agree else float("inf"), agree)
    a = torch.as_tensor(ours).detach().double()
    b = torch.as_tensor(reference).double()
    if a.shape != b.shape:
        return done(float("inf"), float("inf"), False)
    if not a.numel():
        return done(0.0, 0.0, True)
    both_nan = a.isnan() & b.isnan()
    error = (a - b).abs().masked_fill(both_nan | (a == b), 0).nan_to_num(nan=float("inf"))
    size = b.abs().nan_to_num(nan=0.0)
    relative = (error / size.clamp(min=1e-300)).masked_fill(size <= tolerance.absolute, 0)
    ok = bool((error <= tolerance.absolute + tolerance.relative * size).all())
    return done(error.max().item(), relative.max().item(), ok)


def _flatten(scalars: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The scalars file under flat names; ``json/`` keeps apart what both files hold."""
    flat: dict[str, Any] = {}
    for key, value in scalars.items():
        inner = value if isinstance(value, dict) else {"": value}
        for sub, number in inner.items():
            if isinstance(number, bool) or not isinstance(number, int | float | None):
                raise UserError(
                    f"{name}_scalars.json: {key} {sub} is no number",
                    "give a complete parity folder",
                )
        if key == "losses" and isinstance(value, dict):
            flat |= {f"json/{loss}": number for loss, number in value.items()}
        elif isinstance(value, dict):
            flat |= {f"{key}/{sub}": number for sub, number in value.items()}
        else:
            flat[f"json/{key}" if key == "temp_after_clamp" else key] = value
    return flat


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, every quantity in it."
)
@click.option("--all", "show_all", is_flag=True, help="A line for each parameter's gradient norm.")
def verify_command(folder: Path, as_json: bool, show_all: bool) -> None:
    """Prove that our model is X-VLM: run a FOLDER of reference tensors through it.

    Builds the model of the folder's config.json, loads its weights, computes every stored
    quantity (features, negatives, losses, box functions, gradients, gradient norms) on the CPU in
    float32, and prints the largest absolute and relative error of each beside its tolerance.
    Exits with 1 when any is beyond it.

    \b
    xvlm-train verify parity/tiny_seed0
    xvlm-train verify parity/tiny_seed0 --json | jq .ok
    """
    checks = verify(folder)
    ok = all(check.ok for check in checks)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "ok": ok, "checks": _plain(checks)}))
    else:
        _print_table(folder, checks, show_all)
    if not ok:
        raise SystemExit(1)


def _plain(checks: list[Check]) -> list[dict[str, Any]]:
    """For JSON, which knows no infinity: null there."""
    rows = [asdict(check) for check in checks]
    for row in rows:
        for key in ("max_absolute", "max_relative"):
            row[key] = row[key] if row[key] < float("inf") else None
    return rows


def _print_table(folder: Path, checks: list[Check], show_all: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 120  # a log has no width of its own
    for batch, _ in BATCHES:
        table = Table(title=escape(f"{folder.name}: {batch} batch, ours beside the reference"))
        table.add_column("quantity", overflow="fold")
        for heading in ("max abs error", "max rel error", "tolerance"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("ok", no_wrap=True)
        mine = [check for check in checks if check.batch == batch]
        for check in mine if show_all else _folded(mine):
            table.add_row(
                check.quantity,
                f"{check.max_absolute:.1e}",
                f"{check.max_relative:.1e}",
                check.tolerance,
                "[green]yes[/]" if check.ok else "[red bold]NO[/]",
            )
        console.print(table)
    bad = sum(not check.ok for check in checks)
    verdict = f"{bad} beyond tolerance" if bad else "all within tolerance"
    click.echo(f"{len(checks)} quantities, {verdict}")


def _folded(checks: list[Check]) -> list[Check]:
    """One batch's checks, the gradient norms that are in order as one, with the largest error."""
    norms = [c for c in checks if c.ok and c.quantity.startswith("grad_norms/")]
    kept = [check for check in checks if check not in norms]
    sure = [c for c in norms if not c.quantity.endswith(_ZERO_GRADIENT)]
    if sure:
        quantity = f"gradient norm of each of {len(norms)} parameters"
        absolute = max(c.max_absolute for c in norms)
        relative = max(c.max_relative for c in sure)
        kept.append(
            replace(sure[0], quantity=quantity, max_absolute=absolute, max_relative=relative)
        )
    return kept
