"""A user's own scenes: one folder per scene with ``rgir.tif``, ``ndsm.tif`` and ``labels.tif``, and ``dataset.toml``.

Any of the three may be absent: a scene without a sensor is used for what it has, one without labels trains the
generators. Rasters may differ in grid; everything comes onto that of ``rgir.tif``, or of ``ndsm.tif`` where it is
alone. ``dataset.toml``::

    rgir_bands = [1, 2, 3]          # bands of NIR, red, green (default)
    ndsm_scale_m = 1.0              # metres per unit of nDSM, after the file's own scale tag (default)

    [split]                         # default: every fifth scene by name validates, none tests
    validation = ["north"]
    test = ["harbour"]

    [[class]]                       # by index; default: the six ISPRS classes
    name = "water"
    rgb = [0, 0, 255]               # colour in labels.tif, when that is RGB; and in maps
    counted = false                 # leave it out of mF1 and mIoU (default true)

``labels.tif`` holds class indices in one 8-bit band (255 or its nodata value: unknown) or the classes' colours in
three (black: unknown).

Labels may also come from a folder of their own (``--labels DIR``), say because the images may not be copied. It holds
``<scene>.png`` on the grid of the scene, read for scenes without ``labels.tif``, and a ``README.md`` that says whose
labels they are, what they derive from and under which licence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.contract.bundle import ClassSpec
from engine.contract.formats import MalformedError, from_csv, from_toml, open_regular, read_file
from train.data.isprs import Part
from train.data.labels import IGNORE_INDEX, ISPRS_LABELS, LabelSet, decode_colours
from train.data.rasters import DataError, Raster
from train.data.scenes import Scene, is_current, write_scene

DESCRIPTION = "dataset.toml"
FILES = ("rgir", "ndsm", "labels")
TREES, TREE, CROWN_PX = "trees.csv", "tree", 2
"""Points of crowns, the class that they mean, and the radius of what is surely crown around each."""
DESCRIPTION_LIMIT_BYTES = 1 << 20
PREPARED_FORMAT = 3
"""Grows when a scene's arrays come out otherwise than before from the same files."""


@dataclass(frozen=True, kw_only=True)
class _Class:
    name: str
    rgb: tuple[int, int, int]
    counted: bool = True


@dataclass(frozen=True, kw_only=True)
class _Split:
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


