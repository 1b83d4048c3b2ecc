"""A web server on this machine that misbehaves in every way that image hosts do.

Answers are written byte by byte onto the socket, because no HTTP library would send most of them.
What is asked for decides what happens: see :data:`ROUTES`. Several addresses of the loopback
network stand for several hosts.
"""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import io
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

import numpy as np
from PIL import Image

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


def picture(number: int, size: tuple[int, int] = (48, 36), form: str = "JPEG", **save) -> bytes:
    """Noise that depends on ``number``."""
    noise = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form, **save)
    return buffer.getvalue()


def turned_picture() -> bytes:
    """48 x 36 stored, to be seen as 36 x 48."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(6, exif=exif)


def bomb_png() -> bytes:
    """A PNG of a few bytes that claims 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + end


@dataclass(frozen=True)
class Asked:
    """A request: where to, for what, with which headers (lower case), and when."""

    host: str
    path: str
    headers: dict[str, str]
    at: float


@dataclass
class Connection:
    """What a route answers with."""

    asked: Asked
    times: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    keep: bool = True

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: str = "200 OK", **headers: object) -> None:
        lines = [f"HTTP/1.1 {status}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def answer(self, body: bytes, status: str = "200 OK", **headers: object) -> None:
        await self.head(
            status, **({"Content_Type": "image/jpeg"} | headers), Content_Length=len(body)
        )
        await self.send(body)

    def hang_up(self) -> None:
        self.keep = False


Route = Callable[[Connection], Awaitable[None]]


@dataclass
class HostileServer:
    """Runs in a thread; a context manager. ``asked`` lists the requests of all hosts."""

    asked: list[Asked] = field(default_factory=list)
    busiest: Counter[str] = field(default_factory=Counter)
    port: int = 0
    _times: Counter[str] = field(default_factory=Counter)
    _now: Counter[str] = field(default_factory=Counter)

    def url(self, path: str, host: str = HOSTS[0]) -> str:
        return f"http://{host}:{self.port}{path}"

    def count(self, path: str) -> int:
        return sum(asked.path == path for asked in self.asked)

    def forget(self) -> None:
        """Every request is the first of its kind again."""
        self._times.clear()

    def __enter__(self) -> HostileServer:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def serve() -> None:
            self._stop = asyncio.Event()
            first = await self._listen(HOSTS[0], 0)
            self.port = first.sockets[0].getsockname()[1]
            servers = [first, *[await self._listen(host, self.port) for host in HOSTS[1:]]]
            ready.set()
            await self._stop.wait()
            for server in servers:
                server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(serve()))
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._now[host] += 1
            self.busiest[host] = max(self.busiest[host], self._now[host])
            try:
                while await self._one(host, reader, writer):
                    pass
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                self._now[host] -= 1
                writer.close()

        return await asyncio.start_server(handle, host, port)

    async def _one(
        self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = head[0].split(" ")[1]
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        asked = Asked(host, path, {k.lower(): v for k, v in headers.items()}, time.monotonic())
        self.asked.append(asked)
        self._times[path] += 1
        name = path.lstrip("/").partition("/")[0].partition("?")[0]
        connection = Connection(asked, self._times[path], reader, writer)
        await ROUTES[name](connection)
        return connection.keep


def number_of(path: str) -> int:
    """``/good/17.jpg`` -> 17."""
    digits = re.search(r"/(\d+)", path)
    return int(digits.group(1)) if digits else 0


def _fixed(body: bytes, status: str = "200 OK", **headers: object) -> Route:
    async def route(c: Connection) -> None:
        await c.answer(body, status, **headers)

    return route


def _redirect(target: str, status: str = "302 Found") -> Route:
    return _fixed(b"elsewhere", status, Location=target, Content_Type="text/plain")


async def good(c: Connection) -> None:
    await c.answer(picture(number_of(c.asked.path)))


async def slow_good(c: Connection) -> None:
    await asyncio.sleep(0.03)
    await good(c)


async def late(c: Connection) -> None:
    """For the test that is killed: in the order asked, not too fast."""
    await asyncio.sleep(0.01)
    await good(c)


async def silent(c: Connection) -> None:
    await asyncio.sleep(60)


async def drip(c: Connection) -> None:
    body = picture(1)
    await c.head(Content_Length=len(body))
    for byte in body:
        await c.send(bytes([byte]))
        await asyncio.sleep(0.05)


async def cut(c: Connection) -> None:
    body = picture(2)
    await c.head(Content_Length=len(body))
    await c.send(body[: len(body) // 2])
    c.hang_up()


async def promises_more(c: Connection) -> None:
    body = picture(3)
    await c.head(Content_Length=len(body) + 1000)
    await c.send(body)
    c.hang_up()


async def promises_less(c: Connection) -> None:
    body = picture(4)
    await c.head(Content_Length=len(body) // 2)
    await c.send(body)


async def open_chunks(c: Connection) -> None:
    body = picture(5)
    await c.head(Transfer_Encoding="chunked")
    await c.send(b"%x\r\n%s\r\n" % (len(body), body))
    c.hang_up()


async def chunked(c: Connection) -> None:
    body = picture(5)
    await c.head(Transfer_Encoding="chunked")
    for start in range(0, len(body), 500):
        piece = body[start : start + 500]
        await c.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    await c.send(b"0\r\n\r\n")


async def until_closed(c: Connection) -> None:
    await c.head(Connection="close")
    await c.send(picture(8))
    c.hang_up()


async def gigabyte(c: Connection) -> None:
    await c.head(Content_Length=1 << 30, Content_Type="image/jpeg")
    for _ in range(1 << 10):
        await c.send(bytes(1 << 20))


async def endless(c: Connection) -> None:
    await c.head(Transfer_Encoding="chunked", Content_Type="image/jpeg")
    while True:
        await c.send(b"10000\r\n" + b"\xff\xd8" + bytes(0x10000 - 2) + b"\r\n")


async def hops(c: Connection) -> None:
    left = number_of(c.asked.path)
    await _redirect(f"/hops/{left - 1}" if left else "/good/7.jpg", "301 Moved")(c)


async def circle(c: Connection) -> None:
    await _redirect("/circle/b" if c.asked.path.endswith("a") else "/circle/a")(c)


async def growing_circle(c: Connection) -> None:
    await _redirect(c.asked.path + "x", "307 Temporary Redirect")(c)


async def to(c: Connection) -> None:
    """``/to/<host>``: the same port there."""
    port = c.writer.get_extra_info("sockname")[1]
    host = unquote(c.asked.path).removeprefix("/to/")
    await _redirect(f"http://{host}:{port}/good/1.jpg")(c)


def _first_refuse(status: str, retry_after: Callable[[], str]) -> Route:
    async def route(c: Connection) -> None:
        if c.times == 1:
            await c.answer(b"later", status, Retry_After=retry_after())
        else:
            await good(c)

    return route


async def reset(c: Connection) -> None:
    linger = struct.pack("ii", 1, 0)
    c.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    c.writer.transport.abort()
    c.hang_up()


async def once_reset(c: Connection) -> None:
    await (reset(c) if c.times == 1 else good(c))


async def once_500(c: Connection) -> None:
    if c.times == 1:
        await c.answer(b"oh", "500 Internal Server Error")
    else:
        await good(c)


async def garbage(c: Connection) -> None:
    await c.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    c.hang_up()


async def long_header(c: Connection) -> None:
    await c.head(X_Long="x" * 100_000)


async def gzip_bomb(c: Connection) -> None:
    await c.head(Content_Encoding="gzip", Transfer_Encoding="chunked", Content_Type="image/jpeg")
    squeeze = zlib.compressobj(9, wbits=31)
    for _ in range(200):
        if piece := squeeze.compress(bytes(1 << 20)):
            await c.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    piece = squeeze.flush()
    await c.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(piece), piece))


HTML = b"<!DOCTYPE html>\n<html><body>This image is no longer here.</body></html>" + b" " * 5000
TRUNCATED = picture(9, (200, 150))

ROUTES: dict[str, Route] = {
    "good": good,
    "slow": slow_good,
    "late": late,
    "silent": silent,
    "drip": drip,
    "cut": cut,
    "promises_more": promises_more,
    "promises_less": promises_less,
    "open_chunks": open_chunks,
    "chunked": chunked,
    "until_closed": until_closed,
    "gigabyte": gigabyte,
    "endless": endless,
    "html": _fixed(HTML, Content_Type="image/jpeg"),
    "wrong_type": _fixed(picture(10), Content_Type="text/html; charset=utf-8"),
    "junk": _fixed(bytes(range(256)) * 20),
    "truncated": _fixed(TRUNCATED[: len(TRUNCATED) * 2 // 3]),
    "bomb_png": _fixed(bomb_png(), Content_Type="image/png"),
    "empty": _fixed(b""),
    "png": _fixed(picture(11, form="PNG"), Content_Type="image/png"),
    "large": _fixed(picture(12, (400, 300))),
    "turned": _fixed(turned_picture()),
    "hops": hops,
    "circle": circle,
    "growing_circle": growing_circle,
    "to": to,
    "to_file": _redirect("file:///etc/passwd"),
    "to_nowhere": _redirect("http://[::1"),
    "no_location": _fixed(b"", "302 Found"),
    "gone_picture": _redirect("/pw/images/en-us/photo_unavailable.png"),
    "pw": _fixed(picture(13, form="PNG")),
    "s403": _fixed(b"no", "403 Forbidden"),
    "s404": _fixed(picture(14), "404 Not Found", X_Robots_Tag="noindex"),
    "s410": _fixed(b"no", "410 Gone"),
    "s204": _fixed(b"", "204 No Content"),
    "s503": _fixed(b"no", "503 Service Unavailable"),
    "s500": _fixed(b"no", "500 Internal Server Error"),
    "busy_seconds": _first_refuse("429 Too Many Requests", lambda: "1"),
    "busy_date": _first_refuse(
        "503 Service Unavailable", lambda: email.utils.formatdate(time.time() + 2, usegmt=True)
    ),
    "busy_for_hours": _fixed(b"no", "429 Too Many Requests", Retry_After="7200"),
    "noai": _fixed(picture(15), X_Robots_Tag="noai, noimageai"),
    "noai_us": _fixed(picture(16), X_Robots_Tag="googlebot: nofollow, xvlm: noai"),
    "noai_other": _fixed(picture(17), X_Robots_Tag="googlebot: noindex, noai"),
    "tdm": _fixed(picture(18), TDM_Reservation="1"),
    "cookie": _fixed(picture(19), Set_Cookie="id=me; Path=/"),
    "reset": reset,
    "once_reset": once_reset,
    "once_500": once_500,
    "garbage": garbage,
    "long_header": long_header,
    "gzip_bomb": gzip_bomb,
    "gzip_good": _fixed(gzip.compress(picture(20)), Content_Encoding="gzip"),
    "gzip_cut": _fixed(gzip.compress(picture(20))[:-300], Content_Encoding="gzip"),
    "brotli": _fixed(b"\x0b\x02\x80", Content_Encoding="br"),
}
