"""Finished pixels of a map, and how those of one tile are put together from the answers of several graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Output, Outputs
from engine.contract.bundle import NODATA_CLASS
from engine.contract.sensors import Provenance, Scenario
from engine.grid import Window
from engine.probabilities import as_bytes
from engine.resampling import RasterAnswer

_T = TypeVar("_T", np.uint8, np.float32)
Answers = Mapping[Scenario, Outputs | RasterAnswer]
"""What each graph says of a tile, [..., S, S] at the raster's resolution."""


@dataclass(frozen=True, kw_only=True)
class MapBlock:
    """Finished pixels: ``classes``, ``confidence`` and ``provenance``, each uint8 [h, w]."""

    window: Window
    classes: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    provenance: NDArray[np.uint8]
    probabilities: NDArray[np.uint8] | None = None
    """uint8 [C, h, w], see :mod:`engine.probabilities`; None where nobody asked for them."""

    @property
    def layers(self) -> tuple[NDArray[np.uint8], ...]:
        """What there is, in the order of the maps."""
        three = (self.classes, self.confidence, self.provenance)
        return three if self.probabilities is None else (*three, self.probabilities)


def cropped(
    window: Window, inside: tuple[slice, slice], provenance: NDArray[np.uint8], outputs: Answers, classes: int = 0
) -> MapBlock:
    """Pixels as one tile maps them: ``window`` of the raster, ``inside`` of the tile's arrays.

    With the probabilities of so many ``classes``; 0 leaves them out.
    """
    source = provenance[inside]
    probabilities = None
    if classes:
        found = {s: out[Output.PROBABILITIES][:, *inside] for s, out in outputs.items()}
        nothing = np.zeros((classes, *source.shape), np.float32)
        probabilities = as_bytes(compose(source, found, 0) if found else nothing, source == Provenance.NONE)
    return MapBlock(
        window=window,
        classes=compose(source, {s: out[Output.CLASSES][inside] for s, out in outputs.items()}, NODATA_CLASS),
        confidence=compose(source, {s: out[Output.CONFIDENCE][inside] for s, out in outputs.items()}, 0),
        provenance=source,
        probabilities=probabilities,
    )


def compose(source: NDArray[np.uint8], by_scenario: Mapping[Scenario, NDArray[_T]], fill: int | float) -> NDArray[_T]:
    """Take each pixel of [..., h, w] from the scenario that ``source`` [h, w] names; ``fill`` where it names none."""
    lowest = source.min()
    whole = next((values for scenario, values in by_scenario.items() if scenario.provenance == lowest), None)
    if whole is not None and source.max() == lowest:
        return whole
    like = next(iter(by_scenario.values()), None)
    if like is None:
        return np.full(source.shape, fill, np.uint8)
    composed = np.full(like.shape, fill, like.dtype)
    for scenario, values in by_scenario.items():
        np.copyto(composed, values, where=source == scenario.provenance)
    return composed
