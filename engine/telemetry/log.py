"""Log lines: plain for people, one JSON object each for collectors (``--log-format json``).

A JSON line holds ``ts`` (UTC, RFC 3339, milliseconds), ``level``, ``logger`` and ``message``, then the event's own
fields: whatever the call gave as ``extra``::

    log.warning("ndsm is dead: frozen", extra={"event": "sensor_state", "tile": 120, "sensor": "ndsm"})
    {"ts":"2026-01-31T12:00:00.123Z","level":"warning","logger":"engine.health","message":"ndsm is dead: frozen",
     "event":"sensor_state","tile":120,"sensor":"ndsm"}

``exception`` is added where there is one. The four names above cannot be overridden by a field.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import numpy as np

LogFormat = Literal["text", "json"]

_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record carries; everything else came with ``extra``."""


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON.

    Numpy scalars become numbers, not-a-number becomes null, and a value JSON has no form for becomes its text: a line
    is never lost because of what somebody logged.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # Libraries mark every record of the process with attributes of their own, as Ray does: those begin so.
        others = {name for name in vars(record) if name.startswith("_")}
        fields = {name: value for name, value in vars(record).items() if name not in _OWN_ATTRIBUTES | others}
        line = line | fields | line
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        try:
            return msgspec.json.encode(line, enc_hook=_plain).decode()
        except (TypeError, ValueError, RecursionError):  # odd keys, a file name that is no UTF-8, a cycle
            return msgspec.json.encode({name: _printable(value) for name, value in line.items()}).decode()


def configure(form: LogFormat, *, level: int | str) -> None:
    """Send every logger's records from ``level`` on to standard error, replacing handlers that are there.

    At DEBUG only our own loggers tell all; libraries would drown them.
    """
    formatter = JsonFormatter() if form == "json" else logging.Formatter("%(levelname)s %(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)  # of libraries: two lines each, and for developers
    logging.getLogger("py.warnings").setLevel(level if level == "DEBUG" else logging.ERROR)
    ours = logging.getLogger("engine")
    ours.setLevel(logging.NOTSET)
    if logging.getLogger().level < logging.INFO:
        ours.setLevel(level)
        logging.getLogger().setLevel(logging.INFO)


def _plain(value: object) -> Any:
    """A value that JSON has a form for."""
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def _printable(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()
