"""Server-sent events: all of a run when a browser comes, then what is new; what it is too slow for is left out.

A browser has no queue here. It has a place in the flight's own record of the last tiles: one that falls behind finds
more at once when it reads on, and one that falls behind the record gets a new snapshot. Whoever does not read at all is
hung up on; a browser then comes again by itself (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from engine.view.flight import ShownFlight

MAX_BROWSERS = 64
BEAT_S = 0.5
"""Shortest time between two events for a browser."""
HEARTBEAT_S = 5.0
"""So often a browser hears that the server is there."""
PATIENCE_S = 20.0
"""A browser that takes nothing for so long is hung up on."""


class Events:
    """The ASGI application of ``/events``.

    Args:
        flight: what is told.
        ended: set when no more will come.
    """

    def __init__(self, flight: ShownFlight, ended: asyncio.Event) -> None:
        self._flight, self._ended = flight, ended
        self.browsers = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell one browser until it leaves, or the run's page ends."""
        if self.browsers >= MAX_BROWSERS:
            await PlainTextResponse(f"{MAX_BROWSERS} browsers look on already\n", 503)(scope, receive, send)
            return
        self.browsers += 1
        telling = asyncio.create_task(self._tell(scope, send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.browsers -= 1
            for task in (telling, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError, OSError, TimeoutError):
                    await task

    async def _tell(self, scope: Scope, send: Send) -> None:
        flight = self._flight
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await _soon(send, {"type": "http.response.start", "status": 200, "headers": headers})
        await _soon(send, {"type": "http.response.body", "body": b"retry: 1000\n\n", "more_body": True})
        seen = self._place(Headers(scope=scope).get("last-event-id", ""))
        silent_s = HEARTBEAT_S
        while True:
            over = self._ended.is_set()
            if seen != flight.sequence:
                news = None if seen is None else flight.news(seen)
                kind = "snapshot" if news is None else "update"
                text = event(kind, flight.snapshot() if news is None else news, f"{flight.identity}-{flight.sequence}")
                seen, silent_s = flight.sequence, 0.0
                await _soon(send, {"type": "http.response.body", "body": text, "more_body": True})
            elif silent_s >= HEARTBEAT_S:
                silent_s = 0.0
                await _soon(send, {"type": "http.response.body", "body": b": here\n\n", "more_body": True})
            if over:
                break
            silent_s += BEAT_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), BEAT_S)
        await _soon(send, {"type": "http.response.body", "body": event("end", {}, ""), "more_body": False})

    def _place(self, last: str) -> int | None:
        """Where a browser that comes again has stopped; None if it is new, or the server is."""
        identity, _, sequence = last.rpartition("-")
        return int(sequence) if identity == self._flight.identity and sequence.isdecimal() else None


def event(kind: str, data: Any, identity: str) -> bytes:
    """One event; JSON has no line breaks."""
    head = f"id: {identity}\nevent: {kind}\ndata: " if identity else f"event: {kind}\ndata: "
    return head.encode() + msgspec.json.encode(data) + b"\n\n"


async def _soon(send: Callable[[Message], Awaitable[None]], message: Message) -> None:
    """Send, or give the browser up."""
    await asyncio.wait_for(send(message), PATIENCE_S)


async def _gone(receive: Receive) -> None:
    """Until the browser has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
