"""How a measurement ends, for the commands of this folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from engine.contract.errors import EngineError, InterruptedRunError


def exit_code_of(measure: Callable[[], int | None]) -> int:
    """Measure; its answer or 0 when it is done, an error's own code and a line to stderr when not, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        return measure() or 0
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return InterruptedRunError.exit_code
