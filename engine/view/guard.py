"""Who gets in, and what a browser may do with what it gets."""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "gemmnet-view"
COOKIE_S = 30 * 24 * 3600
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Nothing from anywhere else, nothing inline, in nobody's frame."""
LONGEST_PATH = 1000
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Guard:
    """Around the whole application: reads only, by whoever may, under a strict content policy.

    Args:
        app: what is guarded.
        token: browsers must show it once, as ``?token=``; programs in each request, as ``Authorization: Bearer``. None
            lets this machine in, under its own name alone, so that no page of the web can ask for it by another.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (self._refusal(scope) or self._app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("read only\n", 405, {"Allow": "GET, HEAD"})
        if len(scope["path"]) > LONGEST_PATH:  # of numbers, Python reads no longer ones
            return PlainTextResponse("there is no such address\n", 414)
        if self._token is None:
            name = headers.get("host", "").lower()
            if name.rpartition(":")[0] in LOOPBACK_NAMES or name in LOOPBACK_NAMES:
                return None
            return PlainTextResponse("this machine is served as localhost alone\n", 421)
        shown = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if shown is not None and self._known(shown[0]):
            welcome = RedirectResponse(f"/{scope['path'].lstrip('/')}", 303)  # never to another host
            welcome.set_cookie(COOKIE, self._token, max_age=COOKIE_S, httponly=True, samesite="strict")
            return welcome
        if self._known(_cookie(headers)) or self._known(headers.get("authorization", "").removeprefix("Bearer ")):
            return None
        return PlainTextResponse("open the address that the run printed: it ends in ?token=...\n", 401)

    def _known(self, token: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(token.encode(), self._token.encode())


def _cookie(headers: Headers) -> str:
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""
