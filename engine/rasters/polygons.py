"""Polygons of a class map: connected areas of one class, dissolved across blocks, in bounded memory.

The map is read in strips of whole rows. Each strip becomes a coverage (polygons that share their borders); an area that
reaches the next strip waits for its other parts and is joined with them. Only open areas are kept, and one of too many
corners is cut between two strips, so memory grows with the width of the map and not with its height.

Areas that are too small are given to their largest neighbour (GDAL's sieve) before they become polygons. Borders are
simplified with shapely's coverage simplification (Visvalingam-Whyatt), which moves a shared border once for both sides:
https://shapely.readthedocs.io/en/stable/reference/shapely.coverage_simplify.html. Borders between strips and at the
edge of the map stay where they are, and have a corner wherever areas meet on either side.
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

STRIP_PX = 1_000_000
"""Pixels of a strip: about 100 MB with its polygons."""
STRIPS_TALL = 4
"""A strip has at least so many times the rows that are read twice."""
MOST_CORNERS = 250_000
"""An area that waits with more is cut: joining takes about 125 bytes a corner."""
PROVENANCES = (Provenance.FULL, Provenance.MISSING_NDSM, Provenance.MISSING_RGIR)


@dataclass(frozen=True, kw_only=True)
class MapArea:
    """A connected area of one class, or a piece of a very large one."""

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
    corners: int

    def take(self, other: _Open) -> None:
        self.parts += other.parts
        self.sums += other.sums
        self.corners += other.corners

    def successor(self) -> _Open:
        """The same area, of which nothing has been seen yet."""
        return _Open(class_index=self.class_index, parts=[], sums=np.zeros_like(self.sums), corners=0)

    def close(self) -> MapArea:
        pixels, confidence, *counts = self.sums
        return MapArea(
            geometry=self.parts[0] if len(self.parts) == 1 else shapely.union_all(self.parts),
            class_index=self.class_index,
            pixels=int(pixels),
            confidence=confidence / pixels / 255,
            shares=tuple(count / pixels for count in counts),
        )


def areas(
    maps: MapReader, *, smallest_px: int = 1, tolerance_px: float = 0.0, strip_px: int = STRIP_PX
) -> Iterator[tuple[MapArea, int]]:
    """The areas of a map, those that end first first.

    An area of more than :data:`MOST_CORNERS` corners comes in pieces that meet between two strips.

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
    if smallest_px > 1:
        rows = max(rows, STRIPS_TALL * smallest_px)
    waiting: dict[int, _Open] = {}  # by identity in ``last``
    last = np.zeros(maps.width, np.int64)
    strips = _strips(maps, rows, smallest_px)
    above: _Strip | None = None
    strip, below = next(strips, None), next(strips, None)
    while strip is not None:
        bottom = strip.top + len(strip.classes)
        junctions = _junctions(strip, above, below)
        found, identities = _coverage(strip, junctions, tolerance_px, first_identity=int(last.max()) + 1)
        merged = _joined(last, identities[0], waiting | found)
        waiting |= found
        for one, into in merged.items():
            waiting[into].take(waiting.pop(one))
        names = np.unique(identities[-1])
        still = {merged.get(int(name), int(name)) for name in names if name}
        for name in [name for name in waiting if name not in still]:
            if (area := waiting.pop(name)).parts:  # not where it was cut and has no more
                yield area.close(), bottom
        for name, area in waiting.items():
            if area.corners > MOST_CORNERS:
                waiting[name] = area.successor()
                yield area.close(), bottom
        last = np.array([merged.get(int(name), int(name)) for name in identities[-1]])
        above, strip, below = strip, below, next(strips, None)
    while waiting:
        area = waiting.popitem()[1]
        if area.parts:
            yield area.close(), maps.height


@dataclass(frozen=True, kw_only=True)
class _Strip:
    """Some rows of the map, small areas given away: uint8 [rows, width] each."""

    top: int
    classes: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    provenance: NDArray[np.uint8]


def _strips(maps: MapReader, rows: int, smallest_px: int) -> Iterator[_Strip]:
    for top in range(0, maps.height, rows):
        bottom = min(top + rows, maps.height)
        # A small area has fewer rows than pixels: with so many more rows it is seen whole from both strips.
        first, end = max(0, top - smallest_px), min(maps.height, bottom + smallest_px)
        around = maps.read(Window(row=first, col=0, height=end - first, width=maps.width))
        classes = around["classes"]
        smallest = min(smallest_px, classes.size - 1)  # GDAL takes no more
        if smallest > 1:
            classes = features.sieve(classes, smallest, mask=classes != NODATA_CLASS, connectivity=4)
        core = slice(top - first, bottom - first)
        yield _Strip(
            top=top, classes=classes[core], confidence=around["confidence"][core], provenance=around["provenance"][core]
        )


