"""The ``xvlm-train`` command line: a group whose commands are imported when they are called."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

import click

from xvlm_data.errors import UserError
from xvlm_train import __version__

#: Command → (module, attribute, short help: so that listing the commands imports none of them).
COMMANDS = {
    "pretrain": ("xvlm_train.pretrain", "pretrain_command", "Train X-VLM from manifests."),
    "evaluate": ("xvlm_train.evaluate", "evaluate_command", "Retrieval and grounding, held out."),
    "curves": ("xvlm_train.pictures", "curves_command", "Draw a run's loss curves."),
    "verify": ("xvlm_train.verify", "verify_command", "Prove the model against the original's."),
}


class LazyGroup(click.Group):
    """Finds commands by :data:`COMMANDS` and turns their failures into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what a person can act on becomes ``error: …`` and status 2."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(str(error))
        except OSError as error:
            advice = _OS_ADVICE.get(error.errno or 0)
            if advice is None and "No space left" not in str(error):
                raise
            where = f"{error.filename}: " if error.filename else ""
            reason = error.strerror or str(error)
            _fail(f"{where}{reason}; {advice or _OS_ADVICE[errno.ENOSPC]}")
        except KeyboardInterrupt:
            _fail("interrupted", status=130)


_OS_ADVICE = {
    errno.ENOSPC: "free some space; a run goes on with --resume",
    errno.EDQUOT: "free some space; a run goes on with --resume",
    errno.EACCES: "choose a place that you may use",
    errno.EPERM: "choose a place that you may use",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOTDIR: "one part of this path is a file",
    errno.EISDIR: "a file is needed here, not a folder",
}


def _fail(message: str, status: int = 2) -> None:
    rank = os.environ.get("RANK", "0")
    prefix = "error" if rank == "0" else f"error (rank {rank})"
    click.echo(f"{prefix}: {' '.join(message.split())}", err=True)
    sys.exit(status)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="xvlm-train")
def main() -> None:
    """Pre-train X-VLM from manifests.

    \b
    xvlm-train pretrain --manifest manifests/coco --manifest manifests/vg --out runs/first
    xvlm-train evaluate runs/first --manifest manifests/coco_val
    torchrun --nproc_per_node 8 -m xvlm_train pretrain --preset base …
    """  # noqa: D301
