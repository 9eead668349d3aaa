"""Where the tensors of one tile lie in one piece of memory, so that a tile travels in one copy each way.

::

    | rgir | ndsm | wanted outputs | other outputs |
    |<- upload -->|<- download --->|   stay on the device
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.backends.base import Output
from engine.contract.bundle import Manifest
from engine.contract.sensors import Sensor

ALIGNMENT = 256
"""TensorRT wants tensor addresses and its scratch memory on multiples of 256 bytes
(https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/ExecutionContext.html)."""


def aligned(nbytes: int) -> int:
    """``nbytes`` rounded up to the next multiple of :data:`ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, kw_only=True)
class Span:
    """One tensor's place; its shape is without the batch axis."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def stop(self) -> int:
        """The byte behind its last."""
        return self.offset + int(np.prod(self.shape)) * self.dtype.itemsize

    def view(self, memory: NDArray[np.uint8]) -> NDArray[Any]:
        """The tensor inside ``memory`` uint8 [bytes], not copied."""
        return memory[self.offset : self.stop].view(self.dtype).reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class TileLayout:
    """Inputs and outputs of all scenarios at fixed places, each on an aligned offset."""

    inputs: Mapping[Sensor, Span]
    outputs: Mapping[Output, Span]
    wanted: tuple[Output, ...]

    @classmethod
    def of(cls, manifest: Manifest, wanted: Iterable[Output]) -> TileLayout:
        """The layout of a bundle's tiles when ``wanted`` outputs are to come back."""
        wanted = tuple(wanted)
        side = (manifest.tile_px, manifest.tile_px)
        outputs: dict[Output, tuple[DTypeLike, tuple[int, ...]]] = {
            Output.CLASSES: (np.uint8, side),
            Output.CONFIDENCE: (np.uint8, side),
            Output.PROBABILITIES: (np.float32, (len(manifest.classes), *side)),
        }
        end = 0

        def place(dtype: DTypeLike, shape: tuple[int, ...]) -> Span:
            nonlocal end
            span = Span(dtype=np.dtype(dtype), shape=shape, offset=end)
            end = aligned(span.stop)
            return span

        return cls(
            inputs={spec.sensor: place(spec.dtype, (len(spec.bands), *side)) for spec in manifest.sensors},
            outputs={name: place(*outputs[name]) for name in (*wanted, *(set(outputs) - set(wanted)))},
            wanted=wanted,
        )

    @property
    def device_bytes(self) -> int:
        """Memory that a tile takes on the device."""
        return aligned(max(span.stop for span in self.outputs.values()))

    @property
    def host_bytes(self) -> int:
        """Memory that a tile takes on the host: all but the outputs that nobody wants."""
        return aligned(self.download.stop)

    def upload(self, sensors: Iterable[Sensor]) -> slice:
        """The bytes to send for a scenario that reads ``sensors``."""
        spans = [self.inputs[sensor] for sensor in sensors]
        return slice(min(span.offset for span in spans), max(span.stop for span in spans))

    @property
    def download(self) -> slice:
        """The bytes to fetch."""
        spans = [self.outputs[name] for name in self.wanted]
        return slice(min(span.offset for span in spans), max(span.stop for span in spans))
