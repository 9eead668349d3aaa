"""Write seeded procedural scenes as GeoTIFFs: NIR-R-G image, heights, labels.

python -m train.data.synthetic --out scenes --count 8 --gsd 0.2 --preview
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_origin
from tqdm import tqdm

from engine.contract.command import command_parser
from train.data.synthetic import STYLES, SyntheticScene, generate

PALETTE = {
    0: (255, 255, 255),
    1: (0, 0, 255),
    2: (0, 255, 255),
    3: (0, 255, 0),
    4: (255, 255, 0),
    5: (255, 0, 0),
    255: (0, 0, 0),
}
PREVIEW_TOP_M = 20.0  # heights from here on are white in the preview


def write_scene(scene: SyntheticScene, folder: Path, *, preview: bool) -> None:
    """Write rgir.tif, ndsm.tif (nodata NaN), labels.tif (palette) and maybe preview.png."""
    folder.mkdir(parents=True, exist_ok=True)
    height, width = scene.labels.shape
    profile = {
        "driver": "GTiff", "height": height, "width": width, "crs": "EPSG:32632",
        "transform": from_origin(500_000, 5_400_000, scene.gsd_m, scene.gsd_m),
        "compress": "deflate", "tiled": True, "blockxsize": 256, "blockysize": 256,
    }  # fmt: skip
    with rasterio.open(folder / "rgir.tif", "w", count=3, dtype="uint8", photometric="RGB", **profile) as out:
        out.write(scene.rgir)
        out.descriptions = ("NIR", "R", "G")
    with rasterio.open(folder / "ndsm.tif", "w", count=1, dtype="float32", nodata=np.nan, **profile) as out:
        out.write(scene.ndsm)
        out.units = ("metre",)
    with rasterio.open(folder / "labels.tif", "w", count=1, dtype="uint8", nodata=255, **profile) as out:
        out.write(scene.labels, 1)
        out.write_colormap(1, {k: (*rgb, 255) for k, rgb in PALETTE.items()})
    if preview:
        Image.fromarray(contact_sheet(scene)).save(folder / "preview.png")


def contact_sheet(scene: SyntheticScene) -> NDArray[np.uint8]:
    """rgir | ndsm (square-root grey, holes magenta) | labels, uint8 [H,3W,3]."""
    share = np.clip(np.nan_to_num(scene.ndsm[0], nan=0.0), 0, PREVIEW_TOP_M) / PREVIEW_TOP_M
    grey = np.repeat((np.sqrt(share) * 255).astype(np.uint8)[..., None], 3, axis=2)
    grey[np.isnan(scene.ndsm[0])] = (255, 0, 255)
    colours = np.zeros((256, 3), np.uint8)
    for index, rgb in PALETTE.items():
        colours[index] = rgb
    return np.concatenate([scene.rgir.transpose(1, 2, 0), grey, colours[scene.labels]], axis=1)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = command_parser("train.data.synthetic", __doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for scene_00000, ...")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="scenes to write (default 1)")
    parser.add_argument("--size", type=int, default=768, metavar="PX", help="side in pixels (default 768)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene (default 0)")
    parser.add_argument("--gsd", type=float, metavar="M", help="metres per pixel (default: random, 0.08 to 0.5)")
    parser.add_argument("--style", choices=sorted(STYLES), help="kind of neighbourhood (default: random)")
    parser.add_argument("--preview", action="store_true", help="also write preview.png: rgir | ndsm | labels")
    args = parser.parse_args(argv)
    if args.count < 1:
        parser.error(f"--count must be at least 1, received {args.count}")
    try:
        for index in tqdm(range(args.count), unit="scene"):
            scene = generate(seed=args.seed + index, size_px=args.size, gsd_m=args.gsd, style=args.style)
            write_scene(scene, args.out / f"scene_{index:05d}", preview=args.preview)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
