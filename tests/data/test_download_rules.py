"""The rules of downloading, one by one: addresses, robots, waiting, memory, crashes."""

from __future__ import annotations

import asyncio
import email.utils
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from tests.data.hostile_server import HostileServer, picture
from xvlm_data.download import decoders as decoders_module
from xvlm_data.download.addresses import checked_url, is_public
from xvlm_data.download.budget import ByteBudget
from xvlm_data.download.decoders import Decoders, Encoding
from xvlm_data.download.faults import retry_after
from xvlm_data.download.fetch import Fetcher
from xvlm_data.download.hosts import Hosts
from xvlm_data.download.log import ShardLog, Stored
from xvlm_data.download.options import Manners, ProductOptions
from xvlm_data.download.reasons import Failure
from xvlm_data.download.robots import forbidden_by
from xvlm_data.errors import UserError
from xvlm_data.images.decode import Limits


def _words(text: str) -> list[str]:
    return text.split()


# One of each block of the IANA special-purpose address registries, by hand.
PRIVATE = _words("""
0.0.0.0 0.1.2.3 10.1.2.3 100.64.0.1 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1
172.31.255.255 192.0.0.1 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.51.100.1 203.0.113.1
224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::ffff:10.0.0.1 ::ffff:7f00:1 ::127.0.0.1 ::a00:1 64:ff9b::10.0.0.1 64:ff9b:1::1 100::1
2001::1 2001:2::1 2001:db8::1 2001:10::1 2002:7f00:1::1 2002:a00:1::1 3fff::1 5f00::1 fc00::1
fd12:3456::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1
""")
PUBLIC = _words("""
1.1.1.1 8.8.8.8 93.184.216.34 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 192.167.1.1
223.255.255.255 198.20.0.1
2606:4700:4700::1111 2a00:1450:4001:81b::200e ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1
""")


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://Example.org/a b.jpg", "http://example.org/a%20b.jpg"),
        (" https://example.org/ä?q=%2F#top ", "https://example.org/%C3%A4?q=/"),
        ("https://example.org/%2f?sig=a%2Bb%2F%3D", "https://example.org/%2f?sig=a%2Bb%2F%3D"),
        ("http://me:pass@example.org/x", "http://example.org/x"),
        ("http://134744072/x", "http://8.8.8.8/x"),
        ("http://0x8080808/x", "http://8.8.8.8/x"),
        ("http://010.010.010.010/x", "http://8.8.8.8/x"),
        ("http://bücher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://example.org:8080/x", "http://example.org:8080/x"),
    ],
)
def test_what_a_url_asks_for(url: str, asked: str) -> None:
    assert str(checked_url(url, allow_private=False)) == asked


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "bad_url"),
        ("example.org/x.jpg", "bad_url"),
        ("//example.org/x.jpg", "bad_url"),
        ("ftp://example.org/x.jpg", "bad_url"),
        ("file:///etc/passwd", "bad_url"),
        ("data:image/png;base64,AAAA", "bad_url"),
        ("http://", "bad_url"),
        ("http:///x", "bad_url"),
        ("http://[::1", "bad_url"),
        ("http://example.org:99999/", "bad_url"),
        ("http://example.org:x/", "bad_url"),
        ("http://999.1.1.1/", "bad_url"),
        ("http://exa mple.org/", "bad_url"),
        ("http://127.0.0.1/", "private_address"),
        ("http://127.0.0.1./", "private_address"),
        ("http://①②⑦.0.0.1/", "private_address"),
        ("http://0x7f.0x0.0x0.0x1/", "private_address"),
        ("http://017700000001/", "private_address"),
        ("http://[fe80::1%25eth0]/", "private_address"),
        ("http://[::ffff:169.254.169.254]/", "private_address"),
    ],
)
def test_urls_that_are_not_asked(url: str, reason: str) -> None:
    with pytest.raises(Failure) as caught:
        checked_url(url, allow_private=False)
    assert caught.value.reason == reason


@given(st.text())
def test_any_text_is_a_url_or_a_failure(text: str) -> None:
    for candidate in (text, f"http://{text}", f"http://example.org/{text}"):
        try:
            url = checked_url(candidate, allow_private=False)
        except Failure:
            continue
        assert url.scheme in ("http", "https") and url.host and not url.user


