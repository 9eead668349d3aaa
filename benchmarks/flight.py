"""Large flights for benchmarks out of the small demo scene: virtual rasters, which take no room on the disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from engine import demo
from engine.contract.bundle import Manifest
from engine.contract.sensors import Sensor

COMPLETE_PX = (680, 780)
"""Rows and columns of the demo scene, from its upper left corner, in which no sensor has a gap."""
GSD_M = 0.2
_GDAL_NAME = {"uint8": "Byte", "float32": "Float32"}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A sensor that shows noise in these tiles of one tile row: in all that they read."""

    sensor: Sensor
    tile_row: int
    first_col: int
    last_col: int


def columns_of(tiles: int) -> int:
    """Tile columns of a nearly square flight."""
    return math.ceil(math.sqrt(tiles))


def rows_of(tiles: int) -> int:
    """And tile rows."""
    return math.ceil(tiles / columns_of(tiles))


def write_flight(
    folder: Path, manifest: Manifest, tiles: int, *, failures: Sequence[Failure] = ()
) -> dict[Sensor, Path]:
    """The complete part of the demo scene again and again, at least ``tiles`` tiles in a nearly square raster.

    Args:
        folder: for the virtual rasters and the noise.
        manifest: of the bundle that will map it; sets the tile and its halo.
        tiles: how many, at least.
        failures: where a sensor shows noise.
    """
    stride, halo = manifest.tile_px - 2 * manifest.halo_px, manifest.halo_px
    width, height = columns_of(tiles) * stride + 2 * halo, rows_of(tiles) * stride + 2 * halo
    paths = {}
    for sensor, scene in demo.SCENE.items():
        with rasterio.open(scene) as file:
            bands, dtype = file.count, file.dtypes[0]
        patches = [
            (scene, min(COMPLETE_PX[0], height - row), min(COMPLETE_PX[1], width - col), row, col)
            for row in range(0, height, COMPLETE_PX[0])
            for col in range(0, width, COMPLETE_PX[1])
        ]
        for number, failure in enumerate(each for each in failures if each.sensor is sensor):
            noise = folder / f"noise_{sensor}_{number}.tif"
            size = (manifest.tile_px, (failure.last_col - failure.first_col) * stride + manifest.tile_px)
            _write_noise(noise, bands, dtype, size, seed=number)
            patches.append((noise, *size, failure.tile_row * stride, failure.first_col * stride))
        paths[sensor] = folder / f"{sensor}.vrt"
        paths[sensor].write_text(_vrt(bands, _GDAL_NAME[dtype], height, width, patches))
    return paths


def write_frames(folder: Path, manifest: Manifest, count: int) -> list[dict[Sensor, Path]]:
    """So many different frames of one tile each, cut from the demo scene."""
    side = manifest.tile_px
    frames: list[dict[Sensor, Path]] = [{} for _ in range(count)]
    for sensor, scene in demo.SCENE.items():
        with rasterio.open(scene) as file:
            for number, frame in enumerate(frames):
                row, col = (round(number * (size - side) / max(1, count - 1)) for size in COMPLETE_PX)
                pixels = file.read(window=Window(col, row, side, side), boundless=True)
                frame[sensor] = folder / f"template_{number}_{sensor}.tif"
                with rasterio.open(
                    frame[sensor],
                    "w",
                    driver="GTiff",
                    height=side,
                    width=side,
                    count=file.count,
                    dtype=pixels.dtype,
                    crs="EPSG:32632",
                    transform=from_origin(500000 + col * GSD_M, 5400000 - row * GSD_M, GSD_M, GSD_M),
                    compress="deflate",
                ) as out:
                    out.write(pixels)
    return frames


def _write_noise(path: Path, bands: int, dtype: str, size: tuple[int, int], *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (bands, *size)
    noise = rng.integers(0, 256, shape, np.uint8) if dtype == "uint8" else rng.normal(5, 4, shape).astype(dtype)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=size[0],
        width=size[1],
        count=bands,
        dtype=dtype,
        crs="EPSG:32632",
        transform=from_origin(0, 0, GSD_M, GSD_M),
    ) as file:
        file.write(noise)


def _vrt(
    bands: int, gdal_type: str, height: int, width: int, patches: Sequence[tuple[Path, int, int, int, int]]
) -> str:
    """GDAL's virtual format (https://gdal.org/drivers/raster/vrt.html): file, height, width, row and column of each."""
    described = "".join(
        f'<VRTRasterBand dataType="{gdal_type}" band="{band}">'
        + "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="0">{file.resolve()}</SourceFilename>'
            f"<SourceBand>{band}</SourceBand>"
            f'<SrcRect xOff="0" yOff="0" xSize="{w}" ySize="{h}"/>'
            f'<DstRect xOff="{col}" yOff="{row}" xSize="{w}" ySize="{h}"/></SimpleSource>'
            for file, h, w, row, col in patches
        )
        + "</VRTRasterBand>"
        for band in range(1, bands + 1)
    )
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>EPSG:32632</SRS>'
        f"<GeoTransform>500000, {GSD_M}, 0, 5400000, 0, -{GSD_M}</GeoTransform>{described}</VRTDataset>\n"
    )
