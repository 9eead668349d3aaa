"""Labelled scenes on disk, as tiles of a graph's size.

A scene is a folder with three files on one grid, in either of two layouts:

- ``rgir.npy`` uint8 [3, H, W], ``ndsm.npy`` floating [1, H, W] in metres with NaN holes, ``labels.npy`` uint8 [H, W]:
  the cache of :mod:`train.data`;
- ``rgir.tif``, ``ndsm.tif``, ``labels.tif`` with the same content: what ``python -m train.data.synthetic`` writes.

Labels are class indices, 255 where unknown. Holes in the heights are filled as the runtime fills them
(:func:`engine.contract.nodata.fill_nodata`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from engine.contract.errors import GridError, RasterFormatError, RasterOpenError, UsageError
from engine.contract.nodata import fill_nodata
from engine.contract.sensors import Scenario, Sensor

UNKNOWN = 255
BANDS = {Sensor.RGIR: 3, Sensor.NDSM: 1}
LABELS = "labels"


class Role(StrEnum):
    """What a scene is used for; no scene has two roles."""

    CALIBRATE = "calibrate"
    """Activation ranges are measured on it."""
    SEARCH = "search"
    """Methods and layers are chosen by it."""
    EVALUATE = "evaluate"
    """The published scores come from it, and nothing was chosen by it."""


@dataclass(frozen=True, kw_only=True)
class SceneFolder:
    """A scene's folder and size.

    Raises:
        RasterOpenError: a file is missing or cannot be read.
        RasterFormatError: a file has another band count or dtype than the module docstring says.
        GridError: the three files differ in size.
    """

    folder: Path
    height_px: int
    width_px: int

    @classmethod
    def open(cls, folder: Path) -> SceneFolder:
        """Look at the three files of ``folder`` without reading them."""
        shapes = {name: _shape(_file(folder, name), bands) for name, bands in _FILES.items()}
        if len(set(shapes.values())) > 1:
            raise GridError(
                f"the files of a scene must share one grid, received {shapes} in {folder}: warp them onto one"
            )
        height, width = shapes[LABELS]
        return cls(folder=folder, height_px=height, width_px=width)

    def tiles(self, tile_px: int) -> list[SceneTile]:
        """As many tiles as fit side by side, from the top left."""
        return [
            SceneTile(scene=self, top=top, left=left, size_px=tile_px)
            for top in range(0, self.height_px - tile_px + 1, tile_px)
            for left in range(0, self.width_px - tile_px + 1, tile_px)
        ]


@dataclass(frozen=True, kw_only=True)
class TileSample:
    """What a tile holds: raw sensor units without holes, and the truth."""

    name: str
    """Of the tile."""
    rgir: NDArray[np.uint8]
    """uint8 [3, T, T]."""
    ndsm: NDArray[np.float32]
    """float32 [1, T, T], metres, finite."""
    labels: NDArray[np.uint8]
    """uint8 [T, T]; 255 where unknown."""

    def inputs(self, scenario: Scenario) -> dict[str, NDArray[np.generic]]:
        """A batch of one for a scenario's graph, by input name."""
        values: dict[Sensor, NDArray[Any]] = {Sensor.RGIR: self.rgir, Sensor.NDSM: self.ndsm}
        return {sensor.value: values[sensor][None] for sensor in Sensor if sensor in scenario.sensors}

    def known(self, classes: int) -> NDArray[np.bool_]:
        """Where the truth is known, bool [T, T].

        Raises:
            RasterFormatError: a label is no class.
        """
        known: NDArray[np.bool_] = self.labels != UNKNOWN
        largest = int(self.labels[known].max(initial=0))
        if largest >= classes:
            raise RasterFormatError(
                f"labels are indices of the bundle's {classes} classes, or {UNKNOWN} where unknown; received {largest} "
                f"in {self.name}: renumber the labels or pass the bundle they belong to"
            )
        return known


@dataclass(frozen=True, kw_only=True)
class SceneTile:
    """A square of a scene. Its pixels are read when asked for, and not kept."""

    scene: SceneFolder
    top: int
    left: int
    size_px: int

    @property
    def name(self) -> str:
        """Scene and place, for reports."""
        return f"{self.scene.folder.name}@{self.top},{self.left}"

    def read(self) -> TileSample:
        """The tile's pixels.

        Raises:
            RasterOpenError: a file is gone or damaged.
        """
        raw = {name: self._read(_file(self.scene.folder, name)) for name in _FILES}
        ndsm = raw[Sensor.NDSM].astype(np.float32)
        return TileSample(
            name=self.name,
            rgir=np.ascontiguousarray(raw[Sensor.RGIR]),
            ndsm=np.ascontiguousarray(fill_nodata(ndsm, np.isfinite(ndsm[0]))),
            labels=np.ascontiguousarray(raw[LABELS][0]),
        )

    @cached_property
    def sha256(self) -> str:
        """Of the pixels as a graph and a score see them, whatever file format they came from."""
        sample = self.read()
        digest = hashlib.sha256()
        for array in (sample.rgir, sample.ndsm, sample.labels):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _read(self, path: Path) -> NDArray[np.generic]:
        rows, columns = (slice(start, start + self.size_px) for start in (self.top, self.left))
        try:
            if path.suffix == ".npy":
                whole = np.load(path, mmap_mode="r")
                return np.array((whole if whole.ndim == 3 else whole[None])[:, rows, columns])
            with rasterio.open(path) as source:
                band = source.read(window=Window(self.left, self.top, self.size_px, self.size_px), masked=True)
        except (OSError, ValueError, EOFError, RasterioError) as error:
            raise RasterOpenError(f"{path} cannot be read: {error}: restore the scene or leave it out") from error
        values: NDArray[np.generic] = band.filled(np.nan if band.dtype.kind == "f" else band.fill_value)
        return values


