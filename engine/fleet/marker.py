"""``unit.json``: proof that the maps of a unit are whole, and what they are, so that nobody has to open them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from engine.contract.formats import MalformedError, from_json, open_regular
from engine.rasters.mosaic import bounds_in_degrees
from engine.record import GridUsed, RunRecord

NAME = "unit.json"
PIECE_BYTES = 1 << 20


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a unit's folder."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Published:
        """As it is on disk now.

        Raises:
            OSError, MalformedError: it cannot be read.
        """
        with open_regular(path) as stream:
            digest, size = hashlib.sha256(), 0
            while piece := stream.read(PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
        return cls(size_bytes=size, sha256=digest.hexdigest())


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """A unit that is done."""

    unit: str
    key: str
    """See :func:`engine.fleet.units.unit_key`."""
    version: str
    """Of this package."""
    bundle: str
    """SHA-256 of its manifest."""
    files: dict[str, Published]
    published_utc: str
    worker: str
    """Host and process."""
    seconds: float
    """From opening its rasters to having its maps."""
    mpx: float
    tiles: int
    tiles_lost: int
    grid: GridUsed
    degrees: tuple[float, float, float, float] | None
    """West, south, east, north of the map in WGS 84; None where it is not georeferenced."""
    class_pixels: dict[str, int]
    """None of them where no sensor saw anything."""

    @property
    def incomplete(self) -> bool:
        """Whether tiles were lost, or there was nothing to see at all."""
        return self.tiles_lost > 0 or not any(self.class_pixels.values())

    @classmethod
    def of(cls, unit: str, *, key: str, record: RunRecord, folder: Path, worker: str, seconds: float) -> Marker:
        """Of a run that ended in ``folder``.

        Raises:
            OSError: a file cannot be read.
        """
        assert record.grid is not None
        return cls(
            unit=unit,
            key=key,
            version=record.version,
            bundle=record.bundle.sha256,
            files={path.name: Published.of(path) for path in sorted(folder.iterdir()) if path.is_file()},
            published_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            worker=worker,
            seconds=round(seconds, 3),
            mpx=record.grid.width * record.grid.height / 1e6,
            tiles=record.tiling.tiles or 0,
            tiles_lost=record.tiles_lost,
            grid=record.grid,
            degrees=bounds_in_degrees(record.grid),
            class_pixels=dict(record.result.class_pixels),
        )

    @classmethod
    def read(cls, content: bytes) -> Marker | None:
        """What :meth:`encode` made; None of anything else."""
        try:
            return from_json(content, cls)
        except MalformedError:
            return None

    def encode(self) -> bytes:
        """As a file holds it."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def whole(self, folder: Path) -> bool:
        """Whether every file in ``folder`` is as it was published."""
        try:
            return all(Published.of(folder / name) == published for name, published in self.files.items())
        except (OSError, MalformedError):
            return False
