"""ISPRS Vaihingen and Potsdam in their official layouts, with every known defect handled.

Source: the 2-D semantic labelling contest, https://www.isprs.org/education/benchmarks/UrbanSemLab/. Files are found
by name anywhere under the root, so that it does not matter how the archives were unpacked.

Known defects:

- Potsdam label 4_12 is a lossy re-encode and 6_7 codes most cars (252, 255, 0): channels are rounded at 127.
- Potsdam nDSM 03_13 has one column less than its image: the missing border counts as not measured. A difference of
  more than :data:`SIZE_TOLERANCE_PX` is an error.
- Heights are 8-bit decimetres on one fixed scale (255: at least 25.5 m); they are never stretched per tile.
- A colour that is no class becomes unknown, never class 0; more than :data:`UNMATCHED_LIMIT` of them is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from train.data.labels import IGNORE_INDEX, ISPRS_LABELS, decode_colours
from train.data.rasters import DataError, Raster
from train.data.scenes import Scene, is_current, write_scene

DECIMETRE_M = 0.1
SIZE_TOLERANCE_PX = 1
UNMATCHED_LIMIT = 1e-3
"""Share of pixels in unknown colours that is put down to noise."""
EROSION_RADIUS_PX = 3
"""The contest's own eroded labels leave out a disc of this radius around class boundaries."""
PREPARED_FORMAT = 1

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class City:
    """Names, splits and scale of one data set. Patterns have the tile's name as group ``tile``."""

    name: str
    gsd_m: float
    rgir: tuple[tuple[str, tuple[int, int, int]], ...]
    """(pattern, bands of NIR, red, green), the preferred one first."""
    ndsm: str
    labels: str
    labels_eroded: str
    labels_folder: str | None
    """Labels that share their images' name are told by their folder."""
    splits: Mapping[Part, tuple[str, ...]]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


VAIHINGEN = City(
    name="vaihingen",
    gsd_m=0.09,
    rgir=((r"top_mosaic_09cm_area(?P<tile>\d+)\.tif", (1, 2, 3)),),
    ndsm=r"dsm_09cm_matching_area(?P<tile>\d+)_normalized\.(jpg|tif)",
    labels=r"top_mosaic_09cm_area(?P<tile>\d+)\.tif",
    labels_eroded=r"top_mosaic_09cm_area(?P<tile>\d+)_noBoundary\.tif",
    labels_folder=r"gts|ground_truth|label",
    splits={
        "train": _names("1 3 5 7 13 15 17 21 23 26 30 32 34 37"),
        # two of the sixteen official training tiles, none of the test tiles
        "validation": _names("11 28"),
        "test": _names("2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38"),
    },
)

POTSDAM = City(
    name="potsdam",
    gsd_m=0.05,
    rgir=(
        (r"top_potsdam_(?P<tile>\d+_\d+)_IRRG\.tif", (1, 2, 3)),
        (r"top_potsdam_(?P<tile>\d+_\d+)_RGBIR\.tif", (4, 1, 2)),
    ),
    ndsm=r"dsm_potsdam_(?P<tile>\d+_\d+)_normalized_lastools\.(jpg|tif)",
    labels=r"top_potsdam_(?P<tile>\d+_\d+)_label\.tif",
    labels_eroded=r"top_potsdam_(?P<tile>\d+_\d+)_label_noBoundary\.tif",
    labels_folder=None,
    splits={
        "train": _names("2_10 2_11 2_12 3_10 3_12 4_10 4_11 4_12 5_10 5_11 6_7 6_8 6_9 6_10 6_11 6_12")
        + _names("7_7 7_8 7_10 7_11 7_12"),
        # three of the twenty-four official training tiles, none of the test tiles
        "validation": _names("3_11 5_12 7_9"),
        "test": _names("2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13"),
    },
)

CITIES = {city.name: city for city in (VAIHINGEN, POTSDAM)}