class Liar(AbstractResolver):
    """Says what it was told to, as a name server of an attacker does."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
            for address in self.addresses
        ]

    async def close(self) -> None:
        return


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("127.0.0.1", "127.0.0.2"), ("::1",)])
def test_a_name_that_leads_home_is_not_followed(addresses: tuple[str, ...]) -> None:
    """What is checked is the address that is connected to, whatever a name resolved to before."""

    async def fetch(server: HostileServer) -> None:
        manners = Manners(retries=0, connect_timeout=2.0)
        async with (
            Fetcher(ProductOptions(), manners, resolver=Liar(*addresses)) as fetcher,
            fetcher.image(f"http://images.example:{server.port}/good/1"),
        ):
            pass

    with HostileServer() as server:
        with pytest.raises(Failure) as caught:
            asyncio.run(fetch(server))
        assert caught.value.reason == "private_address"
        assert not server.asked


@pytest.mark.parametrize(
    ("values", "forbidden"),
    [
        (["noai"], True),
        (["NoAI"], True),
        (["noarchive, noimageai"], True),
        (["noindex"], True),
        (["noimageindex, nofollow"], True),
        (["none"], True),
        (["all"], False),
        (["nofollow, noarchive"], False),
        (["max-image-preview: large, noai"], True),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], False),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], True),
        (["googlebot: noindex"], False),
        (["googlebot: noindex, noai"], False),
        (["googlebot: noindex", "noai"], True),
        (["xvlm: noai"], True),
        (["XVLM:noimageai"], True),
        (["googlebot: nofollow, xvlm: noai"], True),
        (["xvlm: all, otherbot: noai"], False),
        (["*: noai"], True),
        (["mybot: noai"], True),
        ([":"], False),
        ([""], False),
        ([], False),
    ],
)
def test_robots(values: list[str], forbidden: bool) -> None:
    headers = CIMultiDictProxy(CIMultiDict([("X-Robots-Tag", value) for value in values]))
    assert (forbidden_by(headers, "mybot/2.0 (+http://example.org)") is not None) == forbidden


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("²", None),
        ("9" * 50, 999_999_999.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": value}) == seconds


def test_retry_after_a_date() -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    waiting = retry_after({"Retry-After": date})
    assert waiting is not None and 95 < waiting <= 100


def test_the_budget_is_never_exceeded_and_nobody_starves() -> None:
    async def run() -> int:
        budget, held, most = ByteBudget(100), 0, 0

        async def use(size: int) -> None:
            nonlocal held, most
            async with budget.reserve(size):
                held += size
                most = max(most, held)
                await asyncio.sleep(0.001)
                held -= size

        sizes = [100, 1, 60, 60, 30, 100, 5, 5, 90, 20] * 5
        tasks = [asyncio.create_task(use(size)) for size in sizes]
        await asyncio.sleep(0.002)
        for task in tasks[3::7]:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        async with budget.reserve(100):  # all of it came back
            return most

    assert asyncio.run(run()) <= 100


def test_a_host_that_asks_for_a_pause_gets_it() -> None:
    async def run() -> tuple[float, str]:
        hosts = Hosts(2, give_up_after=0)
        start = time.monotonic()
        async with hosts.turn("a"):
            hosts.pause("a", 0.2, longest=10)
        async with hosts.turn("b"):
            assert time.monotonic() - start < 0.15
        async with hosts.turn("a"):
            waited = time.monotonic() - start
            hosts.pause("a", 3600, longest=0.1)
        try:
            async with hosts.turn("a"):
                raise AssertionError("it asked for an hour")
        except Failure as failure:
            return waited, failure.reason

    waited, reason = asyncio.run(run())
    assert waited >= 0.2
    assert reason == "host_down"


class TestShardLog:
    def filled(self, path: Path) -> list[tuple[int, bytes | str]]:
        log = ShardLog(path)
        log.add_image(3, b"three" * 100, (5, 4))
        log.add_failure(0, Failure("http_404", "gone"))
        log.add_failure(1, Failure("timeout", "slow"))
        log.add_image(2, b"two", (7, 8))
        log.close()
        return self.content(path)

    def content(self, path: Path) -> list[tuple[int, bytes | str]]:
        log = ShardLog(path)
        found = [
            (row, log.read(outcome) if isinstance(outcome, Stored) else outcome.reason)
            for row, outcome in log.outcomes.items()
        ]
        log.close()
        return found

    def test_what_may_pass_is_forgotten(self, tmp_path: Path) -> None:
        found = self.filled(tmp_path / "log")
        assert found == [(3, b"three" * 100), (0, "http_404"), (2, b"two")]

    def test_cut_anywhere(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        whole, data = self.filled(path), path.read_bytes()
        ends = set()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            found = self.content(path)
            assert found == whole[: len(found)]
            ends.add(len(found))
            log = ShardLog(path)  # and it goes on from there
            log.add_image(9, b"nine", (1, 1))
            log.close()
            assert self.content(path) == [*found, (9, b"nine")]
        assert ends == {0, 1, 2}

    def test_damage_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        whole, data = self.filled(path), path.read_bytes()
        for place in range(0, len(data), 3):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            found = self.content(path)
            assert found == whole[: len(found)] and len(found) < len(whole)


ENCODING = Encoding(Limits(), None, 90)
#: A decoder that dies of b"die", stalls at b"stall", and finds everything else to be 1 x 1.
_FRAGILE = """if True:
    import os, sys, time
    from multiprocessing.connection import Connection
    pipe = Connection(int(sys.argv[1]))
    pipe.recv_bytes(); pipe.send_bytes(b"ready")
    while True:
        pipe.recv_bytes(); data = pipe.recv_bytes()
        if data == b"die": os.abort()
        if data == b"stall": time.sleep(60)
        pipe.send_bytes(b'{"same": true, "width": 1, "height": 1}')
