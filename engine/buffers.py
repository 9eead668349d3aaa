"""A fixed set of tile buffers: read into, inferred from, written, used again."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Mapping

import numpy as np

from engine.contract.bands import SensorSpec
from engine.contract.sensors import Sensor
from engine.rasters.sources import Observation

Buffers = Mapping[Sensor, Observation]
"""One tile's worth of memory; the arrays of each Observation are overwritten."""


class BufferPool:
    """``count`` tiles of memory, allocated once. Take and give from any thread.

    Args:
        specs: the sensors that are read.
        tile_px: side of a tile.
        count: see :func:`engine.stream.jobs_alive`.
    """

    def __init__(self, specs: Iterable[SensorSpec], *, tile_px: int, count: int) -> None:
        specs = tuple(specs)
        self._free: queue.SimpleQueue[Buffers | None] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(
                {
                    spec.sensor: Observation(
                        values=np.zeros((len(spec.bands), tile_px, tile_px), spec.dtype),
                        valid=np.zeros((tile_px, tile_px), np.bool_),
                    )
                    for spec in specs
                }
            )

    def take(self) -> Buffers | None:
        """Buffers that nobody else uses; waits until there are some. None once the pool is closed."""
        buffers = self._free.get()
        if buffers is None:
            self._free.put(None)  # for whoever else waits
        return buffers

    def give(self, buffers: Buffers) -> None:
        """Return what :meth:`take` gave."""
        self._free.put(buffers)

    def close(self) -> None:
        """Nothing more is to be read: whoever waits for buffers wakes up, at the latest after those that are free."""
        self._free.put(None)
