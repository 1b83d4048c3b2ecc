"""Which URLs and addresses may be asked. A list from the web must not reach what is not public.

A host name can be made to point anywhere, and to point elsewhere a moment later. So what is checked
is the address that a socket is about to connect to; names are checked before only in order to tell
the reason early.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from xvlm_data.download.reasons import Failure

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: What `ipaddress` calls global, or did in some version, but is no host on the public Internet.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "64:ff9b:1::/48",  # local-use translation
        "100::/64",  # discard
        "2001::/23",  # IETF protocol assignments, Teredo among them
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fec0::/10",  # site-local
    )
)
#: Prefixes whose last, or first following, 32 bits are an IPv4 address.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")
_6TO4 = ipaddress.ip_network("2002::/16")

#: Hosts that system resolvers read as an IPv4 address: decimal, octal and hexadecimal parts.
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+)){0,3}\.?", re.IGNORECASE)

#: A URL that needs no quoting; it is asked for exactly as it stands, since it may be signed.
_TIDY = re.compile(r"[!#-;=?-\[\]_a-z~]+")
_NAME = re.compile(r"(?!.*\.\.)[a-z0-9_][a-z0-9_.-]{0,252}")


class PrivateAddressError(OSError):
    """An address that is not public; an OSError, so that it travels through aiohttp."""

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, f"{address} is not a public address")


def is_public(address: str) -> bool:
    """Whether an IP address, in any spelling of `ipaddress`, is a host on the public Internet."""
    try:
        ip: Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if "%" in address:  # a zone belongs to an address of this machine's links
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (inner := _embedded(ip)) is not None:
        return is_public(str(inner))
    if ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback:
        return False
    if ip.is_link_local or not ip.is_global:
        return False
    return not any(ip.version == network.version and ip in network for network in _NOT_PUBLIC)


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip in _6TO4:
        return ipaddress.IPv4Address((int(ip) >> 80) & 0xFFFFFFFF)
    if ip in _NAT64 or (ip in _COMPATIBLE and int(ip) > 1):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


def parse_url(text: str) -> URL:
    """A URL, absolute or not; what may not stand in one is quoted.

    Raises:
        ValueError: it is none.
    """
    text = text.strip()
    return URL(text, encoded=_TIDY.fullmatch(text) is not None)


def checked_url(text: str | URL, *, allow_private: bool) -> URL:
    """A URL that may be asked, without the user name and password that it may hold.

    Raises:
        Failure: bad_url or private_address.
    """
    try:
        url = parse_url(text) if isinstance(text, str) else text
        host, scheme, port = (url.raw_host or "").lower(), url.scheme, url.port
    except (ValueError, TypeError, UnicodeError) as error:
        raise Failure("bad_url", f"{str(text)[:200]!r}: {error}") from None
    if scheme not in ("http", "https"):
        raise Failure("bad_url", f"{str(text)[:200]!r}: not an http(s) address")
    if not host or port is None or not 0 < port < 65536:
        raise Failure("bad_url", f"{str(text)[:200]!r}: no host, or no port that exists")
    url = url.with_user(None).with_fragment(None)
    if _NUMERIC.fullmatch(host):
        try:  # as the system's resolver and every browser read it
            host = socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
        except OSError:
            raise Failure("bad_url", f"{str(text)[:200]!r}: no such address") from None
    if ":" not in host and not _NAME.fullmatch(host):
        raise Failure("bad_url", f"{str(text)[:200]!r}: no name of a host")
    if host != url.raw_host:
        url = url.with_host(host)
    literal = ":" in host or _NUMERIC.fullmatch(host) is not None
    if literal and not allow_private and not is_public(host):
        raise Failure("private_address", f"{host} is not a public address")
    return url


class Resolver(AbstractResolver):
    """The system's resolver in threads of its own; private addresses are left out of its answers.

    Looking names up is most of the waiting on lists with a host for every few images, and the
    event loop's own few threads would serialise it.
    """

    def __init__(self, threads: int, *, allow_private: bool) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="dns")
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """As aiohttp wants it.

        Raises:
            PrivateAddressError: the name leads to private addresses only.
            OSError: the name does not resolve.
        """
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._pool, _look_up, host, port, family)
        public = [r for r in found if self._allow_private or is_public(r["host"])]
        if found and not public:
            raise PrivateAddressError(f"{host} ({found[0]['host']})")
        return public

    async def close(self) -> None:
        """Do not wait for look-ups that hang."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
    return [
        ResolveResult(
            hostname=host,
            host=str(address[0]),
            port=int(address[1]),
            family=kind,
            proto=protocol,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for kind, _, protocol, _, address in found
    ]


def guarded_socket(address_info: tuple[Any, ...]) -> socket.socket:
    """A socket for aiohttp to connect to exactly this address, if it is a public one.

    Raises:
        PrivateAddressError: it is not.
    """
    family, kind, protocol, _, address = address_info
    if not is_public(str(address[0])):
        raise PrivateAddressError(str(address[0]))
    return socket.socket(family, kind, protocol)
