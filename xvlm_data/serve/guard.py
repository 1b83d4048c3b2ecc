"""Who may ask: this machine's own pages, by the names that it is known by.

A page of another site must not read a manifest through its visitor's browser. Such a page can ask
under a name of its own that leads to 127.0.0.1 (DNS rebinding), so the Host header has to be one of
ours; and it can ask across sites, which browsers tell in headers that no page can set.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Without any referrer, browsers hide the origin of a form, too.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Refuses strangers, and tells browsers what pages of ours may do."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _name(host) not in self._hosts:
            refusal = PlainTextResponse("this server is not known by that name", 403)
            await refusal(scope, receive, send)
            return
        origin = headers.get("origin")
        # A link to the page may stand anywhere; the page itself says nothing of a manifest.
        linked = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        foreign &= not linked
        # "null" is what a page sends that hides where it comes from; none of ours does.
        foreign |= origin is not None and origin.partition("://")[2] != host
        if foreign:
            await PlainTextResponse("not for other sites", 403)(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, guarded)


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()
