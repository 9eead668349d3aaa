"""Make the scene that ships with the engine: a neighbourhood over which both sensors lost part of their swath.

python -m train.data.demo_scene --out engine/demo/scene
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from engine.contract.command import command_parser
from train.data.synthetic import generate

SEED = 3_000_001
"""Away from the seeds of training (from 0), validation (from 1e6) and evaluation (from 2e6)."""
SIZE_PX = (960, 1280)
GSD_M = 0.2
STYLE = "suburb"
NDSM_NODATA = -9999.0


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = command_parser("train.data.demo_scene", __doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for rgir.tif and ndsm.tif")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the scene (default {SEED})")
    parser.add_argument("--style", default=STYLE, help=f"kind of neighbourhood (default {STYLE})")
    args = parser.parse_args(argv)
    scene = generate(seed=args.seed, size_px=SIZE_PX, gsd_m=GSD_M, style=args.style)
    height, width = scene.labels.shape
    rows, cols = np.mgrid[:height, :width]
    # The height survey turned off its line early; the camera's swath leaves one corner out.
    no_height = np.isnan(scene.ndsm[0]) | (cols - 0.25 * rows > 0.62 * width)
    no_image = rows - 0.8 * cols > 0.72 * height
    rgir = np.where(no_image, 0, np.maximum(scene.rgir, 1)).astype(np.uint8)
    ndsm = np.where(no_height, NDSM_NODATA, np.round(scene.ndsm, 2)).astype(np.float32)
    profile = {
        "driver": "GTiff", "height": height, "width": width, "crs": "EPSG:32632",
        "transform": from_origin(500_000, 5_400_000, GSD_M, GSD_M),
        "compress": "deflate", "zlevel": 9, "tiled": True, "blockxsize": 256, "blockysize": 256,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        args.out / "rgir.tif", "w", count=3, dtype="uint8", nodata=0, predictor=2, photometric="RGB", **profile
    ) as file:
        file.write(rgir)
        file.descriptions = ("NIR", "red", "green")
    with rasterio.open(
        args.out / "ndsm.tif", "w", count=1, dtype="float32", nodata=NDSM_NODATA, predictor=3, **profile
    ) as file:
        file.write(ndsm)
        file.descriptions = ("height above ground",)
        file.units = ("metre",)


if __name__ == "__main__":
    main()
