"""A pre-training run: manifests, model, optimiser and streams put together around the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_train.config import PretrainConfig, dump_config
from xvlm_train.data.batch import Batch
from xvlm_train.data.entries import find_recipe, recipe_entries
from xvlm_train.data.evaluation import EvalSet
from xvlm_train.data.loader import batches
from xvlm_train.data.stream import Stream
from xvlm_train.data.tokenizer import Tokenizer, training_texts
from xvlm_train.engine import checkpoint, distributed
from xvlm_train.engine.checkpoint import Checkpoint
from xvlm_train.engine.distributed import World
from xvlm_train.engine.loop import IMAGE_TEXT, MULTI_GRAINED, Precision, Settings, Trainer
from xvlm_train.engine.metrics import Log
from xvlm_train.engine.optim import adamw, parameter_groups
from xvlm_train.engine.schedule import is_multi_grained
from xvlm_train.evaluate import results_table
from xvlm_train.evaluator import Evaluator
from xvlm_train.model.config import Parity
from xvlm_train.model.official import official_name
from xvlm_train.model.pretrained import initialise
from xvlm_train.model.xvlm import XVLM
from xvlm_train.objectives import (
    Whole,
    compute_losses,
    concept_keys,
    matching_accuracy,
    same_pairs,
    whole_of,
)
from xvlm_train.saved import CONFIG_FILE, TOKENIZER_FOLDER


@dataclass(kw_only=True)
class Inputs:
    """The manifests of a run, by what they are for; remembered in its checkpoints."""

    shared: list[str] = field(default_factory=list)
    """For both streams: rows with captions to one, rows with boxes to the other."""
    image_text: list[str] = field(default_factory=list)
    """For this stream alone, and instead of the shared ones there."""
    multi_grained: list[str] = field(default_factory=list)
    """For this stream alone, and instead of the shared ones there."""
    held_out: list[str] = field(default_factory=list)
    image_root: str | None = None


class Objective(nn.Module):
    """The model with its losses: batch → scalars, as the loop and DDP want it."""

    def __init__(self, model: XVLM, parity: Parity) -> None:
        super().__init__()
        self.model = model
        self.parity = parity

    def forward(self, batch: Batch, part: tuple[int, Whole] | None = None) -> dict[str, Tensor]:
        """The losses, their ``total``, and what is worth a curve beside them.

        Args:
            batch: the batch, or a part of it.
            part: which part, of what; the sums over parts are the values of the batch.
        """
        keys = self._keys(batch, part[0] if part else 0)
        outputs = self.model(batch, same=None if keys is None else same_pairs(keys))
        values = compute_losses(outputs, batch, config=self.parity, keys=keys, part=part)
        share = 1 / part[1].parts if part else 1
        values["matching_accuracy"] = matching_accuracy(outputs) * share
        values["temperature"] = outputs.temperature.detach() * share
        values["fill"] = values["total"].detach().new_full((), batch.fill * share)
        return values

    def whole(self, parts: Sequence[Batch], begin: Callable[[int], None]) -> Whole:
        """What the parts of a batch have to know of each other; without gradients."""
        found = []
        for place, part in enumerate(parts):
            begin(place)
            encoded = self.model.encode(part)
            found.append((part, encoded.image_features, encoded.text_features))
        keys = [self._keys(part, place) for place, part in enumerate(parts)]
        return whole_of(found, self.model.clamped_temperature(), keys, self.parity)

    def _keys(self, batch: Batch, place: int) -> Tensor | None:
        keep = self.parity.same_text_negatives == "keep"
        return None if keep else concept_keys(batch, place)


class Run:
    """Everything a training run needs, built; :meth:`train` does it.

    Args:
        config: complete; ``model.text.vocab`` is set to the tokenizer's.
        inputs: at least one training manifest.
        folder: where it all goes; of no other run.
        world: this process.
        resume: go on from here.
        console: of the main rank; quiet elsewhere.

    Raises:
        UserError: manifests without usable rows, no such pre-trained weights, a checkpoint that
            does not fit.
    """

    def __init__(
        self,
        config: PretrainConfig,
        inputs: Inputs,
        folder: Path,
        world: World,
        *,
        resume: Checkpoint | None,
        console: Console,
    ) -> None:
        self.config, self.inputs, self.folder = config, inputs, folder
        self.world, self.resume, self.console = world, resume, console
        self.precision = precision_for(config.train.precision, world.device)
        opened = _open_all(inputs)
        self.fingerprints = {
            name: [manifest.fingerprint for manifest in manifests]
            for name, manifests in opened.items()
            if name != "held_out"
        }
        self.tokenizer = self._make_tokenizer([*opened[IMAGE_TEXT], *opened[MULTI_GRAINED]])
        self.model = self._make_model()
        self.start_step = resume.step if resume else 0
        self.streams = self._make_streams(opened)
        self._compare_data()
        self.held_out = (
            EvalSet(opened["held_out"], config.data, limit=config.train.eval_images)
            if opened["held_out"]
            else None
        )
        self.trainer = self._make_trainer()

    def train(self) -> int:
        """Train to the last step, or to an interrupt; returns the number of steps done."""
        self._introduce()
        if not self.world.is_main:
            return self.trainer.fit()
        (self.folder / CONFIG_FILE).write_text(dump_config(self.config), encoding="utf-8")
        steps = self.config.train.steps
        with Log(self.folder, resume_step=self.start_step, total_steps=steps) as log:
            self.trainer.log = log
            return self.trainer.fit()

    def _make_tokenizer(self, manifests: Sequence[Manifest]) -> Tokenizer:
        settings = self.config.tokenizer
        if self.resume:
            tokenizer = Tokenizer.load(self.resume.path / TOKENIZER_FOLDER)
        elif settings.name is not None:
            tokenizer = Tokenizer.load(settings.name)
        else:
            built = self.folder / TOKENIZER_FOLDER
            if self.world.is_main:
                texts = training_texts(_distinct(manifests), self.config.data.max_words)
                Tokenizer.train(texts, settings.vocab_size).save(built)
            distributed.barrier()
            tokenizer = Tokenizer.load(built)
        self.config.model.text = replace(self.config.model.text, vocab=tokenizer.vocab_size)
        return tokenizer

    def _make_model(self) -> XVLM:
        config = self.config
        torch.manual_seed(config.train.seed)
        model = XVLM(config.model, config.compute)
        if self.resume:
            checkpoint.load_model(self.resume, model)
            self.new_parameters = set(self.resume.state["new_parameters"])
        else:
            # One rank reads (or downloads); DDP gives the weights to the others.
            new: set[str] = set()
            if self.world.is_main:
                initial = initialise(model)
                new = initial.new
                for part, source in initial.sources.items():
                    self.console.print(f"{part} encoder starts from {source}")
            self.new_parameters = distributed.from_main(new)
        return model.to(self.world.device)

    def _make_streams(self, opened: dict[str, list[Manifest]]) -> dict[str, Stream]:
        names = [IMAGE_TEXT] + [MULTI_GRAINED] * (self.config.train.iter_perc > 0)
        streams = {}
        for name in names:
            recipe = find_recipe(getattr(self.inputs, name) or self.inputs.shared)
            explicit = bool(recipe or getattr(self.inputs, name))
            try:
                streams[name] = Stream(
                    recipe_entries(recipe, self.inputs.image_root)[name]
                    if recipe
                    else opened[name],
                    self.config.data,
                    self.tokenizer,
                    self.model.grid,
                    multi_grained=name == MULTI_GRAINED,
                    skip_unusable=not explicit,
                )
            except UserError as error:
                if explicit:
                    raise
                raise UserError(error.what, _WITHOUT[name]) from None
        return streams

    def _make_trainer(self) -> Trainer:
        config, world = self.config, self.world
        groups = parameter_groups(
            self.model.named_parameters(),
            lr=config.optim.lr,
            weight_decay=config.optim.weight_decay,
            new_lr_multiple=config.optim.new_lr_multiple,
            is_new=lambda name: name in self.new_parameters,
            rule=config.optim.decay_rule,
            official_name=official_name,
        )
        optimizer = adamw(groups, betas=config.optim.betas, eps=config.optim.eps)
        if self.resume:
            checkpoint.load_optimizer(self.resume, optimizer)
        objective: nn.Module = Objective(self.model, config.parity)
        if world.size > 1:
            objective = DistributedDataParallel(
                objective,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                # The box head has no part in image-text steps.
                find_unused_parameters=True,
            )
        trainer = Trainer(
            world=world,
            settings=Settings(
                steps=config.train.steps,
                iter_perc=config.train.iter_perc,
                lr=config.optim.lr,
                warmup=config.schedule.warmup,
                clip_norm=config.optim.clip_norm,
                precision=self.precision,
                accumulate=config.train.accumulate,
                seed=config.train.seed,
                log_every=config.train.log_every,
                eval_every=config.train.eval_every,
                save_every=config.train.save_every,
                max_skipped=config.train.max_skipped,
            ),
            model=objective,
            optimizer=optimizer,
            streams={name: self._batches(name, stream) for name, stream in self.streams.items()},
            log=None,
            save=self._save,
            evaluate=self._evaluate if self.held_out is not None else None,
            start_step=self.start_step,
        )
        if self.resume:
            trainer.scaler.load_state_dict(self.resume.state["scaler"])
        return trainer

    def _batches(self, name: str, stream: Stream) -> Iterator[Batch]:
        start = self._batches_before(name, self.start_step)
        end = self._batches_before(name, self.config.train.steps)
        return batches(
            stream,
            range(start, end),
            rank=self.world.rank,
            world=self.world.size,
            pin_memory=self.world.device.type == "cuda",
        )

    def _batches_before(self, name: str, step: int) -> int:
        """The number of a stream's batches in the steps before ``step``: its position there."""
        if name == IMAGE_TEXT:
            return step
        train = self.config.train
        return sum(is_multi_grained(train.seed, s, train.iter_perc) for s in range(step))

    def _save(self, step: int) -> None:
        state: dict[str, Any] = {
            "step": step,
            "seed": self.config.train.seed,
            "world_size": self.world.size,
            "streams": {name: self._batches_before(name, step) for name in self.streams},
            "data": self.fingerprints,
            "inputs": asdict(self.inputs),
            "new_parameters": sorted(self.new_parameters),
            "scaler": self.trainer.scaler.state_dict(),
        }
        path = checkpoint.save(
            self.folder,
            model=self.model,
            optimizer=self.trainer.optimizer,
            state=state,
            write_extras=self._write_extras,
            keep_last=self.config.train.keep_last,
        )
        self.console.print(f"[dim]saved {path}[/]")

    def _write_extras(self, folder: Path) -> None:
        (folder / CONFIG_FILE).write_text(dump_config(self.config), encoding="utf-8")
        self.tokenizer.save(folder / TOKENIZER_FOLDER)

    def _evaluate(self) -> dict[str, float]:
        assert self.held_out is not None
        evaluator = Evaluator(self.model, self.tokenizer, self.config.data.max_tokens)
        values = evaluator.measure(self.held_out)
        self.console.print(results_table(values, "held out"))
        return values

    def _compare_data(self) -> None:
        """Say when a resumed run does not read what the first part read."""
        if not self.resume:
            return
        for name, before in self.resume.state["data"].items():
            if self.fingerprints[name] != before:
                self.console.print(f"[yellow]the {name} manifests changed: other batches follow[/]")
        size = self.resume.state["world_size"]
        if size != self.world.size:
            self.console.print(
                f"[yellow]{size} ranks before, {self.world.size} now: global batch and order"
                " differ[/]"
            )

    def _introduce(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters())
        self.console.print(
            f"{parameters:,} parameters · {self.world.size} x {self.world.device.type},"
            f" {self.precision} · {self.folder}"
        )
        for name, stream in self.streams.items():
            self.console.print(
                f"{name}: {len(stream):,} images, {stream.rows_per_step(self.world.size)} a rank"
                f" and step, {stream.steps_per_epoch(self.world.size):,} batches an epoch"
            )
            parts = self.config.train.accumulate
            if parts > 1:
                self.console.print(
                    f"{name}: in {parts} parts; the contrastive loss compares all of a batch, hard"
                    " negatives come from within a part"
                )
            for unused in stream.unused:
                self.console.print(f"{name}: nothing for it in {unused}")


