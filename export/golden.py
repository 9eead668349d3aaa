"""The golden tiles: inputs and what each graph must answer, so that every runtime can prove itself on its device."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioIOError

from engine.contract.bundle import GOLDEN_STRIDE, golden_prefix
from engine.contract.errors import GridError, RasterFormatError, RasterOpenError
from engine.contract.nodata import fill_nodata
from engine.contract.sensors import Scenario, Sensor
from export.scenarios import BANDS
from train.data import synthetic

GOLDEN_NAME = "golden.npz"
SYNTHETIC_GSD_M = 0.2
Answers = Mapping[Scenario, tuple[NDArray[np.uint8], NDArray[np.float32]]]
"""Per scenario classes uint8 [T, T] and probabilities float32 [C, T, T]."""


@dataclass(frozen=True, kw_only=True)
class GoldenInputs:
    """Aligned sensor values without gaps.

    Raises:
        ValueError: shapes or dtypes do not fit, or a height is not finite.
    """

    rgir: NDArray[np.uint8]
    """uint8 [3, H, W]."""
    ndsm: NDArray[np.float32]
    """float32 [1, H, W], metres."""

    def __post_init__(self) -> None:
        height, width = self.rgir.shape[-2:]
        if self.rgir.shape != (3, height, width) or self.ndsm.shape != (1, height, width):
            raise ValueError(
                f"a tile is rgir [3, H, W] and ndsm [1, H, W], received {self.rgir.shape}, {self.ndsm.shape}"
            )
        if self.rgir.dtype != np.uint8 or self.ndsm.dtype != np.float32:
            raise ValueError(f"a tile is rgir uint8 and ndsm float32, received {self.rgir.dtype}, {self.ndsm.dtype}")
        if not np.isfinite(self.ndsm).all():
            raise ValueError("the heights of a tile must be finite: fill its holes first")

    def sensor(self, sensor: Sensor) -> NDArray[np.generic]:
        """The array of one sensor."""
        return self.rgir if sensor is Sensor.RGIR else self.ndsm

    def window(self, top: int, left: int, size_px: int) -> GoldenInputs:
        """A square part."""
        at = np.s_[:, top : top + size_px, left : left + size_px]
        return GoldenInputs(rgir=self.rgir[at], ndsm=self.ndsm[at])


def synthetic_tile(*, seed: int, size_px: int) -> GoldenInputs:
    """A procedural scene at 0.2 m; holes in its heights are filled from their neighbours."""
    scene = synthetic.generate(seed=seed, size_px=size_px, gsd_m=SYNTHETIC_GSD_M)
    return GoldenInputs(rgir=scene.rgir, ndsm=_tidy(scene.ndsm))


def scene_tile(folder: Path, tile_px: int) -> GoldenInputs:
    """The centre of the scene in ``folder`` (``rgir.tif`` and ``ndsm.tif`` on one grid), mirrored where too small.

    Raises:
        RasterOpenError: a file is missing or unreadable.
        RasterFormatError: a file has the wrong number of bands, or ``rgir.tif`` is not 8-bit.
        GridError: the two differ in size.
    """
    rgir = _read(folder / "rgir.tif", BANDS[Sensor.RGIR])
    if rgir.dtype != np.uint8:
        raise RasterFormatError(f"{folder / 'rgir.tif'} must be 8-bit, received {rgir.dtype}")
    ndsm = _read(folder / "ndsm.tif", BANDS[Sensor.NDSM])
    if rgir.shape[1:] != ndsm.shape[1:]:
        raise GridError(
            f"a golden scene's rasters must share one grid, received {rgir.shape[1:]} for rgir and {ndsm.shape[1:]} "
            f"for ndsm in {folder}: warp one onto the other, or leave --golden-scene out for a procedural tile"
        )
    height, width = rgir.shape[1:]
    spare = [(0, 0), (0, max(0, tile_px - height)), (0, max(0, tile_px - width))]
    whole = GoldenInputs(
        rgir=np.pad(np.ma.filled(rgir, 0), spare, "symmetric"),
        ndsm=np.pad(_tidy(np.ma.filled(ndsm.astype(np.float32), np.nan)), spare, "symmetric"),
    )
    height, width = whole.rgir.shape[1:]
    return whole.window((height - tile_px) // 2, (width - tile_px) // 2, tile_px)


def write_golden(path: Path, tiles: Sequence[tuple[GoldenInputs, Answers]]) -> None:
    """Write ``golden.npz`` as :mod:`engine.contract.bundle` describes it; the same content gives the same bytes.

    Args:
        path: of the file.
        tiles: inputs, T x T, and what the graphs answer.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    for number, (tile, answers) in enumerate(tiles):
        prefix = golden_prefix(number)
        arrays |= {f"{prefix}rgir": tile.rgir, f"{prefix}ndsm": tile.ndsm}
        for scenario, (classes, probabilities) in answers.items():
            strided = probabilities[:, ::GOLDEN_STRIDE, ::GOLDEN_STRIDE].astype(np.float16)
            arrays |= {f"{prefix}{scenario}/classes": classes, f"{prefix}{scenario}/probabilities": strided}
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            # numpy.savez stamps the time of day; a ZipInfo of its own stays at 1980.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED, 9)


def _read(path: Path, bands: int) -> np.ma.MaskedArray:
    try:
        with rasterio.open(path) as source:
            if source.count != bands:
                raise RasterFormatError(f"{path} must have {bands} band(s), received {source.count}")
            values: np.ma.MaskedArray = source.read(masked=True)
            return values
    except RasterioIOError as error:
        raise RasterOpenError(f"a golden scene is a folder with rgir.tif and ndsm.tif; {path}: {error}") from error


def _tidy(ndsm: NDArray[np.float32]) -> NDArray[np.float32]:
    """[1, H, W] with NaN holes -> [1, H, W] without, in centimetres: finer digits are noise that does not compress."""
    return np.round(fill_nodata(ndsm.copy(), np.isfinite(ndsm[0])), 2).astype(np.float32)
