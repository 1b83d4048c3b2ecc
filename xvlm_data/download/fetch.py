"""One URL to the bytes behind it: with manners, within limits, believing nothing.

aiohttp does HTTP, for its throughput on many small bodies, and because its connector lets us check
each address at the moment of connecting. Redirects, cookies, compression and retries are kept out
of its hands: each of them is where a hostile server would reach around a limit.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from xvlm_data.download import faults
from xvlm_data.download.addresses import Resolver, checked_url, guarded_socket, parse_url
from xvlm_data.download.body import read_body
from xvlm_data.download.budget import ByteBudget
from xvlm_data.download.hosts import Hosts
from xvlm_data.download.options import Manners, ProductOptions
from xvlm_data.download.reasons import Failure, status_reason
from xvlm_data.download.robots import forbidden_by

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GOOD = frozenset({200, 203})
#: Answers that are about the host and not about the URL.
_BUSY = frozenset({429, 503})

#: Pictures that say "this picture is gone"; they are where removed ones redirect to.
_PLACEHOLDERS = ("/photo_unavailable", "i.imgur.com/removed.png")

#: Bodies in memory beyond what each request has for itself.
_BIG_BODIES = 256 << 20
_DNS_THREADS = 128
#: Idle connections cost file descriptors, and most hosts are asked a few times only.
_KEEP_ALIVE = 5.0


class Fetcher:
    """Fetches within the limits of one process; a context manager."""

    def __init__(
        self,
        product: ProductOptions,
        manners: Manners,
        *,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """Prepare.

        Args:
            product: limits and rules.
            manners: concurrency, retries, time-outs.
            resolver: instead of the system's; what it answers is not trusted.
        """
        self._product, self._manners = product, manners
        self._hosts = Hosts(manners.per_host, give_up_after=manners.host_failures)
        self._slots = asyncio.Semaphore(manners.concurrency)
        self._budget = ByteBudget(max(_BIG_BODIES, product.limits.max_bytes))
        self._random = random.Random()
        self._resolver = resolver
        #: Bytes of bodies read, whatever became of them.
        self.received = 0

    async def __aenter__(self) -> Fetcher:
        """Open the session."""
        product, manners = self._product, self._manners
        threads = max(1, min(_DNS_THREADS, manners.concurrency))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # slots and gates are ours: waiting for one is no time-out
                resolver=self._resolver or Resolver(threads, allow_private=product.allow_private),
                ttl_dns_cache=300,
                keepalive_timeout=_KEEP_ALIVE,
                socket_factory=None if product.allow_private else guarded_socket,
                family=socket.AF_UNSPEC,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=manners.connect_timeout),
            headers={
                "User-Agent": manners.user_agent,
                "Accept": "image/jpeg,image/png,image/webp,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        await self._session.close()

    @asynccontextmanager
    async def image(self, url: str) -> AsyncIterator[bytes]:
        """The bytes behind a URL; a slot and their memory are held until the context ends.

        Raises:
            Failure: with the reason; nothing else, whatever the server does.
            UserError: this machine has run out of something.
        """
        start = checked_url(url, allow_private=self._product.allow_private)
        async with AsyncExitStack() as held:
            yield await self._with_retries(start, held)

    async def _with_retries(self, url: URL, held: AsyncExitStack) -> bytes:
        manners = self._manners
        earlier: Failure | None = None
        for attempt in range(manners.retries + 1):
            try:
                return await self._follow(url, held)
            except Failure as failure:
                if failure.reason == "host_down" and earlier is not None:
                    raise earlier from None  # what this URL itself met says more
                if not failure.again or attempt == manners.retries:
                    raise
                wait = manners.backoff * 2**attempt * self._random.uniform(0.5, 1.5)
                if failure.retry_after is not None:
                    wait = max(failure.retry_after, wait)
                    if failure.retry_after > manners.max_wait:
                        raise
                earlier = failure
            await asyncio.sleep(min(wait, manners.max_wait))
        raise AssertionError("the last attempt returns or raises")

    async def _follow(self, url: URL, held: AsyncExitStack) -> bytes:
        """Ask, and go where redirects lead; every hop is checked and waits for its host's turn."""
        seen: set[URL] = set()
        while True:
            seen.add(url)
            assert url.host is not None  # `checked_url`
            async with self._hosts.turn(url.host), AsyncExitStack() as hop:
                await hop.enter_async_context(self._slots)
                answer = await self._ask(url, hop)
                if isinstance(answer, bytes):
                    held.push_async_exit(hop.pop_all())
                    return answer
            url = answer
            if any(mark in str(url) for mark in _PLACEHOLDERS):
                raise Failure("placeholder", f"redirected to {url}")
            if url in seen:
                raise Failure("redirect_loop", f"redirected to {url} again")
            if len(seen) > self._product.max_redirects:
                raise Failure(
                    "too_many_redirects", f"more than {self._product.max_redirects}, last to {url}"
                )

    async def _ask(self, url: URL, held: AsyncExitStack) -> bytes | URL:
        """One request; its body, or where it redirects to."""
        host = url.host or ""
        answered = False
        try:
            async with (
                asyncio.timeout(self._manners.timeout) as deadline,
                self._session.get(url, allow_redirects=False) as response,
            ):
                answered = True
                if response.status not in _BUSY:
                    self._hosts.answered(host)
                return await self._take(response, held, deadline)
        except Failure as failure:
            if failure.busy:
                self._hosts.failed(host, failure.reason)
            if failure.retry_after is not None:  # what it asks of one request it means for all
                self._hosts.pause(host, failure.retry_after, self._manners.max_wait)
            raise
        except (aiohttp.ClientError, OSError, ValueError, ssl.SSLError, *faults.PROTOCOL) as error:
            told = faults.explain(error, answered=answered)
            if not told.answered:
                self._hosts.failed(host, told.reason)
            raise told from error

    async def _take(
        self, response: aiohttp.ClientResponse, held: AsyncExitStack, deadline: asyncio.Timeout
    ) -> bytes | URL:
        product = self._product
        location = response.headers.get("Location")
        if response.status in _REDIRECTS and location:
            try:
                target = response.url.join(parse_url(location))
            except ValueError as error:
                raise Failure("bad_url", f"redirected to {location[:200]!r}: {error}") from None
            return checked_url(target, allow_private=product.allow_private)
        if response.status not in _GOOD:
            raise Failure(
                status_reason(response.status),
                f"{response.status} {response.reason or ''}".strip()[:200],
                retry_after=faults.retry_after(response.headers),
                busy=response.status in _BUSY,
            )
        forbidden = forbidden_by(response.headers, self._manners.user_agent)
        if forbidden is not None and not product.ignore_noai:
            raise Failure("noai", forbidden)
        return await read_body(
            response,
            limit=product.limits.max_bytes,
            min_speed=self._manners.min_speed,
            reserve=lambda size: self._reserve(size, held, deadline),
            received=self._count,
        )

    async def _reserve(self, size: int, held: AsyncExitStack, deadline: asyncio.Timeout) -> None:
        """Wait for memory; the clock of the request stands still meanwhile."""
        loop = asyncio.get_running_loop()
        left = (deadline.when() or 0.0) - loop.time()
        deadline.reschedule(None)
        await held.enter_async_context(self._budget.reserve(size))
        deadline.reschedule(loop.time() + left)

    def _count(self, size: int) -> None:
        self.received += size
