"""``tiles.csv``: one row per tile, what became of it and how long it took.

It grows beside the unfinished maps; a resumed run cuts it back to the tiles that its journal vouches for. Times are
milliseconds; a state is empty where health was not watched, a fault where there was none.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType

from engine.contract.errors import ResumeError, writing
from engine.contract.sensors import Scenario, Sensor
from engine.grid import Window
from engine.health.monitor import Fault, State, Verdict
from engine.job import TileReport, is_lost

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

    Raises:
        OutputError: the system refuses.
        ResumeError: there are fewer than ``keep`` rows.
    """

    def __init__(self, path: Path, *, keep: int | None = None) -> None:
        self._path = path
        with writing(path):
            if keep is not None:
                _cut(path, keep)
            self._file = path.open("w" if keep is None else "a", encoding="utf-8", newline="")
            self._writer = csv.writer(self._file, lineterminator="\n")
            if keep is None:
                self._writer.writerow(COLUMNS)
                self._file.flush()

    def append(self, report: TileReport) -> None:
        """Add one tile's row."""
        target = report.tile.target
        verdicts = [report.verdicts.get(sensor) for sensor in Sensor]
        seconds = (*(getattr(report, f"{stage}_s") for stage in STAGES), report.latency_s)
        with writing(self._path):
            self._writer.writerow(
                (
                    *(report.tile.index, report.frame, target.row, target.col, target.height, target.width),
                    *(report.scenarios[0] if report.scenarios else "", int(report.skipped), int(report.switched)),
                    *(word for v in verdicts for word in ((v.state, v.fault or "") if v else ("", ""))),
                    *(f"{each * 1e3:.3f}" for each in seconds),
                )
            )

    def flush(self) -> None:
        """Wait until every row is on the disk."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        with writing(self._path):
            self._file.close()

    def __enter__(self) -> TileLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_tile_log(path: Path) -> Iterator[TileRow]:
    """The rows of a ``tiles.csv``, one at a time.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} must begin with the columns {', '.join(COLUMNS)}; found {reader.fieldnames}")
        for row in reader:
            yield _row(row)


def _row(row: Mapping[str, str]) -> TileRow:
    verdicts = {}
    for sensor in Sensor:
        state, fault = row[f"{sensor}_state"], row[f"{sensor}_fault"]
        if state:
            verdicts[sensor] = Verdict(state=State(state), fault=Fault(fault) if fault else None)
    return TileRow(
        tile=int(row["tile"]),
        frame=row["frame"],
        target=Window(**{name: int(row[name]) for name in ("row", "col", "height", "width")}),
        scenario=Scenario(row["scenario"]) if row["scenario"] else None,
        skipped=row["skipped"] == "1",
        switched=row["switched"] == "1",
        verdicts=verdicts,
        stages_ms={stage: float(row[f"{stage}_ms"]) for stage in STAGES},
        latency_ms=float(row["latency_ms"]),
    )


def _cut(path: Path, keep: int) -> None:
    """Drop what lies behind the first ``keep`` rows."""
    try:
        with path.open("rb") as file:
            kept = list(islice((len(line) for line in file if line.endswith(b"\n")), keep + 1))
    except FileNotFoundError as error:
        raise ResumeError(f"the unfinished run lacks {path}: start over with --overwrite") from error
    if len(kept) < keep + 1:
        raise ResumeError(f"{path} has {len(kept) - 1} rows, the journal counts {keep}: start over with --overwrite")
    with path.open("r+b") as file:
        file.truncate(sum(kept))
