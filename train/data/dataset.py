"""Training samples: scenes cached on disk, random crops of them, and augmentation in numpy.

A cached scene is a folder ``scene_{seed:08d}`` of three arrays that are memory-mapped on reading:
``rgir.npy`` uint8 [3, H, W], ``ndsm.npy`` float16 [1, H, W] in metres with NaN holes, ``labels.npy`` uint8
[H, W]. A folder appears under its final name only when it is whole, so an interrupted run resumes.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from engine.contract import holes
from engine.contract.sensors import Scenario
from train.data import synthetic
from train.model import availability

log = logging.getLogger(__name__)

VALIDATION_SEED = 1_000_000
"""Training scenes have seeds from 0 up, validation scenes from here up; :mod:`train.evaluate` starts at 2e6."""


class CachedScene(NamedTuple):
    """Arrays of one scene, memory-mapped; shapes and units in the module docstring."""

    rgir: NDArray[np.uint8]
    ndsm: NDArray[np.float16]
    labels: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SceneCache:
    """A folder of scenes, filled by seed.

    Raises:
        FileNotFoundError: on reading a scene that has not been generated.
    """

    root: Path

    def path(self, seed: int) -> Path:
        """The folder of one scene."""
        return self.root / f"scene_{seed:08d}"

    def load(self, seed: int) -> CachedScene:
        """Open one scene without reading it."""
        folder = self.path(seed)
        return CachedScene(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in CachedScene._fields))

    def fill(self, seeds: Sequence[int], *, size_px: int = 512, workers: int | None = None) -> None:
        """Generate the scenes that are not there yet, in parallel, with progress.

        Args:
            seeds: which scenes must exist afterwards.
            size_px: side of a scene.
            workers: processes; the number of CPUs by default.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._note_generator()
        missing = [seed for seed in seeds if not self.path(seed).is_dir()]
        if not missing:
            return
        workers = min(workers or os.cpu_count() or 1, len(missing))
        make = partial(_generate, self, size_px)
        bar = partial(tqdm, total=len(missing), desc="generating scenes", unit="scene")
        if workers == 1:
            for _ in bar(map(make, missing)):
                pass
            return
        # spawn: a fork of a process whose torch already runs threads can hang.
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for _ in bar(pool.imap_unordered(make, missing)):
                pass

    def _note_generator(self) -> None:
        # Scenes of an older generator stay usable, but nobody should mix them without knowing.
        sources = sorted(Path(synthetic.__file__).parent.glob("*.py"))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
        note = self.root / "generator.sha256"
        if not note.exists():
            note.write_text(digest)
        elif note.read_text() != digest:
            log.warning(
                "%s holds scenes of another version of train.data.synthetic; they are kept and reused. "
                "Pass another --cache for scenes of this version alone.",
                self.root,
            )


