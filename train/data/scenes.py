"""Prepared scenes: what every data source becomes before training, so that a crop costs one memory-mapped window.

::

    scene folder/
    ├── rgir.npy             uint8 [3, H, W], NIR-R-G                    without it the scene has no such sensor
    ├── rgir_valid.npy       bool [H, W]                                 without it every pixel is valid
    ├── ndsm.npy             float16 [1, H, W], metres, NaN where not measured
    ├── labels.npy           uint8 [H, W], 255 unknown                   without it the scene trains generators alone
    ├── labels_eroded.npy    the same, 255 also near class boundaries; for evaluation
    └── source.json          what it was made from, to notice when that changes

A folder appears under its final name only when it is whole, so that an interrupted preparation goes on where it was.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.contract import nodata
from engine.contract.formats import MalformedError, from_json, read_file
from engine.contract.sensors import Sensor
from train.data.labels import IGNORE_INDEX
from train.data.rasters import DataError

SOURCE_NAME = "source.json"
ARRAYS = {"rgir": np.uint8, "rgir_valid": np.bool_, "ndsm": np.float16, "labels": np.uint8, "labels_eroded": np.uint8}


@dataclass(frozen=True, kw_only=True)
class SceneWindow:
    """Part of a scene, in memory. An absent sensor is zeros that are valid nowhere."""

    rgir: NDArray[np.uint8]
    """uint8 [3, h, w]; where not valid, mirrored from what is (:func:`engine.contract.nodata.fill_nodata`)."""
    rgir_valid: NDArray[np.bool_]
    ndsm: NDArray[np.float32]
    """float32 [h, w], metres, finite; filled as ``rgir``."""
    ndsm_valid: NDArray[np.bool_]
    labels: NDArray[np.uint8]
    """uint8 [h, w]; 255 everywhere in a scene without labels."""


class _Known(msgspec.Struct, frozen=True):
    """What of :data:`SOURCE_NAME` is read back."""

    gsd_m: float | None = None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A prepared scene, opened without being read.

    Raises:
        FileNotFoundError: the folder holds neither sensor.
        ValueError: its arrays differ in size or dtype.
    """

    folder: Path

    def __post_init__(self) -> None:
        found = {name: array for name in ARRAYS if (array := self._open(name)) is not None}
        if not {"rgir", "ndsm"} & set(found):
            raise FileNotFoundError(f"{self.folder} holds neither rgir.npy nor ndsm.npy: prepare the data again")
        for name, array in found.items():
            if array.dtype != ARRAYS[name]:
                raise ValueError(f"{self.folder}/{name}.npy must be {np.dtype(ARRAYS[name])}, received {array.dtype}")
        sizes = {name: array.shape[-2:] for name, array in found.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the arrays of a scene must have one size; {self.folder} holds {sizes}")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        array = self._open("rgir")
        array = self._open("ndsm") if array is None else array
        assert array is not None
        return array.shape[-2], array.shape[-1]

    @property
    def sensors(self) -> frozenset[Sensor]:
        """The sensors this scene has."""
        return frozenset(sensor for sensor in Sensor if (self.folder / f"{sensor}.npy").exists())

    @property
    def labelled(self) -> bool:
        """Whether classes are known anywhere."""
        return (self.folder / "labels.npy").exists()

    @cached_property
    def gsd_m(self) -> float | None:
        """Ground sampling distance in metres, None where it is not known."""
        try:
            return from_json(read_file(self.folder / SOURCE_NAME), _Known).gsd_m
        except OSError:
            return None
        except MalformedError as error:
            raise DataError(
                f"{self.folder / SOURCE_NAME}: {error}: delete the folder, it will be prepared again"
            ) from error

    def read(self, row: int, col: int, height: int, width: int) -> SceneWindow:
        """A window inside the scene."""
        crop = np.s_[..., row : row + height, col : col + width]
        rgir, seen, heights, labels = (self._open(name) for name in ("rgir", "rgir_valid", "ndsm", "labels"))
        nothing = np.zeros((height, width), np.bool_)
        optical, optical_valid = np.zeros((3, height, width), np.uint8), nothing
        if rgir is not None:
            optical_valid = np.ones((height, width), np.bool_) if seen is None else np.array(seen[crop])
            optical = nodata.fill_nodata(np.array(rgir[crop]), optical_valid)
        ndsm, ndsm_valid = np.zeros((height, width), np.float32), nothing
        if heights is not None:
            ndsm, ndsm_valid = fill_height(np.asarray(heights[crop])[0].astype(np.float32))
        return SceneWindow(
            rgir=optical,
            rgir_valid=optical_valid,
            ndsm=ndsm,
            ndsm_valid=ndsm_valid,
            labels=np.full((height, width), IGNORE_INDEX, np.uint8) if labels is None else np.array(labels[crop]),
        )

    def labels(self, *, eroded: bool = False) -> NDArray[np.uint8]:
        """All labels, memory-mapped where they are on disk; eroded ones fall back to none, not to the whole ones.

        Raises:
            FileNotFoundError: the scene has no such labels.
        """
        name = "labels_eroded" if eroded else "labels"
        found = self._open(name)
        if found is None:
            raise FileNotFoundError(f"{self.folder} has no {name}.npy")
        return found

    @property
    def has_eroded_labels(self) -> bool:
        """Whether labels without the pixels near class boundaries exist."""
        return (self.folder / "labels_eroded.npy").exists()

    def bands(self, sensor: Sensor) -> NDArray[Any]:
        """A sensor's whole array, memory-mapped.

        Raises:
            FileNotFoundError: the scene lacks the sensor.
        """
        found = self._open(sensor.value)
        if found is None:
            raise FileNotFoundError(f"{self.folder} has no {sensor}")
        return found

    def _open(self, name: str) -> NDArray[Any] | None:
        path = self.folder / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r") if path.exists() else None
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is damaged ({error}): delete {self.folder}, it will be prepared again") from error


def fill_height(height: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Replace NaN as the runtime does (:func:`engine.contract.nodata.fill_nodata`).

    Args:
        height: float32 [H, W].

    Returns:
        The filled heights (0 everywhere when nothing is valid) and where they were measured, bool [H, W].
    """
    valid = np.isfinite(height)
    return nodata.fill_nodata(height[None].astype(np.float32), valid)[0], valid


def write_scene(folder: Path, arrays: Mapping[str, NDArray[Any]], source: Mapping[str, Any]) -> Scene:
    """Write a scene whole or not at all; one that another process finished meanwhile is kept.

    Args:
        folder: the scene's final folder.
        arrays: by the names in :data:`ARRAYS`.
        source: JSON values that change when the scene has to be made again.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".scene-"))
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array.astype(ARRAYS[name], copy=False))
        (temporary / SOURCE_NAME).write_bytes(msgspec.json.encode(source))
        if not folder.is_dir():
            temporary.rename(folder)
    except OSError:
        # Another process may have finished the same scene between the check and the rename.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Scene(folder=folder)


def is_current(folder: Path, source: Mapping[str, Any]) -> bool:
    """Whether ``folder`` holds the scene made from ``source``; one made from something else is removed.

    Raises:
        DataError: the folder is none that :func:`write_scene` made, so that it must not be removed.
    """
    if not folder.is_dir():
        return False
    try:
        known = from_json(read_file(folder / SOURCE_NAME), object)
    except OSError as error:
        raise DataError(
            f"{folder} would be replaced, but holds no {SOURCE_NAME} to show that it is a prepared scene "
            f"({error.strerror}): move it, or choose another --cache"
        ) from error
    except MalformedError:
        known = None
    # As text: a tuple comes back as a list.
    if msgspec.json.encode(known, order="sorted") == msgspec.json.encode(source, order="sorted"):
        return True
    shutil.rmtree(folder)
    return False
