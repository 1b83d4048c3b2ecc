"""The held-out data of a run, measured while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from xvlm_data.errors import UserError
from xvlm_train.config import PretrainConfig
from xvlm_train.data.evaluation import EvalSet
from xvlm_train.data.tokenizer import Tokenizer
from xvlm_train.engine import distributed, sharding
from xvlm_train.engine.distributed import World
from xvlm_train.engine.ema import WeightAverage
from xvlm_train.engine.metrics import METRICS_FILE, read_metrics
from xvlm_train.evaluate import results_table
from xvlm_train.evaluator import Evaluator
from xvlm_train.model.xvlm import XVLM


@dataclass
class HeldOut:
    """Measures a model on the main rank, while the others wait; all ranks make the same calls.

    Args:
        items: the held-out rows.
        model: that is trained.
        average: of its weights, to be measured too.
        tokenizer: the model's.
        config: of the run.
        world: this process.
        sharded: each rank has a part of the model.
        console: of the main rank.
    """

    items: EvalSet
    model: XVLM
    average: WeightAverage | None
    tokenizer: Tokenizer
    config: PretrainConfig
    world: World
    sharded: bool
    console: Console

    def measure(self) -> dict[str, float]:
        """All measures, those of the averaged weights as ``ema/…``; on other ranks none."""
        values = self._measure("held out")
        if self.average is not None:
            with self.average.in_place():
                averaged = self._measure("held out, averaged weights")
            values |= {f"ema/{name}": value for name, value in averaged.items()}
        distributed.barrier()
        return values

    def _measure(self, title: str) -> dict[str, float]:
        model = self.model
        if self.sharded:
            model = XVLM(self.config.model).to(self.world.device) if self.world.is_main else model
            sharding.gather_model(self.model, model if self.world.is_main else None)
        if not self.world.is_main:
            return {}
        evaluator = Evaluator(model, self.tokenizer, self.config.data.max_tokens)
        try:
            values = evaluator.measure(self.items)
        except UserError as error:  # of the held-out data: no reason to end the training
            self.console.print(f"not evaluated: {error}", style="yellow")
            return {}
        self.console.print(results_table(values, title, self.items.rejects))
        return values


def owes_evaluation(run: Path, step: int) -> bool:
    """Whether a run that goes on from a step was killed in the evaluation after it.

    Its metrics go further than that step, or up to it, without an evaluation of it.
    """

    def owes() -> bool:
        if not (run / METRICS_FILE).exists():
            return False
        lines = (line for line in read_metrics(run) if line["step"] == step)
        return not any(name.startswith("eval/") for line in lines for name in line)

    return distributed.on_main(owes)
