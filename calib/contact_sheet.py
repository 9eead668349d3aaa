"""The calibration tiles as one picture, which the page carries as data."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from calib.samples import CalibrationList
from calib.scenes import SceneTile
from engine.contract.bundle import ClassSpec

THUMBNAIL_PX = 64
THUMBNAIL_COLUMNS = 4
TALL_M = 20.0
"""Height that a thumbnail draws white."""


def contact_sheet(chosen: CalibrationList, classes: Sequence[ClassSpec]) -> str:
    """The calibration tiles side by side, each as optical image, heights and labels: a PNG as a data URI."""
    cells = [_thumbnail(tile, classes) for tile in chosen.tiles]
    rows = -(-len(cells) // THUMBNAIL_COLUMNS)
    cells += [np.full_like(cells[0], 255)] * (rows * THUMBNAIL_COLUMNS - len(cells))
    sheet = np.concatenate(
        [np.concatenate(cells[i : i + THUMBNAIL_COLUMNS], axis=1) for i in range(0, len(cells), THUMBNAIL_COLUMNS)]
    )
    buffer = io.BytesIO()
    Image.fromarray(sheet).quantize(colors=255).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _thumbnail(tile: SceneTile, classes: Sequence[ClassSpec]) -> np.ndarray:
    """uint8 [S + 4, 3 S + 8, 3]."""
    sample = tile.read()
    step = max(1, tile.size_px // THUMBNAIL_PX)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(classes)] = [spec.rgb for spec in classes]
    optical = sample.rgir[:, ::step, ::step].transpose(1, 2, 0)
    share = np.sqrt(np.clip(sample.ndsm[0, ::step, ::step], 0, TALL_M) / TALL_M)
    grey = np.repeat((share * 255).astype(np.uint8)[..., None], 3, axis=2)
    cell = np.concatenate((optical, grey, palette[sample.labels[::step, ::step]]), axis=1)
    return np.pad(cell, ((0, 4), (0, 8), (0, 0)), constant_values=255)
