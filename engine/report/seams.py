"""Do tiles show in the map? Disagreement across tile borders, held against the same measure inside the tiles.

Take two pixels side by side, both mapped. Their classes differ or agree; how often they differ, a few per cent, is a
property of the scene. Across an invisible border they differ as often as anywhere else. So for every border segment
between two tiles::

    observed = pairs across the segment whose classes differ
    expected = pairs across the segment * share of differing pairs inside its two tiles, in the same direction
    score    = sum of observed / sum of expected          1: cannot be seen; 2: twice the edges there should be

Pairs mapped from the same sensors tell about tiling: halo, padding, cropping. Pairs mapped from different sensors lie
where the engine was switched; there the lost information shows too. Pairs of which a pixel is not mapped do not count.
Where tiles cross-fade, the border is the middle of the fade.

The interval is that of a ratio of sums over segments (Cochran, Sampling Techniques, 3rd edition, 1977, chapter 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.contract.sensors import Provenance
from engine.grid import TileGrid, Window
from engine.rasters.map_reader import MapReader

_ACROSS = 2
"""Directions: pairs along a row, pairs along a column."""


@dataclass(frozen=True, kw_only=True)
class SeamScore:
    """Borders of one kind, all together. Scores of several maps can be added."""

    segments: int = 0
    """Borders between two tiles that have such pairs."""
    pairs: int = 0
    differing: int = 0
    expected: float = 0.0
    """Pairs that would differ if the borders were lines like any other."""
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Sums over segments, for the interval: observed squared, observed times expected, expected squared."""

    def __add__(self, other: SeamScore) -> SeamScore:
        first, second, third = (mine + its for mine, its in zip(self.squares, other.squares, strict=True))
        return SeamScore(
            segments=self.segments + other.segments,
            pairs=self.pairs + other.pairs,
            differing=self.differing + other.differing,
            expected=self.expected + other.expected,
            squares=(first, second, third),
        )

    @property
    def score(self) -> float:
        """Observed over expected; NaN where nothing is to be expected."""
        return self.differing / self.expected if self.expected > 0 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The score lies in here with 95 % confidence; NaN for fewer than two segments."""
        if self.segments < 2 or not self.expected > 0:
            return math.nan, math.nan
        observed, product, expected = self.squares
        residual = observed - 2 * self.score * product + self.score**2 * expected
        reach = 1.96 * math.sqrt(max(0.0, residual) * self.segments / (self.segments - 1)) / self.expected
        return max(0.0, self.score - reach), self.score + reach


@dataclass(frozen=True, kw_only=True)
class SeamSurvey:
    """What one pass over the maps tells. Surveys of several maps can be added."""

    same_sensors: SeamScore
    other_sensors: SeamScore
    interior_pairs: int
    interior_differing: int
    confidence: NDArray[np.int64]
    """Pixels by provenance and confidence, [4, 256]."""

    def __add__(self, other: SeamSurvey) -> SeamSurvey:
        return SeamSurvey(
            same_sensors=self.same_sensors + other.same_sensors,
            other_sensors=self.other_sensors + other.other_sensors,
            interior_pairs=self.interior_pairs + other.interior_pairs,
            interior_differing=self.interior_differing + other.interior_differing,
            confidence=self.confidence + other.confidence,
        )


def survey(maps: MapReader, grid: TileGrid, *, progress: Callable[[float], None] = lambda _: None) -> SeamSurvey:
    """Look at every pixel once, tile by tile; memory is that of one tile and a hundred bytes for each other.

    Args:
        maps: of the grid's size.
        grid: the tiles they were made of.
        progress: told the share that is done, 0..1.

    Raises:
        RasterOpenError: a map is damaged.
        ValueError: the maps have another size.
    """
    if (maps.height, maps.width) != (grid.height, grid.width):
        raise ValueError(f"the grid has {grid.height} x {grid.width} px, the maps {maps.height} x {maps.width}")
    rows, cols = grid.rows, grid.cols
    inside = np.zeros((2, _ACROSS, rows.count, cols.count), np.int64)
    """Pairs, and those of them that differ."""
    border = np.zeros((2, 2, _ACROSS, rows.count, cols.count), np.int64)
    """The same of the border to the next tile, by kind: mapped from the same sensors, from different ones."""
    confidence = np.zeros((len(Provenance), 256), np.int64)
    for row, col in np.ndindex(rows.count, cols.count):
        top, left = rows.boundary(row), cols.boundary(col)
        height, width = rows.boundary(row + 1) - top, cols.boundary(col + 1) - left
        more_rows, more_cols = int(row + 1 < rows.count), int(col + 1 < cols.count)
        seen = maps.read(Window(row=top, col=left, height=height + more_rows, width=width + more_cols))
        classes, source = seen["classes"], seen["provenance"]
        both = source[:height, :width].astype(np.uint16) << 8 | seen["confidence"][:height, :width]
        confidence += np.bincount(both.ravel(), minlength=confidence.size).reshape(confidence.shape)
        for way, (class_map, source_map, size, more) in enumerate(
            (
                (classes[:height], source[:height], width, more_cols),
                (classes[:, :width].T, source[:, :width].T, height, more_rows),
            )
        ):
            same, other, differ = _pairs(class_map, source_map)
            within, across = np.s_[:, : size - 1], np.s_[:, size - 1 :]
            inside[:, way, row, col] = _count(same[within], differ[within])
            if more:
                for kind, counted in enumerate((same, other)):
                    border[:, kind, way, row, col] = _count(counted[across], differ[across])
        progress((row * cols.count + col + 1) / (rows.count * cols.count))
    same_sensors, other_sensors = (_score(inside, border[:, kind]) for kind in range(2))
    return SeamSurvey(
        same_sensors=same_sensors,
        other_sensors=other_sensors,
        interior_pairs=int(inside[0].sum()),
        interior_differing=int(inside[1].sum()),
        confidence=confidence,
    )


def _pairs(
    classes: NDArray[np.uint8], source: NDArray[np.uint8]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Of all neighbours along rows, bool [h, w - 1] each: same sensors, other sensors, classes differ."""
    first, second = source[:, :-1], source[:, 1:]
    mapped = (first != Provenance.NONE) & (second != Provenance.NONE)
    same = first == second
    return mapped & same, mapped & ~same, classes[:, :-1] != classes[:, 1:]


def _count(counted: NDArray[np.bool_], differ: NDArray[np.bool_]) -> tuple[int, int]:
    return int(np.count_nonzero(counted)), int(np.count_nonzero(counted & differ))


def _score(inside: NDArray[np.int64], border: NDArray[np.int64]) -> SeamScore:
    """Observed against expected; ``inside`` and ``border`` are [2, across, rows, cols], pairs and differing ones."""
    # the tile behind the border: one to the right, one below
    beyond = np.stack([np.roll(inside[:, 0], -1, axis=2), np.roll(inside[:, 1], -1, axis=1)], axis=1)
    pairs, differing = inside + beyond
    share = np.divide(differing, pairs, out=np.zeros(pairs.shape), where=pairs > 0)
    some = (border[0] > 0) & (pairs > 0)
    observed, expected = border[1][some].astype(np.float64), (border[0] * share)[some]
    return SeamScore(
        segments=len(observed),
        pairs=int(border[0][some].sum()),
        differing=int(border[1][some].sum()),
        expected=float(expected.sum()),
        squares=(float(observed @ observed), float(observed @ expected), float(expected @ expected)),
    )
