"""What GDAL refuses to write becomes an :class:`~engine.contract.errors.OutputError`."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.contract.errors import OutputError
from engine.rasters.georeference import GDAL_ERRORS

_gdal_log = logging.getLogger("rasterio._env")


class _Listener(logging.Filter):
    """Hears what GDAL reports in a thread that writes; elsewhere it lets pass what would pass without it.

    It stays on the logger for good: to change a logger's level empties the caches of all loggers, and there is a write
    for every block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.local()
        self._level = _gdal_log.level

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the message of a failure; an error then says it once."""
        heard: list[str] | None = getattr(self.thread, "heard", None)
        if heard is not None:
            if "GDAL signalled an error" in record.msg:
                heard.append(record.getMessage())
            return False
        above = _gdal_log.parent.getEffectiveLevel() if _gdal_log.parent is not None else logging.WARNING
        return record.levelno >= (self._level or above)


_listener = _Listener()
_gdal_log.addFilter(_listener)


@contextmanager
def gdal_writing(path: Path) -> Iterator[None]:
    """Turn every failure to write into an OutputError.

    Where blocks are written late, when a dataset is closed or overviews are built, rasterio logs GDAL's errors as
    information and raises nothing: so the log is listened to.
    """
    if not _gdal_log.isEnabledFor(logging.INFO):
        _gdal_log.setLevel(logging.INFO)
    heard: list[str] = []
    before, _listener.thread.heard = getattr(_listener.thread, "heard", None), heard
    try:
        yield
        if heard:
            raise OSError(heard[0])
    # rasterio stumbles over its own error when a file it should update is no raster: TypeError
    except (*GDAL_ERRORS, OSError, TypeError) as error:
        raise OutputError(
            f"{path} cannot be written ({error}): check free space and permissions, or pass another `output`"
        ) from error
    finally:
        _listener.thread.heard = before


def settle(path: Path) -> None:
    """Wait until the file is on the disk: after the rename it stands for a finished run, power cut or not."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
