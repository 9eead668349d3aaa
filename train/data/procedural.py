"""Procedural scenes as a data source: made once per seed, kept on disk, split by seed."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from tqdm import tqdm

from train.data import synthetic
from train.data.isprs import Part
from train.data.labels import ISPRS_LABELS
from train.data.scenes import Scene, write_scene

log = logging.getLogger(__name__)

SIZE_PX = 512
FIRST_SEED: dict[Part, int] = {"train": 0, "validation": 1_000_000, "test": 2_000_000}
"""Each part counts up from its own seed, so that parts never share a scene."""

GENERATOR_NOTE = "generator.sha256"
"""Names the version of the generator that a cache began with."""


@dataclass(frozen=True, kw_only=True)
class ProceduralSource:
    """So many procedural scenes of 512 px in each part."""

    cache: Path
    count: int
    """Training scenes."""
    validation_count: int = 16
    test_count: int = 100
    real_colours: bool = False
    """In the colours of real images. Scores are of scenes without, so that they stay comparable."""

    labels = ISPRS_LABELS
    gsd_m = synthetic.GSD_RANGE_M

    @property
    def name(self) -> str:
        """For logs and tables."""
        return "synthetic-real" if self.real_colours else "synthetic"

    @property
    def folder(self) -> Path:
        """Where the scenes are kept."""
        return self.cache / "real_colours" if self.real_colours else self.cache

    def split(self, part: Part) -> tuple[Scene, ...]:
        """The scenes of a part, generated where they are not yet."""
        seeds = self._seeds(part)
        fill(self.folder, seeds, real_colours=self.real_colours)
        return tuple(Scene(folder=scene_folder(self.folder, seed)) for seed in seeds)

    def describe(self, part: Part) -> str:
        """In words, for checkpoints and reports."""
        seeds = self._seeds(part)
        colours = " in real colours" if self.real_colours else ""
        return f"{len(seeds)} procedural scenes of {SIZE_PX} px{colours}, seeds {seeds.start}..{seeds.stop - 1}"

    def digest(self, part: Part) -> str:
        """Of a part's scenes: which they are, and the generator that made the cache (SHA-256, hexadecimal)."""
        fill(self.folder, self._seeds(part), real_colours=self.real_colours)
        made_by = (self.folder / GENERATOR_NOTE).read_text(errors="replace")
        return hashlib.sha256(f"{made_by} {self.describe(part)}".encode()).hexdigest()

    def _seeds(self, part: Part) -> range:
        count = {"train": self.count, "validation": self.validation_count, "test": self.test_count}[part]
        return range(FIRST_SEED[part], FIRST_SEED[part] + count)


def scene_folder(cache: Path, seed: int) -> Path:
    """Where the scene of a seed is kept."""
    return cache / f"scene_{seed:08d}"


def fill(
    cache: Path,
    seeds: Sequence[int],
    *,
    size_px: int = SIZE_PX,
    workers: int | None = None,
    real_colours: bool = False,
) -> None:
    """Generate the scenes that are not there yet, in parallel, with progress.

    Args:
        cache: folder of the scenes.
        seeds: which scenes must exist afterwards.
        size_px: side of a scene.
        workers: processes; the number of CPUs by default.
        real_colours: of :func:`train.data.synthetic.generate`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    _note_generator(cache)
    missing = [seed for seed in seeds if not scene_folder(cache, seed).is_dir()]
    if not missing:
        return
    workers = min(workers or os.cpu_count() or 1, len(missing))
    make = partial(_generate, cache, size_px, real_colours)
    bar = partial(tqdm, total=len(missing), desc="generating scenes", unit="scene")
    if workers == 1:
        for _ in bar(map(make, missing)):
            pass
        return
    # spawn: a fork of a process whose torch already runs threads can hang.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in bar(pool.imap_unordered(make, missing)):
            pass


def _generate(cache: Path, size_px: int, real_colours: bool, seed: int) -> None:
    scene = synthetic.generate(seed=seed, size_px=size_px, real_colours=real_colours)
    arrays: dict[str, NDArray[Any]] = {"rgir": scene.rgir, "ndsm": scene.ndsm, "labels": scene.labels}
    about = {"seed": seed, "size_px": size_px, "gsd_m": scene.gsd_m}
    write_scene(scene_folder(cache, seed), arrays, about)


def _note_generator(cache: Path) -> None:
    # Scenes of an older generator stay usable, but nobody should mix them without knowing.
    sources = sorted(Path(synthetic.__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
    note = cache / GENERATOR_NOTE
    if not note.exists():
        note.write_text(digest)
    elif note.read_text(errors="replace") != digest:
        log.warning(
            "%s holds scenes of another version of train.data.synthetic; they are kept and reused. "
            "Pass another --cache for scenes of this version alone.",
            cache,
        )
