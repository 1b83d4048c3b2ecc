"""``xvlm-train``, but every rank leaves its final weights in the run's folder; for tests."""

from __future__ import annotations

from safetensors.torch import save_file

from xvlm_train import commands, run
from xvlm_train.engine.weights import local_part

_train = run.Run.train


def _train_and_keep(self: run.Run) -> int:
    done = _train(self)
    weights = {
        name: local_part(value.detach()).contiguous()
        for name, value in self.model.named_parameters()
    }
    save_file(weights, self.folder / f"rank{self.world.rank}.safetensors")
    return done


if __name__ == "__main__":
    run.Run.train = _train_and_keep  # type: ignore[method-assign]
    commands.main(prog_name="xvlm-train")
