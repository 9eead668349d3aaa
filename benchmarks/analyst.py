"""What an analyst waits for: an image, a surface and a terrain model to a map, and the map to polygons.

    python -m benchmarks.analyst                      16, 64 and 100 megapixels
    python -m benchmarks.analyst --mpx 4 --folder /scratch

The demo scene again and again on made hills, the terrain at half the resolution. ``gemmnet run --dsm --dtm`` and
``gemmnet polygons`` run in a process each; peak memory is the kernel's (getrusage). Areas of the polygons are held
against the pixels of the map: ``area_off_percent`` is the largest difference of a class, of all pixels.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.windows import Window
from tqdm import tqdm

from benchmarks.command import exit_code_of, parser_of
from benchmarks.conditions import conditions, write_csv
from benchmarks.rasters import BLOCK_PX, GSD_M, write_raster
from benchmarks.tables import TABLES
from engine.contract.errors import EngineError, UsageError
from engine.contract.sensors import Sensor
from engine.rasters.georeference import gdal_environment

COARSER = 2
"""The terrain's pixels are so many times as wide."""


def hills(row: int, height: int, width: int, step: int = 1) -> np.ndarray:
    """Terrain in metres, float32 [height, width], of rows from ``row`` on; a pixel is ``step`` of the image's."""
    y, x = np.ogrid[row : row + height, :width]
    down, across = ((each + 0.5) * GSD_M * step for each in (y, x))
    return (200 + 8 * np.sin(2 * np.pi * across / 340) * np.cos(2 * np.pi * down / 270)).astype(np.float32)


def write_models(ndsm: Path) -> tuple[Path, Path]:
    """A surface and a terrain model whose difference is about that raster; block row by block row."""
    dsm, dtm = ndsm.with_name(f"dsm_{ndsm.name}"), ndsm.with_name(f"dtm_{ndsm.name}")
    with rasterio.open(ndsm) as file:
        profile = {**file.profile, "nodata": -9999.0}
        with rasterio.open(dsm, "w", **profile) as surface:
            surface.units = ("m",)
            for row in range(0, file.height, BLOCK_PX):
                window = Window(0, row, file.width, min(BLOCK_PX, file.height - row))
                heights = file.read(1, window=window, masked=True)
                surface.write((heights + hills(row, *heights.shape)).filled(-9999), 1, window=window)
        size = {side: -(-file.profile[side] // COARSER) for side in ("height", "width")}
        place = file.transform @ rasterio.Affine.scale(COARSER)
        with rasterio.open(dtm, "w", **{**profile, **size, "transform": place}) as terrain:
            terrain.units = ("m",)
            for row in range(0, terrain.height, BLOCK_PX):
                height = min(BLOCK_PX, terrain.height - row)
                window = Window(0, row, terrain.width, height)
                terrain.write(hills(row, height, terrain.width, COARSER), 1, window=window)
    return dsm, dtm


def timed(module: str, *words: str) -> tuple[float, float]:
    """Seconds and peak MiB of a command.

    Raises:
        EngineError: it failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", module, *words])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise EngineError(f"{module} ended with {process.returncode}")
    return time.perf_counter() - began, used.ru_maxrss / 1024


def walk(mpx: float, folder: Path, bundle: Path) -> dict[str, object]:
    """One size; its row."""
    size, paths = write_raster(folder, mpx)
    dsm, dtm = write_models(paths[Sensor.NDSM])
    out, cover = folder / f"map_{mpx:g}", folder / f"cover_{mpx:g}.gpkg"
    given = ["--rgir", str(paths[Sensor.RGIR]), "--dsm", str(dsm), "--dtm", str(dtm), "--bundle", str(bundle)]
    map_s, map_mib = timed("engine.run", *given, "--output", str(out), "--quiet", "--overwrite")
    polygons_s, polygons_mib = timed("engine.polygons", str(out), "--out", str(cover), "--overwrite")
    count, off = compared(out / "classes.tif", cover)
    return {
        "raster_mpx": size,
        "map_s": round(map_s, 1),
        "map_peak_mib": round(map_mib),
        "polygons_s": round(polygons_s, 1),
        "polygons_peak_mib": round(polygons_mib),
        "polygons": count,
        "area_off_percent": round(100 * float(off), 3),
    }


def compared(classes: Path, cover: Path) -> tuple[int, float]:
    """How many polygons there are, and the largest difference of a class's area, as a share of all pixels."""
    import pyogrio

    pixels = np.zeros(256, np.int64)
    with rasterio.open(classes) as file:
        for row in range(0, file.height, BLOCK_PX):
            window = Window(0, row, file.width, min(BLOCK_PX, file.height - row))
            pixels += np.bincount(file.read(1, window=window, resampling=Resampling.nearest).ravel(), minlength=256)
        pixel_m2 = abs(file.transform.a * file.transform.e)
    told = pyogrio.read_dataframe(
        cover, sql="SELECT class_index, count(*) AS n, sum(ST_Area(geom)) AS area FROM land_cover GROUP BY class_index"
    )
    off = [abs(area / pixel_m2 - pixels[index]) for index, area in zip(told["class_index"], told["area"], strict=True)]
    return int(told["n"].sum()), max(off) / int(pixels[:255].sum())


def main(arguments: Sequence[str] | None = None) -> int:
    """Walk, print, write the CSV."""
    parser = parser_of("analyst", __doc__, result="analyst.csv")
    parser.add_argument("--mpx", default="16,64,100", metavar="LIST", help="sizes in megapixels (16,64,100)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for rasters and maps (default: a temporary one)")
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> None:
    try:
        sizes = [float(text) for text in options.mpx.split(",")]
    except ValueError as error:
        raise UsageError(f"--mpx takes numbers by commas, received {options.mpx!r}") from error
    rows = []
    # a process that starts another hands down its own peak: this one must stay small
    with gdal_environment(), tempfile.TemporaryDirectory(prefix="analyst-", dir=options.folder) as name:
        for mpx in tqdm(sizes, unit="raster"):
            rows.append(walk(mpx, Path(name), options.bundle.resolve()))
            tqdm.write(str(rows[-1]))
    rows = [{**row, **conditions("openvino")} for row in rows]
    print(TABLES["analyst"].markdown(rows))
    write_csv(options.out, rows)


if __name__ == "__main__":
    sys.exit(main())
