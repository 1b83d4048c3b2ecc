"""What aiohttp and the operating system raise, as reasons."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from xvlm_data.download.addresses import PrivateAddressError
from xvlm_data.download.reasons import Failure
from xvlm_data.errors import UserError

#: Errors of HTTP itself, which aiohttp does not derive from its ``ClientError``.
PROTOCOL = (HttpProcessingError,)

#: This machine's limits, which say nothing of the URL.
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def explain(error: Exception, *, answered: bool) -> Failure:
    """The failure that an exception of a request means.

    Raises:
        UserError: it means that this machine has run out of something.
    """
    system = getattr(error, "os_error", error)
    message = _brief(error)
    if isinstance(system, PrivateAddressError):
        return Failure("private_address", str(system.strerror))
    if isinstance(system, OSError) and system.errno in _OURS:
        raise UserError(
            f"this machine cannot open more connections ({system.strerror})",
            "lower --concurrency, or raise `ulimit -n`, and run the same command again",
        ) from error
    if isinstance(error, TimeoutError):
        return Failure("timeout", message if str(error) else "no answer in time", answered=answered)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        # Only "try again later" may pass; an unknown name stays unknown for today.
        again = isinstance(system, socket.gaierror) and system.errno == socket.EAI_AGAIN
        return Failure("dns", message, answered=False, again=again)
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return Failure("tls", message, answered=False)
    if isinstance(error, aiohttp.ClientConnectorError):
        return Failure("connect", message, answered=False)
    if isinstance(error, aiohttp.ClientPayloadError):
        return Failure("cut_off", message)
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
        return Failure("reset", message, answered=answered)
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError):
        return Failure("bad_response", message)
    if isinstance(error, aiohttp.InvalidURL | UnicodeError):
        return Failure("bad_url", message)
    return Failure("bad_response", f"{type(error).__name__}: {message}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a ``Retry-After``, given as a number or as a date; None without a usable one."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
