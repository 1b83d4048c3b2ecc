"""A pre-training run: manifests, model, optimiser and streams put together around the loop."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest
from xvlm_train.config import PretrainConfig, dump_config
from xvlm_train.data.batch import Batch
from xvlm_train.data.evaluation import EvalSet
from xvlm_train.data.loader import batches
from xvlm_train.data.stream import Stream
from xvlm_train.data.tokenizer import Tokenizer, training_texts
from xvlm_train.engine import checkpoint, distributed, sharding
from xvlm_train.engine.checkpoint import EMA, MODEL, OPTIMIZER, Checkpoint, Retention
from xvlm_train.engine.distributed import World
from xvlm_train.engine.ema import WeightAverage
from xvlm_train.engine.loop import IMAGE_TEXT, MULTI_GRAINED, Precision, Settings, Trainer
from xvlm_train.engine.metrics import Log
from xvlm_train.engine.optim import adamw, parameter_groups
from xvlm_train.engine.preemption import Stop
from xvlm_train.engine.saving import Saver
from xvlm_train.engine.schedule import is_multi_grained
from xvlm_train.engine.watchdog import Watchdog
from xvlm_train.engine.weights import (
    load_average,
    load_model,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    volatile_names,
)
from xvlm_train.held_out import HeldOut, owes_evaluation
from xvlm_train.inputs import Inputs, distinct, fingerprints, make_streams, open_inputs, probability
from xvlm_train.model.official import official_name
from xvlm_train.model.pretrained import initialise
from xvlm_train.model.xvlm import XVLM
from xvlm_train.multiples import freeze, rate_multiple
from xvlm_train.objective import Objective
from xvlm_train.resume import Position, refuse_silent
from xvlm_train.saved import CONFIG_FILE, TOKENIZER_FOLDER, load_weights
from xvlm_train.telemetry import host_measures


class Run:
    """Everything a training run needs, built; :meth:`train` does it.

    Args:
        config: complete; ``model.text.vocab`` is set to the tokenizer's.
        inputs: at least one training manifest.
        folder: where it all goes; of no other run.
        world: this process.
        resume: go on from here.
        init: a folder of weights to start with (:mod:`xvlm_train.saved`).
        allowed: settings that may differ from the checkpoint's although they make it wrong.
        console: of the main rank; quiet elsewhere.

    Raises:
        UserError: manifests without usable rows, or others than the checkpoint's; no such
            pre-trained weights; a checkpoint that does not fit.
    """

    def __init__(
        self,
        config: PretrainConfig,
        inputs: Inputs,
        folder: Path,
        world: World,
        *,
        resume: Checkpoint | None,
        init: Path | None = None,
        allowed: frozenset[str] = frozenset(),
        console: Console,
    ) -> None:
        self.config, self.inputs, self.folder = config, inputs, folder
        self.world, self.resume, self.console = world, resume, console
        self.init = init
        self.precision = precision_for(config.train.precision, world.device)
        opened = open_inputs(inputs)
        self.tokenizer = self._make_tokenizer([*opened[IMAGE_TEXT], *opened[MULTI_GRAINED]])
        self.model = self._make_model()
        self.start_step = resume.step if resume else 0
        if config.train.steps < self.start_step:
            raise UserError(
                f"train.steps is {config.train.steps}, and {self.start_step} steps are done",
                "ask for more, or resume from an earlier checkpoint",
            )
        self.streams = make_streams(inputs, opened, config, self.tokenizer, self.model.grid)
        self.fingerprints = fingerprints(self.streams)
        self._compare_data(allowed)
        self._first_batches = self._place()
        rows = opened["held_out"]
        self.held_out = EvalSet(rows, config.data, limit=config.train.eval_images) if rows else None
        self.sharded = config.train.sharding == "fsdp" and world.size > 1
        self.watchdog = Watchdog(folder, world.rank, config.train.hang_seconds, _say)
        self.saver = Saver(
            folder,
            write_extras=self._write_extras,
            keep=Retention(config.train.keep_last, config.train.keep_every),
            say=lambda text: console.print(text, style="dim"),
            is_main=world.is_main,
            sharded=self.sharded,
        )
        self.trainer = self._make_trainer()

    def train(self) -> tuple[int, Stop]:
        """Train to the last step, or until told to stop; see :meth:`Trainer.fit`."""
        self._introduce()
        with self.watchdog, distributed.lost_ranks_told():
            if not self.world.is_main:
                return self.trainer.fit()
            (self.folder / CONFIG_FILE).write_text(dump_config(self.config), encoding="utf-8")
            train = self.config.train
            if self.resume is not None:
                checkpoint.go_on_from(self.resume, self.folder)
            with Log(
                self.folder,
                resume_step=self.start_step,
                total_steps=train.steps,
                wandb=train.wandb,
            ) as log:
                self.trainer.log = log
                problems = self.resume.passed_over if self.resume else []
                log.event(self.start_step, "start", ranks=self.world.size, passed_over=problems)
                step, stop = self.trainer.fit()
                log.event(step, "end", reason=stop.name.lower())
                return step, stop

    def _make_tokenizer(self, manifests: Sequence[Manifest]) -> Tokenizer:
        settings = self.config.tokenizer
        if self.resume:
            tokenizer = Tokenizer.load(self.resume.path / TOKENIZER_FOLDER)
        elif settings.name is not None:
            tokenizer = Tokenizer.load(settings.name)
        else:
            built = self.folder / TOKENIZER_FOLDER
            if self.world.is_main:
                texts = training_texts(distinct(manifests), self.config.data.max_words)
                Tokenizer.train(texts, settings.vocab_size).save(built)
            distributed.barrier()
            tokenizer = Tokenizer.load(built)
        self.config.model.text = replace(self.config.model.text, vocab=tokenizer.vocab_size)
        return tokenizer

    def _make_model(self) -> XVLM:
        config = self.config
        torch.manual_seed(config.train.seed)
        compute = config.compute
        if config.train.accumulate > 1 or config.train.sharding != "none":
            # Gradients that stay from one part to the next, weights that move.
            compute = replace(compute, cuda_graphs=False)
        model = XVLM(config.model, compute)
        if self.resume:
            load_model(self.resume, model)
            self.new_parameters = set(self.resume.state["new_parameters"])
        elif self.init:
            self.new_parameters = set()
            resized = load_weights(self.init, model)
            self.console.print(f"starts from {self.init}, {len(resized)} tables resized")
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

    def _make_trainer(self) -> Trainer:
        config, world = self.config, self.world
        if frozen := freeze(self.model, config.optim.freeze):
            self.console.print(f"{frozen:,} parameters stay as they are")
        multiple = rate_multiple(self.model, config.optim.layer_decay, config.optim.lr_multiples)
        objective: nn.Module = Objective(self.model, config.parity)
        gradients = self._shard(objective) if self.sharded else None
        groups = parameter_groups(
            gradients.named_local if gradients else self.model.named_parameters(),
            lr=config.optim.lr,
            weight_decay=config.optim.weight_decay,
            new_lr_multiple=config.optim.new_lr_multiple,
            is_new=lambda name: name in self.new_parameters,
            multiple=multiple,
            rule=config.optim.decay_rule,
            official_name=official_name,
        )
        optimizer = adamw(groups, betas=config.optim.betas, eps=config.optim.eps)
        if self.resume:
            load_optimizer(self.resume, optimizer, gradients.sharded if gradients else None)
        if world.size > 1 and not self.sharded:
            objective = DistributedDataParallel(
                objective,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                # The box head has no part in image-text steps.
                find_unused_parameters=True,
            )
        self.average = self._make_average()
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
                kind=config.schedule.kind,
                final=config.schedule.final,
                decay=config.schedule.decay,
                spike_sigmas=config.train.spike_sigmas,
                max_bad_rows=config.train.max_bad_rows,
            ),
            model=objective,
            optimizer=optimizer,
            streams={name: self._batches(name, stream) for name, stream in self.streams.items()},
            log=None,
            save=self._save,
            saves=self.saver,
            evaluate=self._held_out().measure if self.held_out is not None else None,
            describe=lambda batch: host_measures(batch, config.data.max_texts),
            average=self.average,
            watchdog=self.watchdog,
            gradients=gradients,
            start_step=self.start_step,
            owes_evaluation=self.resume is not None
            and owes_evaluation(self.folder, self.start_step),
        )
        if self.resume:
            trainer.load_state(self.resume.state["loop"])
        return trainer

    def _shard(self, objective: nn.Module) -> sharding.ShardedGradients:
        """Shard the model over the ranks; its parameters as the optimiser sees them then."""
        if self.config.train.sharding_dtype == "bf16" and self.precision != "bf16":
            raise UserError(
                "train.sharding_dtype bf16 needs train.precision bf16", "--set train.precision=bf16"
            )
        if not self.resume:
            sharding.copy_from_main(self.model)
        sharding.shard(
            objective,
            sharding.blocks_of(self.model, _BLOCK.fullmatch),
            device=self.world.device,
            dtype=self.config.train.sharding_dtype,
        )
        return sharding.ShardedGradients(self.model.named_parameters())

    def _make_average(self) -> WeightAverage | None:
        if not self.config.optim.ema:
            return None
        average = WeightAverage(self.model, self.config.optim.ema)
        if self.resume and self.resume.has(EMA):
            load_average(self.resume, average.tensors)
        return average

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
        """The number of a stream's batches before ``step``: its position there."""
        first, train = self._first_batches[name], self.config.train
        if name == IMAGE_TEXT:
            return first + step - self.start_step
        return first + sum(
            is_multi_grained(train.seed, s, train.iter_perc) for s in range(self.start_step, step)
        )

    def _place(self) -> dict[str, int]:
        """The batches of each stream that are done: of this number of ranks and these sizes."""
        first = dict.fromkeys(self.streams, 0)
        before = self.resume.state["streams"] if self.resume else {}
        for name, stream in self.streams.items():
            if name in before:
                position = Position.from_state(before[name])
                first[name], short = position.batches(stream, self.world.size)
                together = stream.rows_per_step(self.world.size) * self.world.size
                if position.row and position.together != together:
                    self.console.print(
                        f"{name}: goes on in epoch {position.epoch} at row"
                        f" {position.row - short:,}; with {together:,} rows a step in the place of"
                        f" {position.together:,} the rest of this epoch is in another order: some"
                        " rows come a second time, others not before the next epoch",
                        style="yellow",
                    )
        return first

    def _save(self, step: int, loop: dict[str, Any]) -> None:
        if self.sharded:
            sharding.copy_buffers_from_main(self.model)
        tensors, shared = model_tensors(self.model)
        parts = {MODEL: tensors}
        # The optimiser's own tensors are this rank's; its checkpoint's are parts of a whole.
        gradients = self.trainer.gradients
        moments = optimizer_tensors(self.trainer.optimizer)
        if isinstance(gradients, sharding.ShardedGradients):
            moments = gradients.as_parts(moments)
        parts[OPTIMIZER] = moments
        if self.average is not None:
            parts[EMA] = self.average.tensors
        state: dict[str, Any] = {
            "step": step,
            "seed": self.config.train.seed,
            "world_size": self.world.size,
            "streams": {
                name: Position.after(
                    self._batches_before(name, step), stream, self.world.size
                ).as_state()
                for name, stream in self.streams.items()
            },
            "data": self.fingerprints,
            "inputs": asdict(self.inputs),
            "new_parameters": sorted(self.new_parameters),
            "shared_tensors": shared,
            "loop": loop,
        }
        self.saver.start(parts, state, volatile_names(self.model))

    def _write_extras(self, folder: Path) -> None:
        (folder / CONFIG_FILE).write_text(dump_config(self.config), encoding="utf-8")
        self.tokenizer.save(folder / TOKENIZER_FOLDER)

    def _held_out(self) -> HeldOut:
        assert self.held_out is not None
        return HeldOut(
            items=self.held_out,
            model=self.model,
            average=self.average,
            tokenizer=self.tokenizer,
            config=self.config,
            world=self.world,
            sharded=self.sharded,
            console=self.console,
        )

    def _compare_data(self, allowed: frozenset[str]) -> None:
        """Refuse a resumed run that does not read what the first part read; say what differs.

        Raises:
            UserError: other manifests, or others of their texts, and not allowed to be.
        """
        if not self.resume:
            return
        before = self.resume.state["data"]
        now = self.fingerprints
        other = [name for name in before if name in now and now[name] != before[name]]
        if other:
            change = (
                f"those of {' and '.join(other)} are not the ones the run began with, or the"
                " recipe reads them otherwise"
            )
            refuse_silent({"manifests": change}, allowed)
            self.console.print(f"changed: manifests: {change}", style="yellow")
        size = self.resume.state["world_size"]
        if size != self.world.size:
            self.console.print(
                f"{size} ranks before, {self.world.size} now: weights, moments and the"
                " place in the data go on; the global batch, random numbers and with them the"
                " losses differ from a run of one size",
                style="yellow",
            )

    def _introduce(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters())
        self.console.print(
            f"{parameters:,} parameters · {self.world.size} x {self.world.device.type},"
            f" {self.precision} · {self.folder}"
        )
        asked, share = probability(self.inputs), self.config.train.iter_perc
        if asked not in (None, share):
            self.console.print(
                f"train.iter_perc is {share}, and the recipe's probability {asked}", style="yellow"
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


#: What is gathered and freed as one when the model is sharded: layers of BERT, blocks of timm.
_BLOCK = re.compile(r".*\.(blocks|layer\d*)\.\d+")


def _say(text: str) -> None:
    """A line on standard error, of whichever rank."""
    print(text, file=sys.stderr, flush=True)


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
