"""Large rasters and many frames out of the small demo scene: the part of it that is complete, again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin
from rasterio.windows import Window

from engine import demo
from engine.contract.bundle import Manifest
from engine.contract.sensors import Sensor

COMPLETE_PX = (680, 780)
"""Rows and columns of the demo scene, from its upper left corner, in which no sensor has a gap."""
GSD_M = 0.2
BLOCK_PX = 512
COARSER = 1.25
GDAL_CACHE_MB = 64
_GDAL_NAME = {"uint8": "Byte", "float32": "Float32"}
_PLACE = {"driver": "GTiff", "crs": "EPSG:32632", "compress": "deflate"}

Raster = tuple[float, Mapping[Sensor, Path]]
"""Megapixels, and where each sensor's file is."""


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
    """Virtual rasters of at least ``tiles`` tiles, nearly square, which take no room on the disk.

    Args:
        folder: for the virtual rasters and the noise.
        manifest: of the bundle that will map it; sets the tile and its halo.
        tiles: how many, at least.
        failures: where a sensor shows noise.
    """
    stride, halo = manifest.tile_px - 2 * manifest.halo_px, manifest.halo_px
    size = rows_of(tiles) * stride + 2 * halo, columns_of(tiles) * stride + 2 * halo
    return {
        sensor: _write_virtual(folder, sensor, size, [each for each in failures if each.sensor is sensor], manifest)
        for sensor in demo.SCENE
    }


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a large raster lies on the disk, and what is odd about it."""

    codec: str = "deflate"
    """Of GDAL, or ``none``. JPEG is RGIR's alone: nDSM is then deflated."""
    block_px: int | None = BLOCK_PX
    """Side of its blocks; None stores rows, several to a strip."""
    warped: bool = False
    """The nDSM has pixels of 1.25 times the size, half a pixel off."""
    edges: bool = False
    """Parts at the left have no data: a jagged border runs through many tiles."""

    def options(self, sensor: Sensor) -> dict[str, object]:
        """Creation options of GDAL's GTiff driver (https://gdal.org/drivers/raster/gtiff.html)."""
        codec = "deflate" if self.codec == "jpeg" and sensor is Sensor.NDSM else self.codec
        options: dict[str, object] = {"tiled": self.block_px is not None}
        if self.block_px is not None:
            options.update(blockxsize=self.block_px, blockysize=self.block_px)
        if codec != "none":
            error = 0.01 if sensor is Sensor.NDSM else 0
            levels: dict[str, dict[str, object]] = {
                "deflate": {"zlevel": 1},
                "zstd": {"zstd_level": 1},
                "lerc": {"max_z_error": error},
            }
            options.update(compress=codec, **levels.get(codec, {}))
        return options


def write_raster(folder: Path, mpx: float, layout: Layout | None = None) -> Raster:
    """Square GeoTIFFs of about that size, copied block by block.

    Every tile is valid in both sensors, so that each setting runs exactly one graph per tile, unless the layout says
    otherwise.
    """
    layout = layout or Layout()
    side = round((mpx * 1e6) ** 0.5)
    paths = {sensor: folder / f"{sensor}_{mpx:g}.tif" for sensor in demo.SCENE}
    for sensor, path in paths.items():
        coarse = layout.warped and sensor is Sensor.NDSM
        size = round(side / COARSER) if coarse else side
        virtual = _write_virtual(folder, sensor, (size, size), coarse=coarse, edges=layout.edges)
        with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_MB):
            rasterio.shutil.copy(
                virtual, path, driver="GTiff", **layout.options(sensor), num_threads="ALL_CPUS", bigtiff="if_safer"
            )
        virtual.unlink()
    return side * side / 1e6, paths


def write_frames(folder: Path, manifest: Manifest, count: int) -> list[dict[Sensor, Path]]:
    """So many different frames of one tile each, cut from the demo scene."""
    side = manifest.tile_px
    frames: list[dict[Sensor, Path]] = [{} for _ in range(count)]
    for sensor, scene in demo.SCENE.items():
        with rasterio.open(scene) as file:
            for number, frame in enumerate(frames):
                row, col = (round(number * (size - side) / max(1, count - 1)) for size in COMPLETE_PX)
                frame[sensor] = folder / f"template_{number}_{sensor}.tif"
                _write(frame[sensor], file.read(window=Window(col, row, side, side), boundless=True), row, col)
    return frames


def _write(path: Path, pixels: np.ndarray, row: int = 0, col: int = 0) -> None:
    transform = from_origin(500000 + col * GSD_M, 5400000 - row * GSD_M, GSD_M, GSD_M)
    shape = dict(zip(("count", "height", "width"), pixels.shape, strict=True))
    with rasterio.open(path, "w", **_PLACE, **shape, dtype=pixels.dtype, transform=transform) as file:
        file.write(pixels)


def _write_virtual(
    folder: Path,
    sensor: Sensor,
    size: tuple[int, int],
    failures: Sequence[Failure] = (),
    manifest: Manifest | None = None,
    *,
    coarse: bool = False,
    edges: bool = False,
) -> Path:
    """GDAL's virtual format (https://gdal.org/drivers/raster/vrt.html): the scene side by side, noise on top."""
    height, width = size
    with rasterio.open(demo.SCENE[sensor]) as file:
        bands, dtype, nodata = file.count, file.dtypes[0], file.nodata
    patches = [
        (demo.SCENE[sensor], min(COMPLETE_PX[0], height - row), min(COMPLETE_PX[1], width - col), row, col)
        for row in range(0, height, COMPLETE_PX[0])
        for col in range(0, width, COMPLETE_PX[1])
        if not edges or col >= COMPLETE_PX[1] * (row // COMPLETE_PX[0] % 3)
    ]
    for number, failure in enumerate(failures):
        assert manifest is not None, "a failure is counted in its tiles"
        stride = manifest.tile_px - 2 * manifest.halo_px
        noisy = (manifest.tile_px, (failure.last_col - failure.first_col) * stride + manifest.tile_px)
        patches.append(
            (folder / f"noise_{sensor}_{number}.tif", *noisy, failure.tile_row * stride, failure.first_col * stride)
        )
        rng = np.random.default_rng(number)
        shape = (bands, *noisy)
        noise = rng.integers(0, 256, shape, np.uint8) if dtype == "uint8" else rng.normal(5, 4, shape).astype(dtype)
        _write(patches[-1][0], noise)
    described = "".join(
        f'<VRTRasterBand dataType="{_GDAL_NAME[dtype]}" band="{band}">'
        + ("" if nodata is None or manifest else f"<NoDataValue>{nodata}</NoDataValue>")
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
    path = folder / f"{sensor}.vrt"
    gsd, shift = (GSD_M * COARSER, GSD_M / 2) if coarse else (GSD_M, 0.0)
    path.write_text(
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>EPSG:32632</SRS>'
        f"<GeoTransform>{500000 + shift}, {gsd}, 0, {5400000 - shift}, 0, -{gsd}</GeoTransform>"
        f"{described}</VRTDataset>\n"
    )
    return path
