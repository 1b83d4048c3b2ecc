"""A socket to serve at."""

from __future__ import annotations

import errno
import socket

from xvlm_data.errors import UserError


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A listening socket, and the address to give to a browser.

    Raises:
        UserError: the port is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(64)
    except OSError as error:
        sock.close()
        fix = "give another --port" if error.errno == errno.EADDRINUSE else "check --host"
        raise UserError(f"{host}:{port}: cannot listen ({error.strerror or error})", fix) from error
    shown = f"[{host}]" if ":" in host else host
    return sock, f"http://{shown}:{sock.getsockname()[1]}"
