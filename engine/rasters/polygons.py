"""Polygons of a class map: connected areas of one class, dissolved across blocks, in bounded memory.

The map is read in strips of whole rows. Each strip becomes a coverage (polygons that share their borders); an area that
reaches the next strip waits for its other parts and is joined with them. Only open areas are kept, so memory grows with
the width of the map and with its largest area, not with its height.

Areas that are too small are given to their largest neighbour (GDAL's sieve) before they become polygons. Borders are
simplified with shapely's coverage simplification (Visvalingam-Whyatt), which moves a shared border once for both sides:
https://shapely.readthedocs.io/en/stable/reference/shapely.coverage_simplify.html. Borders between strips and at the
edge of the map stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import features
from shapely.geometry.base import BaseGeometry

from engine.contract.bundle import NODATA_CLASS
from engine.contract.sensors import Provenance
from engine.grid import Window
from engine.rasters.map_reader import MapReader

STRIP_PX = 16_000_000
"""Pixels of a strip: about 200 MB of arrays."""
PROVENANCES = (Provenance.FULL, Provenance.MISSING_NDSM, Provenance.MISSING_RGIR)


@dataclass(frozen=True, kw_only=True)
class Area:
    """A connected area of one class."""

    geometry: BaseGeometry
    """A valid polygon in pixels: x is the column, y the row."""
    class_index: int
    pixels: int
    """Before simplification."""
    confidence: float
    """Mean probability of its pixels, 0 to 1."""
    shares: tuple[float, ...]
    """Share of its pixels by :data:`PROVENANCES`, 0 to 1."""


@dataclass
class _Open:
    """An area that reaches the last row read so far."""

    class_index: int
    parts: list[BaseGeometry]
    sums: NDArray[np.float64]
    """Pixels, their confidence, and how many of each provenance."""

    def take(self, other: _Open) -> None:
        self.parts += other.parts
        self.sums += other.sums

    def close(self) -> Area:
        pixels, confidence, *counts = self.sums
        return Area(
            geometry=self.parts[0] if len(self.parts) == 1 else shapely.union_all(self.parts),
            class_index=self.class_index,
            pixels=int(pixels),
            confidence=confidence / pixels / 255,
            shares=tuple(count / pixels for count in counts),
        )


def areas(
    maps: MapReader, *, smallest_px: int = 1, tolerance_px: float = 0.0, strip_px: int = STRIP_PX
) -> Iterator[tuple[Area, int]]:
    """The areas of a map, those that end first first.

    Args:
        maps: of a finished run.
        smallest_px: smaller areas are given to their largest neighbour; 1 keeps all.
        tolerance_px: borders may move by about this many pixels; 0 keeps them on the pixels' edges.
        strip_px: pixels read at once.

    Yields:
        An area, and how many rows of the map have been read.

    Raises:
        RasterOpenError: a map is truncated or damaged.
    """
    rows = max(1, strip_px // maps.width)
    waiting: dict[int, _Open] = {}  # by identity in ``last``
    last = np.zeros(maps.width, np.int64)
    for top in range(0, maps.height, rows):
        bottom = min(top + rows, maps.height)
        found, identities = _strip(maps, top, bottom, smallest_px, tolerance_px, first_identity=int(last.max()) + 1)
        merged = _joined(last, identities[0], waiting | found)
        waiting |= found
        for one, into in merged.items():
            waiting[into].take(waiting.pop(one))
        names = np.unique(identities[-1])
        still = {merged.get(int(name), int(name)) for name in names if name}
        for name in [name for name in waiting if name not in still]:
            yield waiting.pop(name).close(), bottom
        last = np.array([merged.get(int(name), int(name)) for name in identities[-1]])
    for area in waiting.values():
        yield area.close(), maps.height


def _strip(
    maps: MapReader, top: int, bottom: int, smallest_px: int, tolerance_px: float, *, first_identity: int
) -> tuple[dict[int, _Open], NDArray[np.int64]]:
    """The areas of some rows by identity, and the identity of each pixel [rows, width]; 0 where there is no data."""
    # A small area has fewer rows than pixels: with so many more rows it is seen whole from both strips.
    above, below = max(0, top - smallest_px), min(maps.height, bottom + smallest_px)
    around = maps.read(Window(row=above, col=0, height=below - above, width=maps.width))
    core = slice(top - above, bottom - above)
    classes = around["classes"]
    if smallest_px > 1:
        classes = features.sieve(classes, smallest_px, mask=classes != NODATA_CLASS, connectivity=4)
    classes, confidence, provenance = classes[core], around["confidence"][core], around["provenance"][core]
    shapes = list(features.shapes(classes, connectivity=4))  # nodata as well: its borders are shared too
    polygons = shapely.from_geojson([_geojson(shape) for shape, _ in shapes])
    values = np.array([int(value) for _, value in shapes])
    identities: NDArray[np.int64] = features.rasterize(
        ((shape, number) for number, (shape, _) in enumerate(shapes, 1)), out_shape=classes.shape, dtype=np.int32
    ).astype(np.int64)
    sums = np.stack(
        [
            np.bincount(identities.ravel(), weights, len(shapes) + 1)[1:]
            for weights in (None, confidence.ravel(), *((provenance == each).ravel() for each in PROVENANCES))
        ],
        axis=1,
    )
    if tolerance_px:
        # Its tolerance is the square root of the smallest triangle's area that stays.
        polygons = shapely.coverage_simplify(polygons, tolerance_px, simplify_boundary=False)
    polygons = shapely.transform(shapely.make_valid(polygons), lambda xy: xy + np.array([0, top]))
    seen = values != NODATA_CLASS
    identities = np.where(np.concatenate([[False], seen])[identities], identities + first_identity, 0)
    found = {
        number + 1 + first_identity: _Open(class_index=int(values[number]), parts=[polygons[number]], sums=sums[number])
        for number in np.flatnonzero(seen).tolist()
    }
    return found, identities


def _joined(above: NDArray[np.int64], below: NDArray[np.int64], known: dict[int, _Open]) -> dict[int, int]:
    """Which areas of two neighbouring rows are one: identity to the identity that it becomes part of."""
    parent: dict[int, int] = {}

    def root(name: int) -> int:
        while name in parent:
            name = parent[name]
        return name

    for pair in np.unique(np.stack([above, below], axis=1), axis=0):
        one, other = int(pair[0]), int(pair[1])
        if one and other and known[one].class_index == known[other].class_index:
            first, second = sorted((root(one), root(other)))
            if first != second:
                parent[second] = first
    return {name: root(name) for name in parent}


def _geojson(shape: dict[str, Any]) -> str:
    rings = ",".join("[" + ",".join(f"[{x:.0f},{y:.0f}]" for x, y in ring) + "]" for ring in shape["coordinates"])
    return f'{{"type":"Polygon","coordinates":[{rings}]}}'
