"""Where scenes come from: one small interface, and the words that name a source on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from train.data.folder import FolderSource
from train.data.isprs import CITIES, IsprsSource, Part
from train.data.labels import LabelSet
from train.data.procedural import ProceduralSource
from train.data.rasters import DataError
from train.data.scenes import Scene

GRAMMAR = "synthetic:N, vaihingen:DIR, potsdam:DIR or folder:DIR"


class Source(Protocol):
    """Scenes in three parts that share no ground."""

    @property
    def name(self) -> str:
        """For logs and tables."""

    @property
    def labels(self) -> LabelSet:
        """The classes."""

    @property
    def gsd_m(self) -> tuple[float, float]:
        """Finest and coarsest ground sampling distance, in metres."""

    def split(self, part: Part) -> tuple[Scene, ...]:
        """The scenes of a part, prepared where they are not yet; may take long the first time."""

    def describe(self, part: Part) -> str:
        """In words, for checkpoints and reports."""


def open_source(text: str, cache: Path) -> Source:
    """The source that ``text`` names, in the form of :data:`GRAMMAR`.

    Args:
        text: for example ``vaihingen:/data/Vaihingen``.
        cache: folder for prepared scenes.

    Raises:
        DataError: no such source, or it cannot be used.
    """
    kind, _, where = text.partition(":")
    if kind == "synthetic" and where.isdigit() and int(where):
        return ProceduralSource(cache=cache, count=int(where))
    if kind in CITIES and where:
        return IsprsSource(root=Path(where), city=CITIES[kind], cache=cache)
    if kind == "folder" and where:
        return FolderSource(root=Path(where).resolve(), cache=cache)
    raise DataError(f"--data takes {GRAMMAR}; received {text!r}")