def _generate(cache: SceneCache, size_px: int, seed: int) -> None:
    scene = synthetic.generate(seed=seed, size_px=size_px)
    temporary = Path(tempfile.mkdtemp(dir=cache.root, prefix=".scene-"))
    try:
        np.save(temporary / "rgir.npy", scene.rgir)
        np.save(temporary / "ndsm.npy", scene.ndsm.astype(np.float16))
        np.save(temporary / "labels.npy", scene.labels)
        if not cache.path(seed).is_dir():
            temporary.rename(cache.path(seed))
    except OSError:
        # Another process may have finished the same scene between the check and the rename.
        if not cache.path(seed).is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fill_holes(height: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Replace NaN as the runtime does (:func:`engine.contract.holes.fill_holes`).

    Args:
        height: float32 [H, W].

    Returns:
        The filled heights (0 everywhere when nothing is valid) and where they were measured, bool [H, W].
    """
    valid = np.isfinite(height)
    return holes.fill_holes(height[None].astype(np.float32), valid)[0], valid


def augment_optical(rgir: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Another camera, sun and atmosphere: gains, gamma, haze, saturation, blur, noise. uint8 [3, H, W] -> same."""
    levels = np.arange(256, dtype=np.float32) / 255
    gamma = np.exp(rng.uniform(-0.3, 0.3))
    exposure, haze = np.exp(rng.uniform(-0.25, 0.25)), max(0.0, rng.uniform(-0.3, 0.3))
    tables = []
    for spread in (0.25, 0.15, 0.15):  # NIR is the band whose calibration differs most between cameras
        table = np.clip(levels * exposure * np.exp(rng.uniform(-spread, spread)), 0, 1) ** gamma
        table = table * (1 - haze) + haze * rng.uniform(0.5, 0.9) + rng.uniform(-0.06, 0.06)
        tables.append(table.astype(np.float32) * 255)
    x = np.stack([table[band] for table, band in zip(tables, rgir, strict=True)])
    if rng.random() < 0.4:
        x += rng.uniform(0, 0.5) * (x.mean(axis=0) - x)  # towards grey
    if rng.random() < 0.4:
        x = box_blur(x, int(rng.integers(1, 3)))
    if rng.random() < 0.5:
        x += rng.standard_normal(x.shape, np.float32) * np.float32(rng.uniform(1, 9))
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def augment_height(height: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Another survey: scale, offset, misregistration, sparse points, smoothing, holes, noise. [H, W] -> same."""
    x = height * np.float32(rng.uniform(0.85, 1.2))
    if rng.random() < 0.3:
        x += np.float32(rng.normal(0, 0.15))
    if rng.random() < 0.25:
        shift_y, shift_x = rng.integers(-2, 3, 2)
        x = np.roll(x, (shift_y, shift_x), axis=(0, 1))
    if rng.random() < 0.3:
        # Nearest of a jittered coarse grid: the facets of a sparse point cloud.
        step = int(rng.integers(2, 6))
        y, x_index = np.indices(x.shape, sparse=True)
        wobble = rng.integers(0, step, (2, *x.shape)) if step < 4 else rng.integers(0, step, (2, 1, 1))
        rows = np.clip(y // step * step + wobble[0], 0, x.shape[0] - 1)
        columns = np.clip(x_index // step * step + wobble[1], 0, x.shape[1] - 1)
        x = x[rows, columns]
    if rng.random() < 0.3:
        x = box_blur(x[None], int(rng.integers(1, 4)))[0]
    if rng.random() < 0.2:
        # A hole, filled as the runtime fills it.
        x = x.copy()
        for _ in range(int(rng.integers(1, 5))):
            top, left = rng.integers(0, x.shape[0]), rng.integers(0, x.shape[1])
            x[top : top + rng.integers(4, 40), left : left + rng.integers(4, 40)] = np.nan
        x, _ = fill_holes(x)
    if rng.random() < 0.5:
        x = x + rng.standard_normal(x.shape, np.float32) * np.float32(rng.uniform(0, 0.12))
    return np.ascontiguousarray(x, np.float32)


def box_blur(x: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Mean over (2 * radius + 1) squared, edges repeated. float32 [B, H, W] -> same."""
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (radius, radius)
        padded = np.pad(x, pad, mode="edge")
        size = x.shape[axis]
        x = sum(np.take(padded, range(k, k + size), axis=axis) for k in range(2 * radius + 1)) / np.float32(
            2 * radius + 1
        )
    return x


def resample(x: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Bilinear, half-pixel centres: [B, s, s] -> [B, size, size]."""
    source = x.shape[1]
    at = np.clip((np.arange(size, dtype=np.float32) + 0.5) * source / size - 0.5, 0, source - 1)
    low = at.astype(np.intp)
    high, weight = np.minimum(low + 1, source - 1), (at - low).astype(np.float32)
    x = x[:, low] + (x[:, high] - x[:, low]) * weight[:, None]
    return x[:, :, low] + (x[:, :, high] - x[:, :, low]) * weight


def resample_nearest(x: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    """Nearest, half-pixel centres: [s, s] -> [size, size]."""
    at = ((np.arange(size) + 0.5) * x.shape[0] / size).astype(np.intp)
    return x[at][:, at]


class CropDataset(Dataset[dict[str, Tensor]]):
    """Random augmented crops; sample ``i`` depends on (seed, i) alone, whatever worker makes it.

    An item holds ``rgir`` uint8 [3, S, S], ``ndsm`` float32 [1, S, S] (holes filled), ``ndsm_valid`` bool
    [S, S], ``labels`` uint8 [S, S] and ``available`` bool [2], its scenario drawn uniformly.

    Args:
        cache: where the scenes are.
        seeds: scenes to draw from; all must exist.
        length: number of samples.
        crop_px: side S.
        seed: of the draw.
        scale: range of the random zoom; above 1 magnifies.
    """

    def __init__(
        self,
        cache: SceneCache,
        seeds: Sequence[int],
        *,
        length: int,
        crop_px: int,
        seed: int,
        scale: tuple[float, float] = (0.7, 1.4),
    ) -> None:
        self.cache, self.seeds, self.length = cache, seeds, length
        self.crop_px, self.seed, self.scale = crop_px, seed, scale

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        scene = self.cache.load(self.seeds[int(rng.integers(len(self.seeds)))])
        side = min(scene.labels.shape)
        zoom = np.exp(rng.uniform(*np.log(self.scale)))
        window = min(round(self.crop_px / zoom), side)
        top, left = (int(rng.integers(0, length - window + 1)) for length in scene.labels.shape)
        crop = np.s_[..., top : top + window, left : left + window]
        rgir, labels = np.asarray(scene.rgir[crop]), np.asarray(scene.labels[crop])
        height, valid = fill_holes(scene.ndsm[crop][0].astype(np.float32))

        if window != self.crop_px:
            size = self.crop_px
            bands = resample(np.concatenate((rgir.astype(np.float32), height[None])), size)
            rgir, height = np.rint(bands[:3]).astype(np.uint8), bands[3]
            labels, valid = resample_nearest(labels, size), resample_nearest(valid, size)
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))

        def orient(x: NDArray[np.generic]) -> NDArray[np.generic]:
            x = np.rot90(x, turns, axes=(-2, -1))
            return np.ascontiguousarray(x[..., ::-1] if flip else x)

        rgir, height, labels, valid = orient(rgir), orient(height), orient(labels), orient(valid)
        scenario = list(Scenario)[int(rng.integers(len(Scenario)))]
        return {
            "rgir": torch.from_numpy(augment_optical(rgir, rng)),
            "ndsm": torch.from_numpy(augment_height(height, rng)[None]),
            "ndsm_valid": torch.from_numpy(valid),
            "labels": torch.from_numpy(labels),
            "available": torch.tensor(availability(scenario)),
        }


class WholeSceneDataset(Dataset[dict[str, Tensor]]):
    """Whole scenes, unaugmented, holes filled: the items of :class:`CropDataset` without ``available``."""

    def __init__(self, cache: SceneCache, seeds: Sequence[int]) -> None:
        self.cache, self.seeds = cache, seeds

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scene = self.cache.load(self.seeds[index])
        height, valid = fill_holes(scene.ndsm[0].astype(np.float32))
        return {
            "rgir": torch.from_numpy(np.array(scene.rgir)),
            "ndsm": torch.from_numpy(height[None]),
            "ndsm_valid": torch.from_numpy(valid),
            "labels": torch.from_numpy(np.array(scene.labels)),
        }


def band_statistics(cache: SceneCache, seeds: Sequence[int]) -> dict[str, list[tuple[float, float]]]:
    """(mean, standard deviation) of each band in raw units, over whole scenes; keys are sensor values."""
    sums: dict[str, NDArray[np.float64]] = {}
    for seed in seeds:
        scene = cache.load(seed)
        for name, bands in (("rgir", scene.rgir), ("ndsm", scene.ndsm)):
            x = np.asarray(bands, np.float64).reshape(len(bands), -1)
            moments = np.stack([np.isfinite(x).sum(1), np.nansum(x, 1), np.nansum(x * x, 1)], axis=1)
            sums[name] = sums.get(name, 0) + moments
    result = {}
    for name, moments in sums.items():
        count, total, squares = moments.T
        mean = total / np.maximum(count, 1)
        deviation = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
        result[name] = [(float(m), float(s)) for m, s in zip(mean, deviation, strict=True)]
    return result