#: What to do when no manifest has rows for a stream.
_WITHOUT = {
    IMAGE_TEXT: "add one that has, or use region texts: --set data.region_as_caption=true",
    MULTI_GRAINED: "add one that has, or train without: --set train.iter_perc=0",
}


def precision_for(wanted: str, device: torch.device) -> Precision:
    """The precision to compute in: on a GPU ``auto`` is bf16 where it has it, else fp16.

    Raises:
        UserError: fp16 on a device without it.
    """
    if wanted == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if wanted == "fp16" and device.type != "cuda":
        raise UserError(f"train.precision fp16 needs a GPU, this is {device.type}", "use auto")
    return msgspec.convert(wanted, Precision)


def _open_all(inputs: Inputs) -> dict[str, list[Manifest]]:
    """The manifests of each stream, and the held-out ones.

    Raises:
        UserError: one of them is missing, damaged or empty.
    """

    def opened(specs: Sequence[str], name: str = "") -> list[Manifest]:
        if recipe := find_recipe(specs):
            entries = recipe_entries(recipe, inputs.image_root)[name]
            return list(dict.fromkeys(entry.manifest for entry in entries))
        manifests = [open_manifest(spec, image_root=inputs.image_root) for spec in specs]
        for spec, manifest in zip(specs, manifests, strict=True):
            if not len(manifest):
                raise UserError(
                    f"{spec}: the manifest is empty", "see its rejects.parquet, or leave it out"
                )
        return manifests

    return {
        IMAGE_TEXT: opened(inputs.image_text or inputs.shared, IMAGE_TEXT),
        MULTI_GRAINED: opened(inputs.multi_grained or inputs.shared, MULTI_GRAINED),
        "held_out": opened(inputs.held_out),
    }


def _distinct(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Each manifest once, though it feeds both streams."""
    return list({tuple(s.url for s in m.shards): m for m in manifests}.values())
