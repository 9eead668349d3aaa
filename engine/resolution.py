"""At which ground sampling distance a raster is mapped: as it is, or resampled to what the model does best at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from engine.contract.bundle import Manifest
from engine.contract.errors import GridError, UsageError

Gsd: TypeAlias = 'Literal["auto", "off"] | float'
"""``auto``: the nearest to the raster's own in the bundle's range, finer if the raster is smaller than a tile; ``off``:
the raster's own; else metres."""

FARTHEST = 8.0
"""A tile is resampled by at most so much: beyond it would cover too much of a raster, or nearly nothing."""
TOLERANCE = 0.1
"""A raster so near to the bundle's range is mapped as it is: resampling blurs, and would gain nothing."""
SAME = 0.01


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """Ground sampling distances, in metres, at which rasters are mapped; one outside is resampled to the nearer end.

    Raises:
        UsageError: a number is not positive.
    """

    finest_m: float
    coarsest_m: float
    asked: bool = False
    """By the user, as one number that must be met."""

    def __post_init__(self) -> None:
        if not 0 < self.finest_m <= self.coarsest_m < math.inf:
            raise UsageError(f"`gsd` must be auto, off or a positive number of metres, received {self.finest_m:g}")

    @classmethod
    def of(cls, gsd: Gsd, manifest: Manifest) -> Resolution | None:
        """What an option asks of a bundle; None: every raster is mapped as it is."""
        if gsd == "off":
            return None
        if gsd != "auto":
            return cls(finest_m=float(gsd), coarsest_m=float(gsd), asked=True)
        if manifest.best_gsd_m is None:
            return None
        finest, coarsest = manifest.best_gsd_m
        return cls(finest_m=finest, coarsest_m=coarsest)

    def scale(self, gsd_m: float | None, smallest: float = 1.0) -> float:
        """Raster pixels on a side of a pixel that is mapped; 1: the raster is mapped as it is.

        Args:
            gsd_m: of the raster; None is not known.
            smallest: what makes the raster as large as a tile, where that is below 1. In one tile anyway, a small
                raster is mapped as fine as fills the tile: better than amid its own mirror image, and at no cost.

        Raises:
            GridError: the distance that was asked for cannot be met.
        """
        if gsd_m is None:
            if self.asked:
                raise GridError(
                    f"to be mapped at {self.finest_m:g} m a raster must say its ground sampling distance, and this one "
                    "does not: georeference it with `gdal_translate -a_srs -a_ullr`, or leave `gsd` away"
                )
            return 1.0
        scale = min(max(gsd_m, self.finest_m), self.coarsest_m) / gsd_m
        if not self.asked:
            scale = max(self.finest_m / gsd_m, min(scale, smallest))
        if abs(scale - 1) < (SAME if self.asked else TOLERANCE):
            return 1.0
        if self.asked and not 1 / FARTHEST <= scale <= FARTHEST:
            raise GridError(
                f"a raster of {gsd_m:.3g} m can be mapped at {gsd_m / FARTHEST:.3g} to {gsd_m * FARTHEST:.3g} m; "
                f"received {self.finest_m:g}: resample it with `gdalwarp -tr` first"
            )
        return min(max(scale, 1 / FARTHEST), FARTHEST)
