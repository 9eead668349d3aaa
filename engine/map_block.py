"""Finished pixels of a map, and how those of one tile are put together from the answers of several graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Output, Outputs
from engine.contract.bundle import NODATA_CLASS
from engine.contract.sensors import Provenance, Scenario
from engine.grid import Window
from engine.probabilities import as_bytes
from engine.resampling import RasterAnswer

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
    kinds, confidence = composed(source, inside, outputs, (Output.CLASSES, Output.CONFIDENCE))
    probabilities = None
    if classes:
        told = np.zeros((classes, *source.shape), np.float32)
        if outputs:
            (told,) = composed(source, inside, outputs, (Output.PROBABILITIES,))
        probabilities = as_bytes(told, source == Provenance.NONE)
    return MapBlock(window=window, classes=kinds, confidence=confidence, provenance=source, probabilities=probabilities)


def composed(
    source: NDArray[np.uint8], inside: tuple[slice, slice], outputs: Answers, wanted: Sequence[Output]
) -> list[NDArray[Any]]:
    """Outputs [..., h, w] of a window of a tile, each pixel by the scenario that ``source`` [h, w] names.

    Where it names none that answered, classes are nodata and the others 0.
    """
    lowest = source.min()
    sole = [answer for scenario, answer in outputs.items() if scenario.provenance == lowest]
    if sole and source.max() == lowest:  # the usual tile: nothing is copied
        return [sole[0][name][..., *inside] for name in wanted]
    return [_mixed(source, {s: out[name][..., *inside] for s, out in outputs.items()}, name) for name in wanted]


def _mixed(source: NDArray[np.uint8], by_scenario: Mapping[Scenario, NDArray[Any]], name: Output) -> NDArray[Any]:
    fill = NODATA_CLASS if name is Output.CLASSES else 0
    like = next(iter(by_scenario.values()), source)
    mixed = np.full(like.shape, fill, like.dtype)
    for scenario, values in by_scenario.items():
        np.copyto(mixed, values, where=source == scenario.provenance)
    return mixed
