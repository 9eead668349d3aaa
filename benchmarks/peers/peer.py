"""What a library looks like to the rounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Inputs

Classes = NDArray[np.uint8]
"""The most probable class, [T, T] of a tile or [H, W] of a raster."""
Take = Callable[[int, Classes], None]
"""Told the number of a tile and its classes, from any thread; they must be copied to be kept."""


class Peer(ABC):
    """A network ready in a library."""

    library: str
    """Name and version."""

    @abstractmethod
    def infer(self, inputs: Inputs) -> Classes:
        """One tile, waited for."""

    def infer_each(self, tiles: Iterable[Inputs], take: Take) -> None:
        """Many tiles, as many at a time as the library does by itself: here, one after the other."""
        for number, inputs in enumerate(tiles):
            take(number, self.infer(inputs))

    def close(self) -> None:
        """Let go of threads and memory; a second call does nothing."""
        return
