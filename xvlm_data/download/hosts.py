"""Manners towards one host: few requests at a time, pauses that it asks for, and giving up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from xvlm_data.download.reasons import Failure


@dataclass
class _Host:
    gate: asyncio.Semaphore
    users: int = 0
    quiet_until: float = 0.0
    failures: int = 0
    last: str = ""
    refused: bool = False


class Hosts:
    """Gates by host name. Waiting at one costs nothing of the other limits and time-outs."""

    def __init__(self, per_host: int, *, give_up_after: int) -> None:
        self._per_host, self._give_up_after = per_host, give_up_after
        self._hosts: dict[str, _Host] = {}

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Wait for one's turn at a host, and for the end of the pause that it asked for.

        Raises:
            Failure: host_down.
        """
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(asyncio.Semaphore(self._per_host))
        host.users += 1
        try:
            async with host.gate:
                while (wait := host.quiet_until - asyncio.get_running_loop().time()) > 0:
                    self._check(name, host)
                    await asyncio.sleep(wait)
                self._check(name, host)
                yield
        finally:
            host.users -= 1
            if not host.users and not host.failures and not self._is_quiet(host):
                self._hosts.pop(name, None)

    def _check(self, name: str, host: _Host) -> None:
        if host.refused or (self._give_up_after and host.failures >= self._give_up_after):
            why = f"the last {host.failures} requests to {name} failed (last: {host.last})"
            raise Failure("host_down", f"not asked: {why}", again=False)

    def _is_quiet(self, host: _Host) -> bool:
        return host.quiet_until > asyncio.get_running_loop().time()

    def answered(self, name: str) -> None:
        """The host gave an answer, and not that it is busy."""
        if (host := self._hosts.get(name)) is not None:
            host.failures = 0

    def failed(self, name: str, reason: str) -> None:
        """A request got no answer, or that the host is busy."""
        if (host := self._hosts.get(name)) is not None:
            host.failures += 1
            host.last = reason

    def pause(self, name: str, seconds: float, longest: float) -> None:
        """The host asks for a pause: nobody asks it before that is over.

        A pause beyond ``longest`` is one that we do not wait for: the host is given up.
        """
        if (host := self._hosts.get(name)) is not None:
            host.refused |= seconds > longest
            until = asyncio.get_running_loop().time() + min(seconds, longest)
            host.quiet_until = max(host.quiet_until, until)