def _coverage(
    strip: _Strip, junctions: NDArray[np.bool_], tolerance_px: float, *, first_identity: int
) -> tuple[dict[int, _Open], NDArray[np.int64]]:
    """The areas of a strip by identity, and the identity of each pixel [rows, width]; 0 where there is no data.

    Args:
        strip: the rows.
        junctions: see :func:`_junctions`.
        tolerance_px: see :func:`areas`.
        first_identity: from here on they are counted.
    """
    classes, confidence, provenance = strip.classes, strip.confidence, strip.provenance
    shapes = list(features.shapes(classes, connectivity=4))  # nodata as well: its borders are shared too
    polygons = _noded(shapely.from_geojson([_geojson(shape) for shape, _ in shapes]), junctions)
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
    polygons = shapely.transform(shapely.make_valid(polygons), lambda xy: xy + np.array([0, strip.top]))
    seen = values != NODATA_CLASS
    identities = np.where(np.concatenate([[False], seen])[identities], identities + first_identity, 0)
    found = {
        number + 1 + first_identity: _Open(
            class_index=int(values[number]),
            parts=[polygons[number]],
            sums=sums[number],
            corners=shapely.get_num_coordinates(polygons[number]),
        )
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


def _junctions(strip: _Strip, above: _Strip | None, below: _Strip | None) -> NDArray[np.bool_]:
    """Which pixels' corners are corners of all areas around them, bool [rows + 1, width + 1].

    GDAL's polygons lack those on a straight border at whose other side two areas meet. Between strips every change on
    either side counts, for an area may be cut there.
    """
    classes = strip.classes
    first = classes[:1] if above is None else above.classes[-1:]
    last = classes[-1:] if below is None else below.classes[:1]
    padded = np.concatenate([first, classes, last])
    across = padded[:, 1:] != padded[:, :-1]
    down = padded[1:] != padded[:-1]
    # Of the four borders that end in a corner two show a straight line or a turn, three and four a junction.
    meet = across[1:] + across[:-1].astype(np.uint8) + down[:, 1:] + down[:, :-1]
    junctions = np.zeros((len(classes) + 1, classes.shape[1] + 1), np.bool_)
    junctions[:, 1:-1] = meet >= 3
    for row in (0, -1):
        junctions[row, 1:-1] = across[row] | across[1 if row == 0 else -2]
    return junctions


def _noded(polygons: NDArray[np.object_], junctions: NDArray[np.bool_]) -> NDArray[np.object_]:
    """Polygons on pixels' edges, with a corner at each junction that their borders pass."""
    kind, corners, (rings, parts) = shapely.to_ragged_array(polygons)
    xy = corners.astype(np.int64)
    height, width = junctions.shape
    by_row = np.flatnonzero(junctions)
    by_column = np.flatnonzero(junctions.T)
    step = np.sign(np.diff(xy, axis=0))
    step[rings[1:-1] - 1] = 0  # from one ring to the next
    before = np.zeros(len(xy), np.int64)
    """Junctions between a corner and the next one, and where they stand in ``by_row`` or ``by_column``."""
    places = np.zeros(len(xy), np.int64)
    for axis, found, scale in ((0, by_row, width), (1, by_column, height)):
        edges = np.flatnonzero(step[:, axis])
        line = xy[edges, 1 - axis] * scale
        ends = np.sort(np.stack([xy[edges, axis], xy[edges + 1, axis]]), axis=0)
        places[edges] = np.searchsorted(found, line + ends[0], side="right")
        before[edges] = np.searchsorted(found, line + ends[1], side="left") - places[edges]
    at = np.arange(len(xy)) + np.concatenate([[0], np.cumsum(before)[:-1]])
    noded = np.empty((len(xy) + int(before.sum()), 2), np.float64)
    noded[at] = xy
    edge = np.repeat(np.arange(len(xy)), before)
    inner = np.ones(len(noded), np.bool_)
    inner[at] = False
    order = np.flatnonzero(inner) - at[edge] - 1
    for axis, found, scale in ((0, by_row, width), (1, by_column, height)):
        mine = step[edge, axis] != 0 if len(edge) else np.zeros(0, np.bool_)
        of = edge[mine]
        turned = np.where(step[of, axis] > 0, order[mine], before[of] - 1 - order[mine])
        values = np.empty((len(of), 2))
        values[:, axis] = found[places[of] + turned] % scale
        values[:, 1 - axis] = xy[of, 1 - axis]
        noded[np.flatnonzero(inner)[mine]] = values
    moved = np.append(at, len(noded))[rings]
    return np.asarray(shapely.from_ragged_array(kind, noded, (moved, parts)))
