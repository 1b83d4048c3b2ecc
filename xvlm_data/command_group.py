"""A click group of lazily imported commands, whose failures are one line for a person."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NoReturn

import click

from xvlm_data.errors import UserError

#: What to do about failures of the operating system, by error number.
_ADVICE = {
    errno.ENOSPC: "free some space and run it again; a training run goes on with --resume",
    errno.EDQUOT: "free some space and run it again; a training run goes on with --resume",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOTDIR: "one part of this path is a file",
    errno.EEXIST: "something else lies there; choose another name",
    errno.EISDIR: "a file is needed here, not a folder",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class CommandGroup(click.Group):
    """Commands are given as ``module:attribute`` with a short help, so that listing them is free.

    Whatever a person can act on ends as ``error: …`` on standard error and status 2, an interrupt
    as status 130; anything else is a fault of ours and shows its traceback.
    """

    def __init__(self, name: str, commands: Mapping[str, tuple[str, str]], help: str) -> None:
        settings = {"help_option_names": ["-h", "--help"]}
        super().__init__(name=name, help=help, context_settings=settings)
        self._targets = dict(commands)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order given, which is the order of use."""
        return list(self._targets)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command."""
        if cmd_name not in self._targets:
            return None
        module, _, attribute = self._targets[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As the base class, with the command that is like an unknown one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from xvlm_data.mistaken import near_name

            near = near_name(args[0], self._targets)
            if near is None:
                raise
            message = f"{error.message} Did you mean {near!r}?"
            raise click.UsageError(message, ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._targets.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            fail(str(error))
        except BrokenPipeError:  # `… | head`: nobody reads on, which is no error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0)
            if advice is None and "No space left" not in str(error):
                raise
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}; {advice or _ADVICE[errno.ENOSPC]}")
        except KeyboardInterrupt:
            fail("interrupted", status=130)


def fail(message: str, status: int = 2) -> NoReturn:
    """End with one line; under torchrun, other ranks than the first say which they are."""
    rank = os.environ.get("RANK", "0")
    prefix = "error" if rank == "0" else f"error (rank {rank})"
    click.echo(f"{prefix}: {' '.join(message.split())}", err=True)
    sys.exit(status)


def command_group(
    name: str, *, help: str, version: str, commands: Mapping[str, tuple[str, str]]
) -> click.Group:
    """A :class:`CommandGroup` with ``--version``."""
    return click.version_option(version, prog_name=name)(CommandGroup(name, commands, help))
