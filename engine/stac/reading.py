"""The JSON of an item or a catalogue, from a file or a server.

pystac would read it by itself, and wait without end for a server that says nothing.
"""

from __future__ import annotations

import time
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, url2pathname, urlopen

from engine.contract.errors import RasterOpenError, one_line
from engine.contract.formats import MalformedError, from_json, read_file
from engine.rasters.names import would_wait
from engine.version import own_version

SILENCE_S = 30.0
"""So long a server may say nothing."""
LIMIT_S = 120.0
"""In this time all of it must have come."""
LIMIT_BYTES = 64 << 20
"""Items have kilobytes, collections with a link for each item megabytes."""
STEP_BYTES = 64 << 10


def read_json(name: str, *, hint: str) -> dict[str, Any]:
    """The object that a file or a URL (http, https, file) holds.

    Args:
        name: of the file or the URL.
        hint: what to pass instead; ends the message of an error.

    Raises:
        RasterOpenError: it cannot be read, does not come in time or is no JSON object.
    """
    if would_wait(name):
        raise RasterOpenError(f"`stac` {name} must be a file, received a pipe, a socket or a device: {hint}")
    try:
        place = urlsplit(name)
        if place.scheme in ("http", "https"):
            content = _fetched(name)
        elif place.scheme != "file" and "://" in name:
            raise ValueError("it is neither a file nor a URL of http or https: fetch it first")
        else:
            content = read_file(Path(url2pathname(place.path) if place.scheme == "file" else name), LIMIT_BYTES)
        try:
            return from_json(content, dict[str, Any])
        except MalformedError as error:
            reason = f"it is no JSON object: {error}"
    except HTTPError as error:
        reason = f"the server answers {error.code} {error.reason}"
    except TimeoutError:
        reason = f"the server said nothing for {SILENCE_S:g} s, or not all in {LIMIT_S:g} s"
    except URLError as error:
        reason = f"the server cannot be reached: {error.reason}"
    except HTTPException as error:
        reason = f"{type(error).__name__}: {error}"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise RasterOpenError(f"`stac` {name} cannot be read ({one_line(reason)}): {hint}")


def _fetched(url: str) -> bytes:
    """What a server sends.

    Raises:
        TimeoutError: it does not come in time.
        OSError, HTTPException: it does not come at all.
        MalformedError: it is too long.
    """
    end, content = time.monotonic() + LIMIT_S, bytearray()
    request = Request(url, headers={"User-Agent": f"gemmnet-edge/{own_version()}"})
    try:
        with urlopen(request, timeout=SILENCE_S) as answer:
            while part := answer.read1(STEP_BYTES):
                content += part
                if len(content) > LIMIT_BYTES:
                    raise MalformedError(f"it is longer than {LIMIT_BYTES} bytes")
                if time.monotonic() > end:
                    raise TimeoutError
            if answer.length:  # ``read1`` ends quietly where the connection does
                raise OSError(f"the connection ended {answer.length} bytes before its end")
    except URLError as error:
        if isinstance(error.reason, TimeoutError):  # while it connects, or sends what it wants
            raise TimeoutError from error
        raise
    return bytes(content)
