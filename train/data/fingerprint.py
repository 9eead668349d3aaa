"""What a training draws its samples from, so that one that is resumed notices when that has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.contract.sensors import Sensor
from train.data.dataset import Pool
from train.data.scenes import Scene
from train.data.sources import Mix

PIECES, PIECE_BYTES = 16, 64 << 10
"""So much of an array is hashed, spread over it, beside its size."""


def fingerprint(mix: Mix, pools: Sequence[Pool]) -> dict[str, str]:
    """What must be the same for a training to be resumed, by name: shares, zooms, and the sensors of every scene.

    Labels are left out: those that came meanwhile are used from then on.
    """
    found = {"heights drawn from labels": str(mix.draw_heights)}
    for source, pool in zip(mix.sources, pools, strict=True):
        found |= {f"share of {source.name}": str(pool.share), f"zoom of {source.name}": str(pool.zoom)}
        found |= {f"{source.name} {scene.name}": _digest(scene) for scene in pool.scenes}
    return found


def differing(known: Mapping[str, str], mix: Mix, pools: Sequence[Pool]) -> list[str]:
    """What is not as it was, in words; a scene that was labelled meanwhile, and so joined, is no difference."""
    now = fingerprint(mix, pools)
    joined = {
        f"{source.name} {scene.name}"
        for source, pool in zip(mix.sources, pools, strict=True)
        for scene in pool.scenes
        if scene.labelled and scene.sensors != frozenset(Sensor)
    }
    return [
        f"{name} {'is gone' if name not in now else 'is new' if name not in known else 'has changed'}"
        for name in sorted({*known, *now})
        if known.get(name) != now.get(name) and not (name in joined and name not in known)
    ]


def _digest(scene: Scene) -> str:
    digest = hashlib.sha256()
    for name in (*(sensor.value for sensor in Sensor), "rgir_valid"):
        path = scene.folder / f"{name}.npy"
        if path.exists():
            digest.update(name.encode())
            _add_file(digest, path)
    return digest.hexdigest()


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as stream:
        for piece in range(PIECES):
            stream.seek(max(0, size - PIECE_BYTES) * piece // (PIECES - 1))
            digest.update(stream.read(PIECE_BYTES))
