"""Class probabilities as bytes: what ``probabilities.tif`` and :attr:`engine.Result.probabilities` hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = 254
"""A byte is a probability x 254, rounded: 255 is left for nodata."""
NODATA = 255


def as_bytes(probabilities: NDArray[np.float32], unmapped: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Probabilities [C, h, w], 0 to 1, as uint8 [C, h, w]; :data:`NODATA` where ``unmapped`` [h, w] says so."""
    scaled = np.multiply(probabilities, STEPS, dtype=np.float32)
    coded = np.rint(scaled, out=scaled).clip(0, STEPS).astype(np.uint8)
    coded[:, unmapped] = NODATA
    return coded
