"""What a person can set: what decides the product, and how hard the web is asked for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from xvlm_data import __version__
from xvlm_data.images.decode import Limits

#: Names us, in every request and for the rules that servers write about us.
NAME = "xvlm"
USER_AGENT = f"{NAME}/{__version__} (builds image-text data sets; honours X-Robots-Tag)"


@dataclass(frozen=True)
class ProductOptions:
    """Everything that decides what a download gives; a run with other ones is another run.

    Attributes:
        limits: what an image may cost: bytes of its file, and pixels.
        shortest_side: images are made this small (pixels); None keeps the original bytes.
        quality: of the JPEG when they are.
        max_redirects: hops from one address to the next.
        ignore_noai: keep images whose server says that they are not for this.
        allow_private: ask private and loopback addresses too.
        shard_rows: input rows of a shard.
        limit: take only so many rows of the input.
    """

    limits: Limits = field(default_factory=lambda: Limits(max_bytes=20 << 20))
    shortest_side: int | None = None
    quality: int = 90
    max_redirects: int = 5
    ignore_noai: bool = False
    allow_private: bool = False
    shard_rows: int = 10_000
    limit: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Manners:
    """How hard the web is asked; may change from run to run.

    Attributes:
        user_agent: sent with every request.
        concurrency: requests at the same time.
        per_host: of these, to one host name.
        retries: further attempts after a failure that may pass.
        backoff: seconds before the first of them; each later one waits twice as long.
        max_wait: longest wait between attempts, the server's own Retry-After included.
        connect_timeout: seconds for name, connection and TLS.
        timeout: seconds for one whole request.
        min_speed: bytes a second, on average, below which a body is given up.
        host_failures: so many requests in a row that got no answer, and the host is given up; 0
            never does.
    """

    user_agent: str = USER_AGENT
    concurrency: int = 128
    per_host: int = 6
    retries: int = 2
    backoff: float = 1.0
    max_wait: float = 60.0
    connect_timeout: float = 10.0
    timeout: float = 60.0
    min_speed: float = 1024.0
    host_failures: int = 20
