"""Why an image did not arrive: codes for the rejects file, and which of them may pass."""

from __future__ import annotations

#: Failures that another attempt may not meet: within a run, and with ``--retry``.
TRANSIENT = frozenset(
    {
        "timeout",
        "too_slow",
        "dns",
        "connect",
        "reset",
        "cut_off",
        "http_408",
        "http_425",
        "http_429",
        "http_5xx",
        "host_down",
    }
)


class Failure(Exception):
    """An image that did not arrive.

    Attributes:
        reason: a code: bad_url, private_address, dns, connect, tls, timeout, too_slow, reset,
            host_down, http_404 and other statuses, http_5xx, redirect_loop, too_many_redirects,
            bad_response, bad_encoding, cut_off, noai, placeholder, or one of ``images.decode``.
        message: what happened, for a person.
        answered: whether the host gave any answer to the request.
        retry_after: seconds that the server asks to wait, when it does.
        busy: whether the host says that it has too much to do.
        again: whether another attempt within this run makes sense.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        answered: bool = True,
        retry_after: float | None = None,
        busy: bool = False,
        again: bool | None = None,
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message
        self.answered, self.busy, self.retry_after = answered, busy, retry_after
        self.again = reason in TRANSIENT if again is None else again


def status_reason(status: int) -> str:
    """The code of an HTTP status that is no success."""
    return "http_5xx" if 500 <= status < 600 else f"http_{status}"
