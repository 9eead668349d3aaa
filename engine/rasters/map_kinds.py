"""The maps that a run writes: their values, palettes and tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.contract.bundle import NODATA_CLASS, ClassSpec
from engine.contract.sensors import PROVENANCE_LABELS, PROVENANCE_RGB, Provenance
from engine.probabilities import NODATA, STEPS

PROBABILITIES = "probabilities"
"""The map that is written when it is asked for."""


@dataclass(frozen=True, kw_only=True)
class MapKind:
    """One of the maps: uint8."""

    name: str
    nodata: int
    tags: Mapping[str, str]
    colours: Mapping[int, tuple[int, int, int]] | None
    labels: Mapping[int, str] = field(default_factory=dict)
    """Of the values that are no nodata, for the style; empty where the map has none."""
    bands: tuple[str, ...] = ()
    """What each holds; none is one band that holds what the map is called."""
    scale: float | None = None
    """What a value is multiplied by to be what it stands for."""
    creation: Mapping[str, str] = field(default_factory=dict)
    """Further creation options of the COG driver."""

    @property
    def count(self) -> int:
        """Bands."""
        return len(self.bands) or 1


def map_kinds(classes: Sequence[ClassSpec], *, probabilities: bool) -> tuple[MapKind, ...]:
    """What makes the maps readable without this project; order as in :meth:`MapWriter.write`.

    GDAL's own category names would need a side-car file, so that names are tags: ``CLASS_0=building``.
    """
    maps = (
        MapKind(
            name="classes",
            nodata=NODATA_CLASS,
            tags={f"CLASS_{index}": spec.name for index, spec in enumerate(classes)},
            colours={index: spec.rgb for index, spec in enumerate(classes)},
            labels={index: spec.name for index, spec in enumerate(classes)},
        ),
        MapKind(
            name="confidence",
            nodata=0,  # cannot occur on a mapped pixel: the largest of C probabilities is at least 1 / C
            tags={"CONFIDENCE": "largest class probability x 255, rounded"},
            colours=None,
        ),
        MapKind(
            name="provenance",
            nodata=Provenance.NONE,
            tags={f"PROVENANCE_{source.value}": label for source, label in PROVENANCE_LABELS.items()},
            colours={source.value: rgb for source, rgb in PROVENANCE_RGB.items()},
            labels={source.value: label for source, label in PROVENANCE_LABELS.items() if source},
        ),
    )
    if not probabilities:
        return maps
    return (
        *maps,
        MapKind(
            name=PROBABILITIES,
            nodata=NODATA,
            tags={"PROBABILITIES": f"class probability x {STEPS}, rounded"},
            colours=None,
            bands=tuple(spec.name for spec in classes),
            scale=1 / STEPS,
            creation={"PREDICTOR": "YES"},  # a fifth less
        ),
    )
