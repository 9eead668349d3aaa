"""``tiles.csv``: one row per tile, what became of it and how long it took.

It grows beside the unfinished maps; a resumed run cuts it back to the tiles that its journal vouches for. Times are
milliseconds; a state is empty where health was not watched, a fault where there was none.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType

from engine.contract.errors import ResumeError, writing
from engine.contract.formats import MalformedError, from_csv, open_regular
from engine.contract.sensors import Scenario, Sensor
from engine.digested_file import DigestedFile, FilePrefix, check_mark
from engine.grid import Window
from engine.health.monitor import Fault, State, Verdict
from engine.job import TileReport, is_lost
from engine.live.frame_name import check_stamp

NAME = "tiles.csv"
STAGES = ("wait", "read", "queue", "infer", "write")
"""Where a tile's time goes, in order; :class:`engine.job.TileReport` says what each one is."""
COLUMNS = (
    *("tile", "frame", "row", "col", "height", "width", "scenario", "skipped", "switched"),
    *(f"{sensor}_{what}" for sensor in Sensor for what in ("state", "fault")),
    *(f"{stage}_ms" for stage in STAGES),
    "latency_ms",
)


@dataclass(frozen=True, kw_only=True)
class TileRow:
    """One row, typed."""

    tile: int
    frame: str
    target: Window
    scenario: Scenario | None
    """That of most pixels; None where nothing was inferred."""
    skipped: bool
    switched: bool
    verdicts: Mapping[Sensor, Verdict]
    """Without their details; empty where health was not watched."""
    stages_ms: Mapping[str, float]
    """By the names in :data:`STAGES`."""
    latency_ms: float

    @property
    def lost(self) -> bool:
        """See :func:`engine.job.is_lost`."""
        return is_lost(self.verdicts, skipped=self.skipped)


class TileLog:
    """Writes the rows. Use from one thread at a time.

    Args:
        path: the file; made anew, or cut back when resuming.
        keep: rows that a resumed run goes on behind; None starts anew.
        mark: what the journal vouches for, when resuming.

    Raises:
        OutputError: the system refuses.
        ResumeError: there are fewer than ``keep`` rows, or they are not those that the journal vouches for.
    """

    def __init__(self, path: Path, *, keep: int | None = None, mark: FilePrefix | None = None) -> None:
        self._path = path
        with writing(path):
            self._file = DigestedFile(path, None if keep is None else _kept_bytes(path, keep, mark))
            if keep is None:
                self._file.write(_line(COLUMNS))
                self._file.sync()

    @property
    def mark(self) -> FilePrefix:
        """What has been written, for the journal."""
        return self._file.mark

    def append(self, report: TileReport) -> None:
        """Add one tile's row."""
        target = report.tile.target
        verdicts = [report.verdicts.get(sensor) for sensor in Sensor]
        seconds = (*(getattr(report, f"{stage}_s") for stage in STAGES), report.latency_s)
        with writing(self._path):
            self._file.write(
                _line(
                    (
                        *(report.tile.index, report.frame, target.row, target.col, target.height, target.width),
                        *(report.scenarios[0] if report.scenarios else "", int(report.skipped), int(report.switched)),
                        *(word for v in verdicts for word in ((v.state, v.fault or "") if v else ("", ""))),
                        *(f"{each * 1e3:.3f}" for each in seconds),
                    )
                )
            )

    def flush(self) -> None:
        """Wait until every row is on the disk."""
        with writing(self._path):
            self._file.sync()

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        with writing(self._path):
            self._file.close()

    def __enter__(self) -> TileLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def row_of(report: TileReport) -> TileRow:
    """What the log keeps of a tile."""
    return TileRow(
        tile=report.tile.index,
        frame=report.frame,
        target=report.tile.target,
        scenario=report.scenarios[0] if report.scenarios else None,
        skipped=report.skipped,
        switched=report.switched,
        verdicts=report.verdicts,
        stages_ms={stage: getattr(report, f"{stage}_s") * 1e3 for stage in STAGES},
        latency_ms=report.latency_s * 1e3,
    )


def read_tile_log(path: Path) -> Iterator[TileRow]:
    """The rows of a ``tiles.csv``, one at a time.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """
    number = 1
    with open_regular(path) as file:
        try:
            for row in from_csv(file, COLUMNS):
                number += 1
                yield _row(row)
        except MalformedError as error:
            raise ValueError(f"{path}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}, row {number} is none of a tile log: {error}") from error


def _row(row: Mapping[str, str]) -> TileRow:
    if row["frame"]:
        check_stamp(row["frame"])
    verdicts = {}
    for sensor in Sensor:
        state, fault = row[f"{sensor}_state"], row[f"{sensor}_fault"]
        if state:
            verdicts[sensor] = Verdict(state=State(state), fault=Fault(fault) if fault else None)
    return TileRow(
        tile=_count(row["tile"]),
        frame=row["frame"],
        target=Window(**{name: _count(row[name]) for name in ("row", "col", "height", "width")}),
        scenario=Scenario(row["scenario"]) if row["scenario"] else None,
        skipped=row["skipped"] == "1",
        switched=row["switched"] == "1",
        verdicts=verdicts,
        stages_ms={stage: _ms(row[f"{stage}_ms"]) for stage in STAGES},
        latency_ms=_ms(row["latency_ms"]),
    )


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number < 1 << 31:
        raise ValueError(f"a count or place lies in 0..2**31, received {text[:40]}")
    return number


def _ms(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"a time is a finite number of milliseconds, received {text[:40]}")
    return number


def _line(fields: Iterable[object]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(fields)
    return buffer.getvalue().encode()


def _kept_bytes(path: Path, keep: int, mark: FilePrefix | None) -> int:
    """Size of the head line and the first ``keep`` rows."""
    if mark is not None:
        check_mark(path, mark)
    try:
        with path.open("rb") as file:
            kept = list(islice((len(line) for line in file if line.endswith(b"\n")), keep + 1))
    except FileNotFoundError as error:
        raise ResumeError(f"the unfinished run lacks {path}: start over with overwrite=True") from error
    if len(kept) < keep + 1:
        raise ResumeError(f"{path} has {len(kept) - 1} rows, the journal counts {keep}: start over with overwrite=True")
    return sum(kept)
