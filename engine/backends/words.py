"""What a library says when it fails, in words for a user."""

from __future__ import annotations

import logging

from engine.contract.errors import one_line

log = logging.getLogger(__name__)

LONGEST = 300
_PREAMBLE = ("Exception from ",)
"""How lines begin that name a place in a library's sources."""


def said(error: BaseException) -> str:
    """The gist of a library's exception as one line; if it said more than that, all of it goes to the log at DEBUG."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    gist = one_line(" ".join(line for line in lines if not line.startswith(_PREAMBLE)) or type(error).__name__, LONGEST)
    if lines and lines != [gist]:
        log.debug("%s in full:\n%s", type(error).__name__, error)
    return gist