class _Description(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    rgir_bands: tuple[int, int, int] = (1, 2, 3)
    ndsm_scale_m: float = 1.0
    split: _Split | None = None
    classes: tuple[_Class, ...] = msgspec.field(name="class", default=())


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A folder of scenes as a data source.

    Raises:
        DataError: there is no scene, or ``dataset.toml`` is malformed or contradicts the folder.
    """

    root: Path
    cache: Path
    overlay: Path | None = None
    """Folder of further labels, ``<scene>.png``."""
    tree_points: bool = False
    """Where a scene has no labels but ``trees.csv`` (columns x, y: a pixel of each crown), label those pixels tree."""
    left_out: tuple[str, ...] = ()
    """Beginnings of the names of scenes that neither train nor validate: a city, to see what a model does elsewhere."""
    _described: _Description = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_described", _describe(self.root))
        if self.overlay is not None and not any((self.overlay / f"{scene}.png").exists() for scene in self._scenes):
            raise DataError(f"{self.overlay} holds no labels of a scene in {self.root}: it needs <scene>.png")
        self.describe("train")  # contradictions show before anything is prepared

    @property
    def name(self) -> str:
        """For logs and tables."""
        return self.root.name

    @cached_property
    def labels(self) -> LabelSet:
        """The classes of ``dataset.toml``, or the ISPRS ones."""
        given = self._described.classes
        if not given:
            return ISPRS_LABELS
        try:
            return LabelSet(
                classes=tuple(ClassSpec(name=item.name, rgb=item.rgb) for item in given),
                counted=tuple(index for index, item in enumerate(given) if item.counted),
                ignored_rgb=() if (0, 0, 0) in {item.rgb for item in given} else ((0, 0, 0),),
            )
        except ValueError as error:
            raise DataError(f"{self.root / DESCRIPTION}: {error}") from error

    @cached_property
    def gsd_m(self) -> tuple[float, float]:
        """Finest and coarsest ground sampling distance, in metres.

        Raises:
            DataError: no raster has a metric coordinate system.
        """
        found = []
        for scene in self._scenes:
            path = next(path for name in FILES if (path := self.root / scene / f"{name}.tif").exists())
            with Raster(path) as raster:
                found.append(raster.gsd_m)
        known = [gsd_m for gsd_m in found if gsd_m is not None]
        if not known:
            raise DataError(
                f"the ground sampling distance must be known; no raster under {self.root} has a projected coordinate "
                "system: georeference at least one, as with `gdal_edit -a_srs EPSG:25832 -tr 0.1 0.1`"
            )
        return min(known), max(known)

    @property
    def rgir_bands(self) -> tuple[int, int, int]:
        """Numbers of the bands of ``rgir.tif`` that hold NIR, red, green."""
        return self._described.rgir_bands

    @property
    def ndsm_scale_m(self) -> float:
        """Metres per unit of ``ndsm.tif``."""
        return self._described.ndsm_scale_m

    def split(self, part: Part) -> tuple[Scene, ...]:
        """The scenes of a part, prepared where they are not yet.

        Raises:
            DataError: a raster cannot be used.
        """
        return tuple(self._prepare(scene) for scene in self._parts[part])

    def describe(self, part: Part) -> str:
        """In words, for checkpoints and reports."""
        return f"{self.name} {part} scenes {' '.join(self._parts[part])}"

    @cached_property
    def _scenes(self) -> tuple[str, ...]:
        found = sorted({path.parent.name for name in FILES[:2] for path in self.root.glob(f"*/{name}.tif")})
        if not found:
            raise DataError(f"{self.root} holds no scene: put rgir.tif and ndsm.tif into one folder per scene")
        return tuple(found)

    @cached_property
    def _parts(self) -> dict[Part, tuple[str, ...]]:
        split, scenes = self._described.split, self._scenes
        if split is None:
            if len(scenes) < 2:
                raise DataError(f"training needs a scene and validation another; {self.root} holds {scenes[0]} alone")
            split = _Split(validation=scenes[::5])
        held_out = {*split.validation, *split.test}
        unknown = sorted(held_out - set(scenes))
        twice = sorted({*split.validation} & {*split.test})
        if unknown or twice:
            wrong = f"no folder {', '.join(unknown)}" if unknown else f"{', '.join(twice)} in both parts"
            raise DataError(f"{self.root / DESCRIPTION}: [split] must divide the scenes; there is {wrong}")
        left_out = {scene for scene in scenes if scene.startswith(self.left_out)} if self.left_out else set[str]()
        if useless := [word for word in self.left_out if not any(scene.startswith(word) for scene in left_out)]:
            raise DataError(f"no scene in {self.root} begins with {', '.join(useless)}: leave out what there is")
        train = tuple(scene for scene in scenes if scene not in held_out | left_out)
        validation = tuple(scene for scene in split.validation if scene not in left_out)
        if not train or not validation:
            raise DataError(f"{self.root / DESCRIPTION}: [split] must leave scenes to train on and to validate with")
        return {"train": train, "validation": validation, "test": split.test}

    def _prepare(self, scene: str) -> Scene:
        files = self.files(scene)
        with Raster(next(iter(files.values()))) as grid:
            gsd_m = grid.gsd_m
        identity = {
            "format": PREPARED_FORMAT,
            "gsd_m": gsd_m,
            "description": msgspec.to_builtins(self._described),
            **{name: [str(path), path.stat().st_size, path.stat().st_mtime_ns] for name, path in files.items()},
        }
        folder = self.cache / "folder" / self.name / scene
        if is_current(folder, identity):
            return Scene(folder=folder)
        return write_scene(folder, self.read_scene(scene), identity)

    def files(self, scene: str) -> dict[str, Path]:
        """The rasters of a scene by the names in :data:`FILES`, those that exist."""
        found = {name: path for name in FILES if (path := self.root / scene / f"{name}.tif").exists()}
        if self.overlay is not None and "labels" not in found and (path := self.overlay / f"{scene}.png").exists():
            found["labels"] = path
        if self.tree_points and "labels" not in found and (path := self.root / scene / TREES).exists():
            found["trees"] = path
        return found

    def read_scene(self, scene: str) -> dict[str, NDArray[Any]]:
        """The arrays of one scene, as :mod:`train.data.scenes` names them.

        Raises:
            DataError: a raster cannot be used.
        """
        arrays: dict[str, NDArray[Any]] = {}
        paths = self.files(scene)
        with Raster(next(iter(paths.values()))) as grid:
            if (points := paths.pop("trees", None)) is not None:
                arrays["labels"] = tree_labels(points, grid.size_px, self.labels)
            for name, path in paths.items():
                with Raster(path) as raster:
                    arrays |= getattr(self, f"_read_{name}")(raster, grid)
        return arrays

    def _read_rgir(self, raster: Raster, grid: Raster) -> dict[str, NDArray[Any]]:
        values, valid = raster.read(self._described.rgir_bands, like=grid)
        if values.dtype != np.uint8:
            raise DataError(f"{raster.path} must be 8-bit, it is {values.dtype}: rescale it as the sensor delivers it")
        return {"rgir": values} if valid.all() else {"rgir": values, "rgir_valid": valid}

    def _read_ndsm(self, raster: Raster, grid: Raster) -> dict[str, NDArray[Any]]:
        values, valid = raster.read((1,), like=grid)
        scale, offset = raster.factors(1)
        metres = (values.astype(np.float32) * np.float32(scale) + np.float32(offset)) * np.float32(
            self._described.ndsm_scale_m
        )
        metres[:, ~valid] = np.nan
        metres[~np.isfinite(metres)] = np.nan
        if not np.isfinite(metres).any():
            raise DataError(f"{raster.path} holds no height at all: remove the file, or check its nodata value")
        return {"ndsm": metres.astype(np.float16)}

    def _read_labels(self, raster: Raster, grid: Raster) -> dict[str, NDArray[Any]]:
        bands = (1, 2, 3) if raster.file.count >= 3 else (1,)
        values, valid = raster.read(bands, like=grid, nearest=True)
        if values.dtype != np.uint8:
            raise DataError(f"{raster.path} must hold 8-bit class indices or colours, it is {values.dtype}")
        if len(bands) == 3:
            decoded = decode_colours(values, self.labels)
            if decoded.unmatched:
                raise DataError(
                    f"{raster.path}: {decoded.unmatched} pixels have a colour that is no class, such as "
                    f"{decoded.example_rgb}: add it to {self.root / DESCRIPTION}, or correct the labels"
                )
            found = decoded.labels
        else:
            found = values[0]
            wrong = np.unique(found[valid & (found != IGNORE_INDEX) & (found >= len(self.labels.classes))])
            if wrong.size:
                raise DataError(
                    f"{raster.path}: indices must lie in 0..{len(self.labels.classes) - 1} or be 255, received "
                    f"{wrong[:5].tolist()}: list every class in {self.root / DESCRIPTION}"
                )
        return {"labels": np.where(valid, found, np.uint8(IGNORE_INDEX))}


def tree_labels(path: Path, size_px: tuple[int, int], labels: LabelSet) -> NDArray[np.uint8]:
    """Labels that know marked crowns alone, uint8 [H, W].

    Args:
        path: CSV with columns x and y, in pixels.
        size_px: height and width.
        labels: the classes, one of them ``tree``.

    Raises:
        DataError: there is no class of that name, or the file is malformed.
    """
    if TREE not in labels.names:
        raise DataError(f"{path} needs a class {TREE}, the data has {', '.join(labels.names)}: remove the file")
    found = np.full(size_px, IGNORE_INDEX, np.uint8)
    try:
        with open_regular(path) as file:
            points = [(float(row["y"]), float(row["x"])) for row in from_csv(file, ("x", "y"), others=True)]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must have numbers in columns x and y ({error}): correct or remove it") from error
    rows, cols = np.ogrid[: size_px[0], : size_px[1]]
    for y, x in points:
        found[(rows - y) ** 2 + (cols - x) ** 2 <= CROWN_PX**2] = labels.names.index(TREE)
    return found


def _describe(root: Path) -> _Description:
    if not root.is_dir():
        raise DataError(f"{root} is no folder: pass one that holds a folder per scene")
    path = root / DESCRIPTION
    if not path.exists():
        return _Description()
    try:
        described = from_toml(read_file(path, DESCRIPTION_LIMIT_BYTES), _Description)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except MalformedError as error:
        raise DataError(f"{path}: {error}: see `python -m train.data.check --help` for an example") from error
    if min(described.rgir_bands) < 1:
        raise DataError(f"{path}: rgir_bands are counted from 1, received {list(described.rgir_bands)}")
    if not (math.isfinite(described.ndsm_scale_m) and described.ndsm_scale_m > 0):
        raise DataError(f"{path}: ndsm_scale_m must be a positive number, received {described.ndsm_scale_m}")
    return described
