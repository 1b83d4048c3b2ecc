"""Reading the body of a response: a bound on bytes, whatever its headers promise."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable

import aiohttp

from xvlm_data.download.reasons import Failure

#: Bytes that every request may hold without asking: almost all images are smaller.
FREE_BYTES = 1 << 20
#: Seconds before an average speed says anything.
_SPEED_AFTER = 5.0

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


async def read_body(
    response: aiohttp.ClientResponse,
    *,
    limit: int,
    min_speed: float,
    reserve: Callable[[int], Awaitable[None]],
    received: Callable[[int], None],
) -> bytes:
    """The body, decompressed, of at most ``limit`` bytes.

    Args:
        response: of a session that does not decompress.
        limit: bytes, before and after decompression.
        min_speed: bytes a second on average; slower ones are given up.
        reserve: called once before more than :data:`FREE_BYTES` are held, with their number.
        received: told the size of each piece.

    Raises:
        Failure: image_too_big, bad_encoding, too_slow, not_an_image (a page by its first bytes).
    """
    told = response.content_length
    if told is not None and told > limit:
        raise Failure("image_too_big", f"{told:,} bytes, the limit is {limit:,}")
    unpack = _unpacker(response.headers.get("Content-Encoding", ""))
    # What comes out of a compressed body has no announced size.
    expected = told if told is not None and unpack is None else limit
    reserved = FREE_BYTES
    if told is not None and expected > reserved and unpack is None:
        await reserve(expected - reserved)
        reserved = expected
    started = asyncio.get_running_loop().time()
    raw, body = 0, bytearray()
    async for piece in response.content.iter_any():
        received(len(piece))
        raw += len(piece)
        if unpack is not None:
            piece = _unpacked(unpack, piece, limit - len(body) + 1)
        if not body and _is_markup(piece):
            raise Failure("not_an_image", "a page of text, by its first bytes")
        body += piece
        if len(body) > limit or raw > limit:
            raise Failure("image_too_big", f"more than {limit:,} bytes")
        if len(body) > reserved:
            await reserve(limit - reserved)
            reserved = limit
        spent = asyncio.get_running_loop().time() - started
        if spent > _SPEED_AFTER and raw < min_speed * spent:
            raise Failure("too_slow", f"{raw / spent:,.0f} bytes a second")
    if unpack is not None and raw and not unpack.eof:
        raise Failure("cut_off", "the compressed body ends early")
    return bytes(body)


def _unpacker(encoding: str) -> zlib._Decompress | None:
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in _WINDOW_BITS:
        raise Failure("bad_encoding", f"Content-Encoding: {encoding[:80]}, though none was asked")
    return zlib.decompressobj(_WINDOW_BITS[encoding])


def _unpacked(unpack: zlib._Decompress, piece: bytes, most: int) -> bytes:
    try:
        return unpack.decompress(piece, most)
    except zlib.error as error:
        raise Failure("bad_encoding", f"damaged compressed body ({error})") from None


def _is_markup(start: bytes) -> bool:
    return start[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html"))
