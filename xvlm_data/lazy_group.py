"""A click group whose commands are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click


class LazyGroup(click.Group):
    """Commands are given as ``module:attribute``, so that ``--help`` does not import the world."""

    def __init__(self, name: str, commands: Mapping[str, str], help: str) -> None:
        super().__init__(name=name, help=help, context_settings={"show_default": False})
        self._targets = dict(commands)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order given, which is the order of use."""
        return list(self._targets)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command."""
        target = self._targets.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


def lazy_group(name: str, *, help: str, version: str, commands: Mapping[str, str]) -> click.Group:
    """A group with ``--version``."""
    return click.version_option(version, prog_name=name)(LazyGroup(name, commands, help))