"""


class TestDecoders:
    def test_what_they_say(self) -> None:
        with Decoders(1, ENCODING) as decoders:
            assert decoders.decode(picture(1), None) == (picture(1), (48, 36))
            with pytest.raises(Failure) as caught:
                decoders.decode(picture(1), (36, 48))
            assert caught.value.reason == "size_mismatch"
        with Decoders(1, Encoding(Limits(), 18, 90)) as decoders:
            data, size = decoders.decode(picture(1), None)
            assert size == (24, 18) and data != picture(1)

    def test_a_crash_is_the_fault_of_one_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoders_module, "_PROGRAM", _FRAGILE)
        monkeypatch.setattr(decoders_module, "_TIMEOUT", 0.2)
        with Decoders(1, ENCODING) as decoders:
            for data in (b"die", b"stall"):
                assert decoders.decode(b"good", None) == (b"good", (1, 1))
                with pytest.raises(Failure) as caught:
                    decoders.decode(data, None)
                assert caught.value.reason == "corrupt_image"
            assert decoders.decode(b"good", None) == (b"good", (1, 1))

    def test_crashes_of_everything_are_no_fault_of_the_images(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decoders_module, "_PROGRAM", _FRAGILE)
        monkeypatch.setattr(decoders_module, "_MOST_IN_A_ROW", 2)
        with Decoders(1, ENCODING) as decoders:
            with pytest.raises(Failure):
                decoders.decode(b"die", None)
            with pytest.raises(UserError, match="die again and again"):
                decoders.decode(b"die", None)

    def test_decoders_that_do_not_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoders_module, "_PROGRAM", "raise SystemExit(1)")
        with (
            Decoders(1, ENCODING) as decoders,
            pytest.raises(UserError, match="did not start"),
        ):
            decoders.decode(picture(1), None)

    def test_the_file_descriptors_of_the_parent_stay_there(self, tmp_path: Path) -> None:
        if not Path("/proc/self/fd").exists():
            pytest.skip("needs /proc")
        with (tmp_path / "secret").open("w") as file, Decoders(1, ENCODING) as decoders:
            os.set_inheritable(file.fileno(), True)
            decoders.decode(picture(1), None)
            process = decoders._all[0]._process
            assert process is not None
            names = [str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert not any("secret" in name for name in names)
