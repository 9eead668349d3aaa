"""Height above ground as it is often delivered: a surface model (DSM) and a terrain model (DTM), to be subtracted."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError

from engine.contract.errors import RasterFormatError
from engine.rasters.names import RasterName

log = logging.getLogger(__name__)

SWAPPED_BELOW_M = -0.5
"""A median difference below this is no noise of flat ground: DSM minus DTM is at least 0 but for noise."""
OBJECT_M = 1.0
"""What differs by more stands on the ground, or is an error."""
OBJECTS_SHARE = 0.02
"""Fewer objects tell nothing: pits and water, where a terrain model is filled, are below ground by right."""
TALL_M = 30.0
"""A median difference above this is rare even among tower blocks; geoid and ellipsoid lie up to 100 m apart."""


@dataclass(frozen=True, kw_only=True)
class HeightModels:
    """The two rasters whose difference is an nDSM: a file each, or a name that GDAL understands."""

    dsm: RasterName
    """Height of what is seen from above: roofs, crowns, ground."""
    dtm: RasterName | None
    """Height of the bare ground; None finds it below the DSM (:mod:`engine.rasters.ground_filter`)."""

    @property
    def files(self) -> tuple[RasterName, ...]:
        """Those there are."""
        return (self.dsm,) if self.dtm is None else (self.dsm, self.dtm)


def check_datums(models: HeightModels, dsm: CRS | None, dtm: CRS | None) -> None:
    """See that both heights count from the same surface, as far as their CRSs tell.

    Raises:
        RasterFormatError: they name different ones.
    """
    ours, theirs = vertical_datum(dsm), vertical_datum(dtm)
    if ours is None or theirs is None:
        if ours or theirs:
            known, unknown = (models.dsm, models.dtm) if ours else (models.dtm, models.dsm)
            log.warning(
                "heights of %s count from %s, and %s does not say from what its own do: they are taken to be alike",
                *(known, ours or theirs, unknown),
            )
        return
    if _letters(ours) != _letters(theirs):
        raise RasterFormatError(
            f"DSM and DTM must count heights from one surface; {models.dsm} counts from {ours}, {models.dtm} from "
            f"{theirs}: bring one of them to the other's with `gdalwarp -t_srs EPSG:horizontal+vertical`"
        )


def vertical_datum(crs: CRS | None) -> str | None:
    """What heights in a CRS count from; None where it does not tell.

    A CRS with three axes of its own counts from its ellipsoid (https://proj.org/en/stable/specifications/projjson.html).
    """
    if crs is None:
        return None
    try:
        told: Mapping[str, Any] = crs.to_dict(projjson=True)
    except CRSError:  # a CRS of no standard kind
        return None
    while "source_crs" in told:  # of one bound to another by a transformation
        told = told["source_crs"]
    for part in told.get("components", ()):
        while "source_crs" in part:
            part = part["source_crs"]
        if part["type"] == "VerticalCRS":
            name = str((part.get("datum") or part.get("datum_ensemble") or {}).get("name", ""))
            return None if _letters(name).startswith("unknown") or not name else name
    if len(told.get("coordinate_system", {}).get("axis", ())) == 3:
        base = told.get("base_crs", told)
        return f"the ellipsoid of {(base.get('datum') or base.get('datum_ensemble') or base)['name']}"
    return None


def check_difference(models: HeightModels, sample_m: NDArray[np.float32]) -> None:
    """See that a sample of DSM minus DTM can be heights above ground.

    Args:
        models: that they are of.
        sample_m: valid differences, in metres; any number of them.

    Raises:
        RasterFormatError: they are below ground for the most part.
    """
    if not sample_m.size:
        return
    median, told = float(np.median(sample_m)), f"{models.dsm} minus {models.dtm or 'its ground'}"
    objects = sample_m[np.abs(sample_m) > OBJECT_M]  # the median of a scene that is mostly bare ground is 0 either way
    below = float((objects < 0).mean()) if objects.size > OBJECTS_SHARE * sample_m.size else 0.0
    if median < SWAPPED_BELOW_M or below > 0.9:
        raise RasterFormatError(
            f"a DSM lies above its DTM; the median of {told} is {median:.2f} m, and {below:.0%} of what differs by "
            f"more than {OBJECT_M:g} m lies below ground: swap `dsm` and `dtm` if they were "
            "mixed up, else bring both to one vertical datum and one unit"
        )
    if median > TALL_M:
        log.warning("the median of %s is %.1f m: see that both count heights from the same datum", told, median)


def _letters(name: str) -> str:
    """A name as it is compared: releases of PROJ differ in capitals and accents, and in calling WGS 84 an ensemble."""
    return re.sub(r"[^a-z0-9]", "", name.casefold()).removesuffix("ensemble")
