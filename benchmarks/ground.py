"""How wrong the ground is that ``run --ground auto`` finds: procedural scenes on made hills, whose ground is known.

    python -m benchmarks.ground                          three styles on four reliefs
    python -m benchmarks.ground --styles city --size 1200

Errors are of the heights above ground that a run would read, in metres.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from engine.contract.bands import ndsm_spec
from engine.contract.sensors import Sensor
from engine.rasters.height_models import HeightModels
from engine.rasters.raster import SensorRasters
from train.data.synthetic import generate

SEED, GSD_M, TALL_M = 5_000_001, 0.25, 2.0
Metres = NDArray[np.float64]
RELIEFS: dict[str, Callable[[Metres, Metres], Metres]] = {
    "flat": lambda x, y: 100 + 0 * x,
    "slope of 16 %": lambda x, y: 100 + 0.15 * x + 0.05 * y,
    "hills of 16 m": lambda x, y: 100 + 8 * np.sin(2 * np.pi * x / 140) * np.cos(2 * np.pi * y / 170),
    "slope of 50 %": lambda x, y: 100 + 0.5 * x,
}
"""Heights in metres, of metres to the right and down."""


def errors(style: str, relief: str, size_px: int, folder: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What is read minus what is true, metres [N], and which of these pixels are tall."""
    truth = np.asarray(generate(seed=SEED, size_px=size_px, gsd_m=GSD_M, style=style).ndsm, np.float32).squeeze()
    down, across = np.mgrid[:size_px, :size_px] * GSD_M
    shape: dict[str, Any] = {"count": 1, "height": size_px, "width": size_px, "dtype": "float32"}
    place = {"crs": "EPSG:25832", "transform": from_origin(5e5, 5.4e6, GSD_M, GSD_M)}
    with rasterio.open(folder / "dsm.tif", "w", driver="GTiff", **shape, **place) as file:
        file.write((truth + RELIEFS[relief](across, down)).astype(np.float32), 1)
        file.units = ["m"]
    models = HeightModels(dsm=folder / "dsm.tif", dtm=None)
    with SensorRasters.open({Sensor.NDSM: models}, {Sensor.NDSM: ndsm_spec()}) as rasters:
        seen = rasters.read(0, 0, size_px, size_px)[Sensor.NDSM]
    valid = seen.valid & np.isfinite(truth)
    return (seen.values[0] - truth)[valid], truth[valid] > TALL_M


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.ground", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--styles", default="suburb,city,forest_edge", help="of procedural scenes, by commas")
    options.add_argument("--size", type=int, default=800, metavar="PX", help=f"of a scene, {GSD_M} m a pixel (800)")
    given = options.parse_args(argv)
    print("| scene | relief | median, low | median, tall | 95th percentile | off by over 2 m |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for style in given.styles.split(","):
            for relief in RELIEFS:
                off, tall = errors(style, relief, given.size, Path(folder))
                low, high = (float(np.median(np.abs(off[part]))) for part in (~tall, tall))
                p95, far = float(np.percentile(np.abs(off), 95)), float((np.abs(off) > 2).mean())
                print(f"| {style} | {relief} | {low:.2f} | {high:.2f} | {p95:.2f} | {far:.1%} |", flush=True)


if __name__ == "__main__":
    main()
