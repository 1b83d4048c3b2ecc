"""The life of a decoder process: bytes in, bytes out, until its parent closes the pipe.

Started as a program of its own, so that nothing of the parent's memory, files or main module is
in it.
"""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from xvlm_data.images.decode import ImageError, Limits, decode
from xvlm_data.images.encode import reencode

READY = b"ready"


def serve(descriptor: int) -> None:
    """Answer questions on a socket.

    A question is the (width, height) that annotations refer to, or null, as JSON, and the encoded
    image. The answer is JSON: ``reason`` and ``message``, or ``width``, ``height`` and whether the
    bytes stay the ``same``; when they do not, the new ones follow.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    with suppress(EOFError, OSError), Connection(descriptor) as pipe:
        limits, shortest_side, quality = json.loads(pipe.recv_bytes())
        pipe.send_bytes(READY)
        while True:
            size = json.loads(pipe.recv_bytes())
            data = pipe.recv_bytes()
            answer: dict[str, Any]
            kept = data
            try:
                kept, (width, height) = _decode(
                    data, size and tuple(size), Limits(*limits), shortest_side, quality
                )
                answer = {"same": kept is data, "width": width, "height": height}
            except ImageError as error:
                answer = {
                    "reason": error.reason,
                    "message": error.what.removeprefix("image: ")[:300],
                }
            except MemoryError:
                answer = {"reason": "too_many_pixels", "message": "does not fit in memory"}
            pipe.send_bytes(json.dumps(answer).encode())
            if kept is not data:
                pipe.send_bytes(kept)


def _decode(
    data: bytes,
    size: tuple[int, int] | None,
    limits: Limits,
    shortest_side: int | None,
    quality: int,
) -> tuple[bytes, tuple[int, int]]:
    turn = size is None  # captions have no boxes that a turn could displace
    if shortest_side is None:
        return data, decode(data, size=size, apply_exif=turn, limits=limits).size
    return reencode(
        data,
        size=size,
        apply_exif=turn,
        shortest_side=shortest_side,
        quality=quality,
        limits=limits,
    )
