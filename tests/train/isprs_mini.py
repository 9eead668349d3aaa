"""Miniature Vaihingen and Potsdam: the official folders, names, encodings and every known defect, 64 px a tile."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

from train.data.isprs import POTSDAM, VAIHINGEN, City
from train.data.labels import ISPRS_LABELS

SIDE = 64
LOSSY, YELLOW, SHORT = "4_12", "6_7", "3_13"


def truth_of(tile: str, side: int = SIDE) -> NDArray[np.uint8]:
    """Blocks of classes with a building in the middle and a few cars."""
    rng = np.random.default_rng([ord(letter) for letter in tile])
    labels = np.kron(rng.integers(0, 4, (side // 16, side // 16)), np.ones((16, 16), int)).astype(np.uint8)
    labels[20:44, 18:40] = 1
    labels[2:5, 2:7] = 4
    labels[60:62, 50:60] = 5
    return labels


def height_of(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decimetres, 255 for at least 25.5 m."""
    return np.array([0, 90, 3, 255, 15, 10], np.uint8)[labels]


def write(path: Path, bands: NDArray, *, driver: str = "GTiff", **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    shape = {"count": count, "height": height, "width": width}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver=driver, dtype=bands.dtype, **shape, **options) as file:
            file.write(bands)


def colours(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return ISPRS_LABELS.palette()[labels].transpose(2, 0, 1).copy()


def image(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """NIR, red, green that tell the class."""
    return np.stack([labels * 40 + 10, labels * 30 + 10, labels * 20 + 10]).astype(np.uint8)


def vaihingen(root: Path, tiles: tuple[str, ...] | None = None) -> Path:
    for tile in tiles or sum(VAIHINGEN.splits.values(), ()):
        labels = truth_of(tile)
        name = f"top_mosaic_09cm_area{tile}"
        write(root / "top" / f"{name}.tif", image(labels))
        write(root / "gts_for_participants" / f"{name}.tif", colours(labels))
        eroded = colours(labels)
        eroded[:, 20:23] = 0
        write(root / "gts_eroded_for_participants" / f"{name}_noBoundary.tif", eroded)
        height = height_of(labels)[None]
        write(root / "ndsm" / f"dsm_09cm_matching_area{tile}_normalized.jpg", height, driver="JPEG", quality=100)
    return root


def potsdam(root: Path, tiles: tuple[str, ...] | None = None) -> Path:
    for tile in tiles or sum(POTSDAM.splits.values(), ()):
        labels = truth_of(tile)
        rgb = colours(labels)
        if tile == LOSSY:
            noise = np.random.default_rng(0).integers(0, 60, rgb.shape)
            rgb = np.where(rgb > 127, 255 - noise, noise).astype(np.uint8)
        if tile == YELLOW:
            rgb[0][labels == 4] = 252
        write(root / "3_Ortho_IRRG" / f"top_potsdam_{tile}_IRRG.tif", image(labels))
        write(root / "5_Labels_all" / f"top_potsdam_{tile}_label.tif", rgb)
        row, col = (int(number) for number in tile.split("_"))
        height = height_of(labels)[None]
        height = height[:, :, :-1] if tile == SHORT else height
        name = f"dsm_potsdam_{row:02d}_{col:02d}_normalized_lastools.jpg"
        write(root / "1_DSM_normalisation" / name, height, driver="JPEG", quality=100)
    return root


MAKERS = {"vaihingen": vaihingen, "potsdam": potsdam}


def make(city: City, root: Path, tiles: tuple[str, ...] | None = None) -> Path:
    return MAKERS[city.name](root, tiles)