def find_scenes(root: Path) -> list[SceneFolder]:
    """Every scene directly in ``root``, by name.

    Raises:
        RasterOpenError: there is none, or ``root`` is no folder.
        InputError: one of them is not as the module docstring says.
    """
    if not root.is_dir():
        raise RasterOpenError(f"--data must be a folder of scenes, received {root}, which is no folder")
    found = [
        SceneFolder.open(folder)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".") and _has_labels(folder)
    ]
    if not found:
        raise RasterOpenError(
            f"--data must hold scenes, each a folder with rgir, ndsm and labels as .npy or .tif; received {root}, "
            "which has none: write some with `python -m train.data.synthetic --out DIR --count 40`"
        )
    return found


def assign_roles(scenes: Sequence[SceneFolder]) -> dict[Role, list[SceneFolder]]:
    """Split scenes by what they are used for.

    Folders named ``scene_{seed}`` that cover all three ranges of :mod:`train.data` (training from 0, validation from
    1,000,000, evaluation from 2,000,000) keep to them: calibration sees nothing that scores do. Any others are dealt by
    the hash of their name, half to calibration and a quarter each to search and evaluation, so that adding a scene
    moves no other.

    Raises:
        UsageError: a role got no scene.
    """
    seeds = [re.fullmatch(r"scene_(\d+)", scene.folder.name) for scene in scenes]
    by_seed = [_SEED_ROLES[min(int(match[1]) // 1_000_000, 2)] if match else None for match in seeds]
    if set(by_seed) == set(Role):
        roles = [role for role in by_seed if role]
    else:
        roles = [_HASH_ROLES[hashlib.sha256(scene.folder.name.encode()).digest()[0] % 4] for scene in scenes]
    dealt = {role: [scene for scene, mine in zip(scenes, roles, strict=True) if mine is role] for role in Role}
    empty = [role.value for role in Role if not dealt[role]]
    if empty:
        raise UsageError(
            f"scenes are needed to calibrate, to search and to evaluate; of {len(scenes)} none fell to "
            f"{' and '.join(empty)}: add scenes to --data (a dozen is enough for each to get some)"
        )
    return dealt


def tiles_of(scenes: Sequence[SceneFolder], tile_px: int) -> list[SceneTile]:
    """Every tile of several scenes.

    Raises:
        RasterFormatError: none of them holds a whole tile.
    """
    tiles = [tile for scene in scenes for tile in scene.tiles(tile_px)]
    if not tiles:
        raise RasterFormatError(
            f"a scene must be at least a tile of {tile_px} px wide and high; the largest of {len(scenes)} is "
            f"{max(scene.width_px for scene in scenes)} x {max(scene.height_px for scene in scenes)} px"
        )
    return tiles


def in_hash_order(tiles: Sequence[SceneTile]) -> list[SceneTile]:
    """Tiles in an order that has nothing to do with their content: a prefix is an unbiased sample."""
    return sorted(tiles, key=lambda tile: hashlib.sha256(tile.name.encode()).digest())


_SEED_ROLES = (Role.CALIBRATE, Role.SEARCH, Role.EVALUATE)
_HASH_ROLES = (Role.CALIBRATE, Role.CALIBRATE, Role.SEARCH, Role.EVALUATE)
_FILES: Mapping[str, int] = {**{sensor.value: count for sensor, count in BANDS.items()}, LABELS: 1}


def _has_labels(folder: Path) -> bool:
    return any((folder / f"{LABELS}{suffix}").is_file() for suffix in (".npy", ".tif"))


def _file(folder: Path, name: str) -> Path:
    array = folder / f"{name}.npy"
    return array if array.exists() else folder / f"{name}.tif"


def _shape(path: Path, bands: int) -> tuple[int, int]:
    """(height, width) of a file with ``bands`` bands of the expected kind."""
    try:
        if path.suffix == ".npy":
            header = np.load(path, mmap_mode="r")
            shape, dtype = header.shape, header.dtype
            shape = (1, *shape) if len(shape) == 2 else shape
        else:
            with rasterio.open(path) as source:
                shape, dtype = (source.count, source.height, source.width), np.dtype(source.dtypes[0])
    except (OSError, ValueError, EOFError, RasterioError) as error:
        raise RasterOpenError(f"{path} cannot be read: {error}: restore the scene or leave it out") from error
    kind = "a floating type" if path.stem == Sensor.NDSM else "uint8"
    fits = dtype.kind == "f" if path.stem == Sensor.NDSM else dtype == np.uint8
    if len(shape) != 3 or shape[0] != bands or not fits:
        raise RasterFormatError(f"{path} must have {bands} band(s) of {kind}, received {shape} of {dtype}")
    return shape[1], shape[2]