@dataclass(frozen=True, kw_only=True)
class TileFiles:
    """The files of one tile; None where the download lacks it."""

    tile: str
    rgir: Path | None = None
    rgir_bands: tuple[int, int, int] = (1, 2, 3)
    ndsm: Path | None = None
    labels: Path | None = None
    labels_eroded: Path | None = None

    def identity(self) -> dict[str, Any]:
        """Changes when a file does."""
        files = {name: path for name, path in vars(self).items() if isinstance(path, Path)}
        return {
            "format": PREPARED_FORMAT,
            **{name: [path.name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in files.items()},
        }


def find_tiles(root: Path, city: City) -> dict[str, TileFiles]:
    """Every tile of the splits with the files that are there.

    Raises:
        DataError: the root is no folder, or nothing in it belongs to the city.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder: pass the one the {city.name} archives were unpacked into")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in {".tif", ".jpg"})
    found: dict[str, dict[str, Any]] = {tile: {} for part in city.splits.values() for tile in part}

    def take(field: str, pattern: str, chosen: Any = lambda path: True, **more: Any) -> None:
        for path in files:
            match = re.fullmatch(pattern, path.name, re.IGNORECASE)
            if match is None or not chosen(path):
                continue
            # Potsdam pads the indices of its heights with zeros
            tile = "_".join(str(int(number)) for number in match["tile"].split("_"))
            if tile in found and field not in found[tile]:
                found[tile] |= {field: path, **more}

    def is_label(path: Path) -> bool:
        return city.labels_folder is None or bool(
            re.search(city.labels_folder, str(path.parent.relative_to(root)), re.IGNORECASE)
        )

    for pattern, bands in city.rgir:
        take("rgir", pattern, lambda path: city.labels_folder is None or not is_label(path), rgir_bands=bands)
    take("ndsm", city.ndsm)
    take("labels", city.labels, is_label)
    take("labels_eroded", city.labels_eroded)
    if not any(found.values()):
        archives = [path.name for path in root.rglob("*.zip")][:3]
        hint = f"unpack {', '.join(archives)}" if archives else "pass the folder the archives were unpacked into"
        raise DataError(f"{root} holds no file of {city.name}: {hint}")
    return {tile: TileFiles(tile=tile, **fields) for tile, fields in found.items()}


@dataclass(frozen=True, kw_only=True)
class IsprsSource:
    """One of the two cities as a data source."""

    root: Path
    city: City
    cache: Path

    labels = ISPRS_LABELS

    @property
    def name(self) -> str:
        """For logs and tables."""
        return self.city.name

    @property
    def gsd_m(self) -> tuple[float, float]:
        """Finest and coarsest ground sampling distance, in metres."""
        return self.city.gsd_m, self.city.gsd_m

    def split(self, part: Part) -> tuple[Scene, ...]:
        """The scenes of a part, prepared where they are not yet.

        Raises:
            DataError: a tile lacks a file, or a file cannot be used.
        """
        tiles = find_tiles(self.root, self.city)
        return tuple(self._scene(tiles[tile]) for tile in self.city.splits[part])

    def describe(self, part: Part) -> str:
        """In words, for checkpoints and reports."""
        return f"{self.city.name} {part} tiles {' '.join(self.city.splits[part])}"

    def _scene(self, files: TileFiles) -> Scene:
        lacking = [name for name in ("rgir", "ndsm", "labels") if getattr(files, name) is None]
        if lacking:
            raise DataError(
                f"{self.city.name} tile {files.tile} lacks {', '.join(lacking)} under {self.root}: "
                f"see what is missing with `python -m train.data.check {self.root}`"
            )
        folder, identity = self.cache / self.city.name / files.tile, files.identity()
        if is_current(folder, identity):
            return Scene(folder=folder)
        return write_scene(folder, read_tile(files), identity)


def read_tile(files: TileFiles) -> dict[str, NDArray[Any]]:
    """The arrays of one tile, as :mod:`train.data.scenes` names them.

    Raises:
        DataError: a file is damaged, or sizes or colours do not fit.
    """
    assert files.rgir is not None, "a tile is read when it has its files"
    assert files.ndsm is not None
    assert files.labels is not None
    with Raster(files.rgir) as raster:
        rgir, _ = raster.read(files.rgir_bands)
    if rgir.dtype != np.uint8:
        raise DataError(f"{files.rgir} must be 8-bit, it is {rgir.dtype}: take the official file")
    size = (rgir.shape[1], rgir.shape[2])
    arrays = {"rgir": rgir, "ndsm": read_height(files.ndsm, size), "labels": read_labels(files.labels, size)}
    if files.labels_eroded is not None:
        arrays["labels_eroded"] = read_labels(files.labels_eroded, size)
    else:
        arrays["labels_eroded"] = erode(arrays["labels"])
    return arrays


def read_height(path: Path, size_px: tuple[int, int]) -> NDArray[np.float16]:
    """8-bit decimetres as metres, float16 [1, H, W]; a border that is missing is NaN.

    Raises:
        DataError: not one 8-bit band, or another size than the image's.
    """
    with Raster(path) as raster:
        if raster.file.count != 1 or raster.file.dtypes[0] != "uint8":
            raise DataError(
                f"{path} must hold one 8-bit band of decimetres, it has {raster.file.count} of "
                f"{raster.file.dtypes[0]}: take the file whose name ends in _normalized (Vaihingen) or "
                "_normalized_lastools (Potsdam)"
            )
        _check_size(path, raster.size_px, size_px, SIZE_TOLERANCE_PX)
        values, _ = raster.read((1,))
    height, width = (min(a, b) for a, b in zip(values.shape[1:], size_px, strict=True))
    metres = np.full((1, *size_px), np.nan, np.float16)
    metres[:, :height, :width] = values[:, :height, :width] * np.float32(DECIMETRE_M)
    return metres


def read_labels(path: Path, size_px: tuple[int, int]) -> NDArray[np.uint8]:
    """Class indices, uint8 [H, W].

    Raises:
        DataError: not an RGB image of that size, or too many unknown colours.
    """
    with Raster(path) as raster:
        _check_size(path, raster.size_px, size_px, 0)
        if raster.file.count < 3 or raster.file.dtypes[0] != "uint8":
            raise DataError(
                f"{path} must be an 8-bit RGB image, it has {raster.file.count} band(s): take the RGB labels"
            )
        rgb, _ = raster.read((1, 2, 3))
    decoded = decode_colours(rgb, ISPRS_LABELS, threshold=True)
    if decoded.unmatched > UNMATCHED_LIMIT * decoded.labels.size:
        raise DataError(
            f"{path}: {decoded.unmatched} pixels have a colour that is no class, such as {decoded.example_rgb}: "
            "take the official label file"
        )
    return decoded.labels


def erode(labels: NDArray[np.uint8], radius_px: int = EROSION_RADIUS_PX) -> NDArray[np.uint8]:
    """Labels with everything within ``radius_px`` of another class set to unknown, uint8 [H, W]."""
    near = np.zeros(labels.shape, np.bool_)
    height, width = labels.shape
    steps = range(-radius_px, radius_px + 1)
    for down, right in ((y, x) for y in steps for x in steps if 0 < x * x + y * y <= radius_px * radius_px):
        here = np.s_[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
        there = np.s_[max(0, down) : height - max(0, -down), max(0, right) : width - max(0, -right)]
        near[here] |= labels[here] != labels[there]
    return np.where(near, np.uint8(IGNORE_INDEX), labels)


def _check_size(path: Path, found: tuple[int, int], wanted: tuple[int, int], tolerance_px: int) -> None:
    if any(abs(a - b) > tolerance_px for a, b in zip(found, wanted, strict=True)):
        raise DataError(
            f"{path} is {found[0]} x {found[1]} px but its image is {wanted[0]} x {wanted[1]} px "
            f"(at most {tolerance_px} px may differ): copy it again"
        )
