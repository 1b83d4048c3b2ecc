"""Decoding in processes of their own: an image that kills or stalls its decoder is a reject.

A decoder process only ever gets bytes and gives bytes; nothing that comes back is unpickled.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue

from xvlm_data.download.decoder_process import READY
from xvlm_data.download.reasons import Failure
from xvlm_data.errors import UserError
from xvlm_data.images.decode import Limits

#: Seconds for one image, and for the start of a process on a busy machine.
_TIMEOUT, _START_TIMEOUT = 60.0, 120.0
#: The death of a decoder may be another's fault (memory); the second one is the image's.
_TRIES = 2
#: So many images in a row cannot all be at fault.
_MOST_IN_A_ROW = 20

#: The child finds the package where we found it, whatever its working directory.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from xvlm_data.download.decoder_process import serve; serve(int(sys.argv[1]))"
)


@dataclass(frozen=True)
class Encoding:
    """What is done to every image; see `images.encode.reencode`. No side: the original bytes."""

    limits: Limits
    shortest_side: int | None
    quality: int


class Decoders:
    """Decoder processes, each with a thread that waits for it; a context manager.

    Attributes:
        threads: where :meth:`decode` is to be called, one thread a process.
    """

    def __init__(self, workers: int, encoding: Encoding) -> None:
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._idle: SimpleQueue[_Decoder] = SimpleQueue()
        self._all = [_Decoder(encoding) for _ in range(workers)]
        self._in_a_row = 0
        self._counting = threading.Lock()
        for decoder in self._all:
            self._idle.put(decoder)

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(wait=True, cancel_futures=True)
        for decoder in self._all:
            decoder.stop()

    def decode(self, data: bytes, size: tuple[int, int] | None) -> tuple[bytes, tuple[int, int]]:
        """Check an image by decoding it; its bytes to be kept and their (width, height). Blocks.

        Args:
            data: the encoded image.
            size: the (width, height) that annotations refer to; None where there are none.

        Raises:
            Failure: the reason of `images.decode`, corrupt_image also when no decoder survives it.
            UserError: decoders do not start, or die of everything.
        """
        decoder = self._idle.get()
        try:
            for _ in range(_TRIES):
                decoder.start()
                with suppress(EOFError, OSError, TimeoutError):
                    answer = decoder.ask(data, size)
                    self._in_a_row = 0
                    return answer
                decoder.stop()
            with self._counting:
                self._in_a_row += 1
            if self._in_a_row >= _MOST_IN_A_ROW:
                raise UserError(
                    "the processes that decode images die again and again",
                    "lower --workers (memory?), and run the same command again",
                )
            raise Failure("corrupt_image", "its decoder crashed or stalled, and so did the next")
        finally:
            self._idle.put(decoder)


class _Decoder:
    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def start(self) -> None:
        """Start the process unless it runs.

        Raises:
            UserError: it cannot be started.
        """
        if self._pipe is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        # Only the child holds its end now, so each side learns of the other's death.
        self._pipe = Connection(ours.detach())
        encoding = self._encoding
        started = False
        with suppress(EOFError, OSError):
            settings = [astuple(encoding.limits), encoding.shortest_side, encoding.quality]
            self._pipe.send_bytes(json.dumps(settings).encode())
            started = self._pipe.poll(_START_TIMEOUT) and self._pipe.recv_bytes() == READY
        if not started:
            self.stop()
            raise UserError(
                "a process that decodes images did not start (see above)",
                "run the same command again",
            )

    def ask(self, data: bytes, size: tuple[int, int] | None) -> tuple[bytes, tuple[int, int]]:
        """As `Decoders.decode`; EOFError, OSError or TimeoutError when the process is lost."""
        pipe = self._pipe
        assert pipe is not None  # started
        pipe.send_bytes(json.dumps(size).encode())
        pipe.send_bytes(data)
        if not pipe.poll(_TIMEOUT):
            raise TimeoutError
        answer = json.loads(pipe.recv_bytes())
        if "reason" in answer:
            raise Failure(answer["reason"], answer["message"])
        kept = data if answer["same"] else pipe.recv_bytes()
        return kept, (answer["width"], answer["height"])

    def stop(self) -> None:
        """End the process; the next start makes another."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._pipe = self._process = None
