"""Where scenes come from: one small interface, and the words that name a source on a command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.contract.sensors import Sensor
from train.data.dataset import ZOOM, Pool
from train.data.folder import FolderSource
from train.data.isprs import CITIES, IsprsSource, Part
from train.data.labels import ISPRS_LABELS, LabelSet
from train.data.procedural import ProceduralSource
from train.data.rasters import DataError
from train.data.scenes import Scene

GRAMMAR = "synthetic:N, synthetic-real:N (in the colours of real images), vaihingen:DIR, potsdam:DIR or folder:DIR"


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


def open_source(text: str, cache: Path, labels: Path | None = None) -> Source:
    """The source that ``text`` names, in the form of :data:`GRAMMAR`.

    Args:
        text: for example ``vaihingen:/data/Vaihingen``.
        cache: folder for prepared scenes.
        labels: folder of further labels for a ``folder:`` source (:mod:`train.data.folder`).

    Raises:
        DataError: no such source, or it cannot be used.
    """
    kind, _, where = text.partition(":")
    if labels is not None and kind != "folder":
        raise DataError(f"--labels belongs to a folder: source, received {text!r}")
    if kind in ("synthetic", "synthetic-real") and where.isdigit() and int(where):
        return ProceduralSource(cache=cache, count=int(where), real_colours=kind == "synthetic-real")
    if kind in CITIES and where:
        return IsprsSource(root=Path(where), city=CITIES[kind], cache=cache)
    if kind == "folder" and where:
        return FolderSource(root=Path(where).resolve(), cache=cache, overlay=labels.resolve() if labels else None)
    raise DataError(f"--data takes {GRAMMAR}; received {text!r}")


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Several sources that are trained on together, each with its share of the samples.

    Raises:
        DataError: the sources tell different classes apart, or two have one name.
    """

    sources: tuple[Source, ...]
    shares: tuple[float, ...]
    zooms: tuple[tuple[float, float], ...]
    target_gsd_m: tuple[float, float] | None = None
    """Range of the ground sampling distance that all scenes are brought to, in metres; None to leave them."""
    draw_heights: bool = False
    """Draw heights from labels for labelled scenes that have none."""

    def __post_init__(self) -> None:
        first, *others = self.sources
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise DataError(f"sources of a mix need names of their own, received {', '.join(names)}")
        for other in others:
            if other.labels != first.labels:
                raise DataError(
                    f"sources of a mix must tell the same classes apart; {first.name} has "
                    f"{', '.join(first.labels.names)}, {other.name} has {', '.join(other.labels.names)}"
                )
        if self.draw_heights and first.labels != ISPRS_LABELS:
            raise DataError(f"heights can be drawn for {', '.join(ISPRS_LABELS.names)} alone; {first.name} has others")

    @property
    def labels(self) -> LabelSet:
        """The classes of all sources."""
        return self.sources[0].labels

    @property
    def gsd_m(self) -> tuple[float, float]:
        """Range of the ground sampling distance that the network is for, in metres.

        The target where there is one, else from the finest that a crop is magnified to up to the coarsest of an image.
        """
        if self.target_gsd_m is not None:
            return self.target_gsd_m
        if len(self.sources) == 1:
            return self.sources[0].gsd_m
        finest = min(source.gsd_m[0] / zoom[1] for source, zoom in zip(self.sources, self.zooms, strict=True))
        return round(finest, 3), round(max(source.gsd_m[1] for source in self.sources), 3)

    def pools(self) -> tuple[Pool, ...]:
        """What teaches: scenes with labels, and those with both sensors, which train the generators.

        Raises:
            DataError: a source has no such scene.
        """
        pools = []
        for source, share, zoom in zip(self.sources, self.shares, self.zooms, strict=True):
            scenes = tuple(s for s in source.split("train") if s.labelled or s.sensors == frozenset(Sensor))
            if not scenes:
                raise DataError(
                    f"{source.name}: no scene for training has labels or both sensors; label some (--labels DIR), or "
                    "adapt a model to images without labels with `python -m train.adapt`"
                )
            drawn = self.draw_heights and any(Sensor.NDSM not in scene.sensors for scene in scenes)
            try:
                pool = Pool(
                    scenes=scenes,
                    share=share,
                    zoom=zoom,
                    gsd_m=self.target_gsd_m,
                    drawn_gsd_m=source.gsd_m[0] if drawn else None,
                )
            except ValueError as error:
                raise DataError(f"{source.name}: {error}") from error
            pools.append(pool)
        return tuple(pools)

    def describe(self, pools: Sequence[Pool]) -> str:
        """In words, for checkpoints and reports.

        Args:
            pools: of :meth:`pools`.
        """
        if len(self.sources) == 1:
            return self.sources[0].describe("train")
        total = sum(self.shares)
        parts = []
        for source, pool in zip(self.sources, pools, strict=True):
            labelled = sum(scene.labelled for scene in pool.scenes)
            parts.append(f"{pool.share / total:.0%} {source.name} ({len(pool.scenes)} scenes, {labelled} labelled)")
        text = "; ".join(parts)
        return f"{text}; heights drawn from labels where there are none" if self.draw_heights else text


def open_mix(
    texts: Sequence[str],
    cache: Path,
    *,
    shares: str | None,
    zooms: str | None,
    gsd: str | None = None,
    labels: Path | None = None,
) -> Mix:
    """The sources that ``texts`` name, with their shares and zooms.

    Args:
        texts: in the form of :data:`GRAMMAR`, one for each source.
        cache: folder for prepared scenes.
        shares: one positive number for each source, comma-separated; None for equal ones.
        zooms: ``LOW-HIGH`` for each source, comma-separated, or once for all; None for :data:`train.data.dataset.ZOOM`.
        gsd: ``LOW-HIGH`` in metres, the range that all scenes are brought to; None to leave them as they are.
        labels: folder of further labels for the ``folder:`` sources.

    Raises:
        DataError: a source cannot be used, or the lists do not fit.
    """
    folders = [text for text in texts if text.startswith("folder:")]
    if labels is not None and not folders:
        raise DataError(f"--labels belongs to a folder: source, received {', '.join(texts)}")
    given = shares.split(",") if shares else ["1"] * len(texts)
    ranges = (zooms or f"{ZOOM[0]}-{ZOOM[1]}").split(",")
    ranges = ranges * len(texts) if len(ranges) == 1 else ranges
    try:
        weights = tuple(float(text) for text in given)
        bounds = tuple((float(low), float(high)) for low, high in (text.split("-") for text in ranges))
    except ValueError as error:
        raise DataError(
            f"--share takes numbers such as 0.5,0.5 and --zoom ranges such as 0.7-1.4,1-3; received {shares} and "
            f"{zooms} ({error})"
        ) from error
    if not len(weights) == len(bounds) == len(texts) or min(weights) <= 0 or any(not 0 < a <= b for a, b in bounds):
        raise DataError(
            f"--share and --zoom need one positive value for each of the {len(texts)} sources, received {shares} and "
            f"{zooms}"
        )
    sources = tuple(open_source(text, cache, labels if text in folders else None) for text in texts)
    return Mix(sources=sources, shares=weights, zooms=bounds, target_gsd_m=None if gsd is None else _range_of(gsd))


def _range_of(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    try:
        found = float(low), float(high)
    except ValueError:
        found = (0.0, 0.0)
    if not 0 < found[0] <= found[1] < math.inf:
        raise DataError(f"--gsd takes two metres as LOW-HIGH such as 0.12-0.3, received {text!r}")
    return found
