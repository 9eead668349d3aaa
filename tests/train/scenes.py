"""Small prepared scenes for the tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from train.data.procedural import scene_folder
from train.data.scenes import Scene, write_scene


def toy_scene(
    cache: Path, seed: int, side: int = 96, *, without: tuple[str, ...] = (), gsd_m: float | None = None
) -> Scene:
    """A scene whose bands all tell the label, so that a crop that tears them apart shows."""
    labels = np.random.default_rng(seed).integers(0, 6, (side, side)).astype(np.uint8)
    ndsm = labels[None].astype(np.float16)
    ndsm[0, 10:14, 20:30] = np.nan
    arrays = {"rgir": np.stack([labels * 40, labels * 30, labels * 20]), "ndsm": ndsm, "labels": labels}
    kept = {name: array for name, array in arrays.items() if name not in without}
    return write_scene(scene_folder(cache, seed), kept, {"seed": seed, "gsd_m": gsd_m})
