"""The maps of the frame under way, in memory that the run writes and the page's process reads."""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.contract.bundle import NODATA_CLASS
from engine.grid import Window
from engine.map_block import MapBlock

CANVAS_PX = 1 << 24
"""Of larger maps every 2nd, 4th, ... pixel is shown while they grow; 48 MiB, taken as they fill."""
LAYERS = 3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What part of a map a canvas holds: every ``step``-th row and column, a power of two."""

    height: int
    width: int
    step: int

    @classmethod
    def of(cls, height: int, width: int) -> Shape:
        """The finest of a map of that size that the canvas holds."""
        step = 1
        while -(-height // step) * -(-width // step) > CANVAS_PX:
            step *= 2
        return cls(height=height, width=width, step=step)

    @property
    def sampled(self) -> tuple[int, int]:
        """Rows and columns of the canvas."""
        return -(-self.height // self.step), -(-self.width // self.step)


class LiveCanvas:
    """Shared memory of :data:`CANVAS_PX` pixels and three layers.

    Args:
        descriptor: of the memory, from the process that made it; None makes it.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        size = LAYERS * CANVAS_PX
        self.descriptor = _memory(size) if descriptor is None else descriptor
        self._bytes = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)

    def layers(self, shape: Shape) -> NDArray[np.uint8]:
        """Classes, confidence and provenance of a map, uint8 [3, h, w]."""
        height, width = shape.sampled
        return self._bytes[: LAYERS * height * width].reshape(LAYERS, height, width)

    def clear(self, shape: Shape) -> None:
        """Begin a map in which nothing is mapped yet."""
        layers = self.layers(shape)
        layers[0], layers[1:] = NODATA_CLASS, 0

    def paint(self, shape: Shape, block: MapBlock) -> None:
        """Put finished pixels in their place."""
        place, pick = block.window.every(shape.step)
        for layer, values in zip(self.layers(shape), (block.classes, block.confidence, block.provenance), strict=True):
            layer[place] = values[pick]

    def read(self, layer: int, shape: Shape, window: Window, step: int) -> NDArray[np.uint8]:
        """Every ``step``-th pixel of a window of the map; one that the canvas lacks is its neighbour.

        Args:
            layer: 0 classes, 1 confidence, 2 provenance.
            window: inside the map; begins at multiples of ``step``.
            step: a power of two.
        """
        rows = np.arange(window.row, window.row + window.height, step) // shape.step
        cols = np.arange(window.col, window.col + window.width, step) // shape.step
        return np.ascontiguousarray(self.layers(shape)[layer][np.ix_(rows, cols)])

    def close(self) -> None:
        """Let go of the descriptor; the memory goes with the last process that has it. A second call does nothing."""
        if self.descriptor >= 0:  # the number may be another file's by now
            os.close(self.descriptor)
            self.descriptor = -1


def _memory(size: int) -> int:
    """A descriptor of memory that no folder lists."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("gemmnet-view")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
