"""``frames.jsonl`` of a live run: one line for each frame that has been dealt with, in the order in which they were.

It grows while the flight lasts. A resumed flight goes on behind the last line that its journal vouches for, and leaves
the frames above it alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from engine.contract.errors import ResumeError, writing
from engine.contract.formats import MalformedError, from_json, open_regular
from engine.contract.sensors import Scenario, Sensor
from engine.digested_file import DigestedFile, FilePrefix, check_mark
from engine.health.monitor import Absent, State, Verdict
from engine.live.frame_name import check_stamp

NAME = "frames.jsonl"


@dataclass(frozen=True, kw_only=True)
class FrameRecord:
    """One line: what became of a frame.

    Raises:
        ValueError: the stamp cannot name a folder, or a number is negative.
    """

    stamp: str
    files: Mapping[Sensor, str]
    """Names of the files that were read."""
    absent: Mapping[Sensor, Absent]
    """Sensors that delivered nothing, and why."""
    verdicts: Mapping[Sensor, Verdict]
    """The worst of each sensor in any tile; empty where the frame was dropped."""
    scenario: Scenario | None
    """That of most pixels; None where there is no map."""
    inferences: Mapping[Scenario, int]
    """Tiles that each graph was run on."""
    provenance_pixels: Mapping[str, int]
    """Pixels of the map by what they were mapped from."""
    tiles: int
    mapped: bool
    """Its maps are in place."""
    dropped: bool
    """It was left out because the maps were too far behind."""
    partner_wait_ms: float
    """From its first whole file to the moment it could go."""
    latency_ms: float
    """From that moment to its maps in place."""
    rasters: Mapping[Sensor, Mapping[str, Any]] = field(default_factory=dict)
    """What its rasters were, as :class:`engine.record.RasterUsed` holds it; of a raster run in run.json alone."""

    def __post_init__(self) -> None:
        if self.stamp:
            check_stamp(self.stamp)
        if self.tiles < 0:
            raise ValueError(f"tiles must not be negative, received {self.tiles}")


class FrameLog:
    """Writes the lines. Use from one thread at a time.

    Args:
        path: the file; made anew, or cut back when resuming.
        keep_tiles: lines that make up so many tiles are kept; None starts anew.
        mark: what the journal vouches for, when lines are kept.

    Raises:
        OutputError: the system refuses.
        ResumeError: a line to be kept is missing or damaged.
    """

    def __init__(self, path: Path, *, keep_tiles: int | None = None, mark: FilePrefix | None = None) -> None:
        self.path = path
        self.done: dict[str, frozenset[Sensor]] = {}
        """Stamps of the lines that were kept, and the sensors that delivered."""
        with writing(path):
            kept_bytes = None
            if keep_tiles is not None:
                if mark is not None:
                    check_mark(path, mark)
                self.done, kept_bytes = _kept(path, keep_tiles)
            self._file = DigestedFile(path, kept_bytes)

    @property
    def mark(self) -> FilePrefix:
        """What has been written, for the journal."""
        return self._file.mark

    def append(self, record: FrameRecord) -> None:
        """Add a line, and wait until it is on the disk."""
        with writing(self.path):
            self._file.write(msgspec.json.encode(record) + b"\n")
            self._file.sync()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> FrameLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_frame_log(path: Path) -> Iterator[FrameRecord]:
    """The lines of a ``frames.jsonl``, one at a time; a last line that was cut short is left out.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """
    with open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                try:
                    yield from_json(line, FrameRecord)
                except MalformedError as error:
                    raise ValueError(f"{path}, line {number} is no frame's record: {error}") from error


def worst(verdicts: Mapping[Sensor, Verdict], others: Mapping[Sensor, Verdict]) -> dict[Sensor, Verdict]:
    """The worse of two verdicts on each sensor, the first of two equals."""
    order = list(State)
    return {
        sensor: max(
            (each[sensor] for each in (verdicts, others) if sensor in each),
            key=lambda verdict: order.index(verdict.state),
        )
        for sensor in Sensor
        if sensor in verdicts or sensor in others
    }


def _kept(path: Path, keep_tiles: int) -> tuple[dict[str, frozenset[Sensor]], int]:
    """The lines that make up so many tiles, and their size."""
    kept: dict[str, frozenset[Sensor]] = {}
    tiles = size = lines = 0
    try:
        with path.open("rb") as file:
            for line in file:
                if tiles >= keep_tiles:
                    break
                record = from_json(line, FrameRecord)
                kept[record.stamp] = frozenset(record.files)
                tiles, size, lines = tiles + record.tiles, size + len(line), lines + 1
    except FileNotFoundError as error:
        raise ResumeError(f"the unfinished flight lacks {path}: start over with overwrite=True") from error
    except MalformedError as error:
        raise ResumeError(f"{path}, line {lines + 1} is damaged ({error}): start over with overwrite=True") from error
    if tiles != keep_tiles:
        raise ResumeError(f"{path} has frames of {tiles} tiles, the journal counts {keep_tiles}: pass overwrite=True")
    return kept, size
