"""``xvlm-train import`` and ``export``: the original's checkpoints into our folders and back."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xvlm_data.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from xvlm_train.config import PretrainConfig
    from xvlm_train.model.official import Imported

_PICKLED = (".th", ".pth", ".pt", ".bin")
_DTYPES = ("float32", "float16", "bfloat16")


@click.command("import")
@click.argument("official", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--preset", default="base", show_default=True, help="The model that it is.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="YAML over the preset; or a .json with the sizes in the original's words.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option("--image-size", type=int, help="For images of this size; positions are resized.")
@click.option("--tokenizer", help="Name or folder. [the preset's]")
@click.option("--no-tokenizer", is_flag=True, help="Write none.")
@click.option("--allow-missing", is_flag=True, help="Initialise anew what the file lacks.")
def import_command(
    official: Path,
    out: Path,
    preset: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    image_size: int | None,
    tokenizer: str | None,
    no_tokenizer: bool,
    allow_missing: bool,
) -> None:
    """Turn a checkpoint of the original X-VLM into a folder to evaluate or to start from.

    Pickles are read by torch's restricted reader, which knows tensors and plain values and runs
    nothing. What the file holds and the model does not use is listed.

    \b
    xvlm-train import 4m_base_model_state_step_199999.th --out models/xvlm-4m
    xvlm-train import 16m_base.th --image-size 384 --out models/xvlm-16m-384
    xvlm-train evaluate models/xvlm-4m --manifest manifests/coco_val
    xvlm-train pretrain --init models/xvlm-4m --manifest manifests/mine --out runs/mine
    """
    import torch
    from rich.console import Console

    from xvlm_train.data.tokenizer import Tokenizer
    from xvlm_train.model.official import WORDS, import_official, official_name
    from xvlm_train.model.xvlm import XVLM
    from xvlm_train.saved import at_image_size, save_pretrained

    state = read_official(official)
    config = _configuration(preset, config_file, overrides)
    words = state.get(official_name(WORDS))
    if words is not None:  # the one size that follows from the tokenizer, not from the net
        config.model.text.vocab = len(words)
    if image_size is not None:
        config = at_image_size(config, image_size)
    chosen = None
    if not no_tokenizer:
        name = tokenizer or config.tokenizer.name
        if name is None:
            raise UserError("no tokenizer", "give --tokenizer, or --no-tokenizer")
        chosen = Tokenizer.load(name)
        if chosen.vocab_size != config.model.text.vocab:
            raise UserError(
                f"tokenizer {name} has {chosen.vocab_size} tokens, the model has"
                f" {config.model.text.vocab}",
                "give the one it was trained with by --tokenizer, or --no-tokenizer",
            )
    torch.manual_seed(config.train.seed)
    model = XVLM(config.model)
    report = import_official(state, model)
    if report.missing and not allow_missing:
        raise UserError(
            f"{official}: lacks {len(report.missing)} entries of the model, such as"
            f" {report.missing[0]}",
            "check --preset and --config, or initialise them anew with --allow-missing",
        )
    model.load_state_dict(report.weights, strict=False)
    save_pretrained(out, model, config, chosen)
    _tell(Console(stderr=True, highlight=False, markup=False, soft_wrap=True), report, out)


def _tell(console: Any, report: Imported, out: Path) -> None:
    for what, names in (
        ("not used", report.unused),
        ("recomputed for this resolution", report.derived),
        ("resized", report.resized),
        ("initialised anew", report.missing),
    ):
        if names:
            console.print(f"{len(names)} entries {what}:")
            for name in names:
                console.print(f"  {name}")
    console.print(f"{len(report.weights)} entries → {out}")


@click.command("export")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="A folder in the Hub's layout; or FILE.th or FILE.safetensors with the original's names.",
)
@click.option("--ema", is_flag=True, help="The averaged weights of a run with optim.ema.")
@click.option(
    "--dtype",
    type=click.Choice(_DTYPES),
    default="float32",
    show_default=True,
    help="Of floating entries, in files with the original's names.",
)
def export_command(source: Path, out: Path, ema: bool, dtype: str) -> None:
    """Write a model of ours for use elsewhere: a run, a checkpoint (sharded too), or a folder.

    \b
    xvlm-train export runs/4m --out models/mine
    xvlm-train export runs/4m --out mine.th
    """
    import torch
    from safetensors.torch import save_file

    from xvlm_train.model.official import to_official
    from xvlm_train.saved import load_saved

    saved = load_saved(source, torch.device("cpu"), average=ema)
    if out.suffix not in (*_PICKLED, ".safetensors"):
        saved.save_pretrained(out)
        click.echo(f"{saved.path} → {out}", err=True)
        return
    if out.exists():
        raise UserError(f"{out}: exists", "give another --out")
    kind = getattr(torch, dtype)
    entries = {
        name: value.to(kind) if value.is_floating_point() else value
        for name, value in to_official(saved.model).items()
    }
    partial = out.with_name(f".{out.name}.partial")
    try:
        if out.suffix == ".safetensors":
            # One copy each, as the format has no tied entries, and row by row.
            row_by_row = torch.contiguous_format
            copies = {n: v.clone(memory_format=row_by_row) for n, v in entries.items()}
            save_file(copies, partial)
        else:
            torch.save({"model": entries}, partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    click.echo(f"{saved.path} → {out}, {len(entries)} entries", err=True)


def read_official(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint of the original, by its names.

    Args:
        path: a file of ``torch.save`` with the weights under ``model`` or by themselves, or a
            safetensors file.

    Raises:
        UserError: not found, damaged, or a pickle that holds anything but tensors and plain
            values; nothing in it was run.
    """
    import pickle

    import torch

    from xvlm_train.parity import read_tensors

    if not path.is_file():
        raise UserError(f"{path}: not found", "give a checkpoint file")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        document = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        wanted = f"asks for {match[1]}" if match else "holds more than tensors"
        raise UserError(
            f"{path}: refused, its pickle {wanted}; nothing in it was run",
            "get the file from its publisher, or convert it to safetensors where you trust it",
        ) from None
    except Exception as error:  # a damaged archive can raise about anything
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: no readable checkpoint ({line})", "download it again") from None
    for key in ("model", "state_dict"):
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
    if not isinstance(document, dict):
        raise UserError(f"{path}: holds no weights", "give a checkpoint of the original")
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in document.items()
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise UserError(f"{path}: holds no weights", "give a checkpoint of the original")
    return tensors


def _configuration(preset: str, file: Path | None, overrides: tuple[str, ...]) -> PretrainConfig:
    from dataclasses import replace

    from xvlm_train.config import load_config
    from xvlm_train.parity import read_config

    if file is None or file.suffix != ".json":
        return load_config(preset, [file] if file else [], overrides)
    config = load_config(preset, [], overrides)
    model = read_config(file)
    return replace(
        config, model=model, data=replace(config.data, image_size=model.vision.image_size)
    )
