"""The calibration list: which tiles activation ranges are measured on, fixed by content and the same on every machine.

A range must have seen what the graph will see. Tiles are therefore chosen for coverage, not by chance: every class,
height band and brightness band that the data holds is in the list, rare ones first.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from calib.scenes import SceneTile, TileSample, in_hash_order

MIN_CLASS_SHARE = 0.005
"""Of a tile's pixels, for the tile to count as showing a class; a car lot has about this much."""
HEIGHT_EDGES_M = (2.0, 6.0, 12.0, 25.0)
"""Bands of a tile's tall things (95th percentile of height): bare, hedges, houses, blocks, towers."""
BRIGHTNESS_EDGES = (60.0, 90.0, 120.0, 150.0, 180.0)
"""Bands of a tile's mean digital number over all three optical bands."""


@dataclass(frozen=True, kw_only=True)
class CalibrationList:
    """Tiles in the order they were chosen.

    Raises:
        ValueError: it is empty.
    """

    tiles: tuple[SceneTile, ...]
    strata: tuple[tuple[str, ...], ...]
    """What each tile shows, see :func:`strata_of`."""
    available: dict[str, int]
    """In how many candidates each stratum was seen."""

    def __post_init__(self) -> None:
        if not self.tiles:
            raise ValueError("a calibration list needs at least one tile, received none")

    @property
    def covered(self) -> dict[str, int]:
        """In how many chosen tiles each stratum is seen, by the strata of the candidates."""
        chosen = Counter(name for names in self.strata for name in names)
        return {name: chosen[name] for name in self.available}

    @property
    def sha256(self) -> str:
        """Of the tiles' content, in order: two lists with one digest calibrate alike."""
        return digest_of(self.tiles)


def digest_of(tiles: Sequence[SceneTile]) -> str:
    """SHA-256 over the content of several tiles, in order."""
    return hashlib.sha256("".join(tile.sha256 for tile in tiles).encode()).hexdigest()


def strata_of(sample: TileSample, class_names: Sequence[str]) -> tuple[str, ...]:
    """What a tile shows: each class with a visible share, one height band and one brightness band.

    Args:
        sample: the tile.
        class_names: by index.
    """
    known = sample.labels[sample.known(len(class_names))]
    shares = np.bincount(known, minlength=len(class_names)) / sample.labels.size
    tall_m = float(np.percentile(sample.ndsm, 95))
    brightness = float(sample.rgir.mean())
    return (
        *(f"class {name}" for name, share in zip(class_names, shares, strict=True) if share >= MIN_CLASS_SHARE),
        f"height {_band(tall_m, HEIGHT_EDGES_M)} m",
        f"brightness {_band(brightness, BRIGHTNESS_EDGES)} DN",
    )


def choose(candidates: Sequence[SceneTile], count: int, class_names: Sequence[str]) -> CalibrationList:
    """The tiles that cover the most strata, rarest first.

    Greedy: the next tile is the one whose strata are chosen least so far; ties go by the hash of the tile's name, so
    that neither the file system's order nor a random generator plays a part.

    Args:
        candidates: tiles of calibration scenes.
        count: how many to choose; all if there are fewer.
        class_names: by index.
    """
    tiles = in_hash_order(candidates)
    strata = [
        strata_of(tile.read(), class_names)
        for tile in tqdm(tiles, desc="looking at tiles", unit="tile", leave=False, disable=None)
    ]
    seen: Counter[str] = Counter()
    chosen: list[int] = []
    left = set(range(len(tiles)))
    while left and len(chosen) < count:
        best = max(sorted(left), key=lambda i: sum(1 / (1 + seen[name]) ** 2 for name in strata[i]))
        left.remove(best)
        chosen.append(best)
        seen.update(strata[best])
    return CalibrationList(
        tiles=tuple(tiles[i] for i in chosen),
        strata=tuple(strata[i] for i in chosen),
        available=dict(sorted(Counter(name for names in strata for name in names).items())),
    )


def _band(value: float, edges: Sequence[float]) -> str:
    at = int(np.searchsorted(edges, value, side="right"))
    low = f"{edges[at - 1]:g}" if at else ""
    high = f"{edges[at]:g}" if at < len(edges) else ""
    return f"{low}..{high}"
