"""Every exception this project raises on purpose, and the exit code each one ends a command with.

::

    EngineError                  1   anything below; never raised itself
    ├── UsageError               2   options that contradict each other
    ├── InputError               3   a sensor raster cannot be used
    │   ├── RasterOpenError          missing, unreadable or truncated file
    │   │   └── RasterSilentError        its disk or server gives no answer
    │   ├── RasterFormatError        wrong band count, dtype or unit
    │   └── GridError                rasters that do not overlap or cannot be aligned
    ├── OutputError              4   results cannot be written (exists, no space, no permission)
    ├── BundleError              5   the bundle cannot be trusted
    │   ├── ManifestError            manifest.json missing, malformed or of another schema
    │   ├── SignatureError           not signed by a trusted key, or older than the installation allows
    │   └── IntegrityError           a file's SHA-256 or size differs from the manifest
    ├── BackendError             6   no backend, or the backend failed
    │   ├── BackendUnavailableError  its library or device is not there
    │   ├── DeviceLostError          the device is lost to this process, whatever is opened anew
    │   └── GoldenMismatchError      it does not reproduce the golden tile
    ├── ResumeError              7   the journal belongs to another run
    ├── TilesLostError           8   the maps are complete but for tiles that were dropped or could not be read
    ├── UnitsFailedError         9   of many rasters some could not be mapped; the others are
    └── InterruptedRunError    130   Ctrl-C or SIGTERM; the journal is on disk

Foreign exceptions are translated at one place per boundary (rasterio in :mod:`engine.rasters`, each inference library
in its own :mod:`engine.backends` file, every format of text or arrays in :mod:`engine.contract.formats`) with the cause
kept as ``__cause__``. A message states the rule, what was received and the next step, in one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


def one_line(text: object, longest: int = 2000) -> str:
    """Text as one line that a terminal can show: a file name or a library's words may hold line breaks and controls.

    What cannot be printed is escaped, and the middle of what is longer than ``longest`` characters is left out.
    """
    line = " ".join(part.strip() for part in str(text).splitlines() if part.strip())
    if len(line) > longest:
        line = f"{line[: longest // 2]} … {line[-longest // 2 :]}"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


class EngineError(Exception):
    """Root of the tree. ``exit_code`` is what the process ends with when it reaches a command line."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(EngineError):
    """Options that contradict each other or miss a partner."""

    exit_code = 2


class InputError(EngineError):
    """A sensor raster cannot be used."""

    exit_code = 3


class RasterOpenError(InputError):
    """A raster is missing, unreadable or truncated."""


class RasterSilentError(RasterOpenError):
    """A raster's disk or server gives no answer within the deadline.

    Attributes:
        sensor: the name of whose; None where that is not known.
    """

    def __init__(self, message: str, sensor: str | None = None) -> None:
        super().__init__(message)
        self.sensor = sensor


class RasterFormatError(InputError):
    """A raster's band count, dtype or unit is not what the sensor delivers."""


class GridError(InputError):
    """Rasters do not overlap or cannot be brought onto one grid."""


class OutputError(EngineError):
    """Results cannot be written: they exist, the disk is full, or the folder is not writable."""

    exit_code = 4


class BundleError(EngineError):
    """The bundle cannot be trusted."""

    exit_code = 5


class ManifestError(BundleError):
    """``manifest.json`` is missing, malformed or of another schema version."""


class SignatureError(BundleError):
    """A bundle is not signed by a key that this installation trusts, or older than it allows."""


class IntegrityError(BundleError):
    """A bundle file's size or SHA-256 differs from the manifest."""


class BackendError(EngineError):
    """The inference library failed."""

    exit_code = 6


class BackendUnavailableError(BackendError):
    """The inference library or its device is not there."""


class DeviceLostError(BackendError):
    """The device's context is corrupted: every further call fails until the process ends.

    CUDA calls such errors sticky; ``code`` is the ``CUresult``.
    """

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class GoldenMismatchError(BackendError):
    """A backend does not reproduce the bundle's golden tile: the files are whole, so the library is wrong here."""


class ResumeError(EngineError):
    """The journal in the output folder belongs to another run."""

    exit_code = 7


class TilesLostError(EngineError):
    """The maps are published, but some tiles hold no data: they were dropped, or no sensor could be used."""

    exit_code = 8


class UnitsFailedError(EngineError):
    """Of a list of rasters some could not be mapped; the maps of the others are published."""

    exit_code = 9


class InterruptedRunError(EngineError):
    """The run was stopped by a signal; ``--resume`` continues it."""

    exit_code = 130


@contextmanager
def writing(path: Path, remedy: str = "check free space and permissions, or choose another folder") -> Iterator[None]:
    """Around what writes to a path.

    Raises:
        OutputError: the system refuses; ``remedy`` is the next step.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): {remedy}") from error
