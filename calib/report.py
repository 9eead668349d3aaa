"""What a calibration did and what came of it."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from calib.findings import Settings, Study
from calib.latency import Timing
from calib.runtimes import versions
from calib.scenes import SceneTile
from engine.contract.bundle import Bundle, ClassSpec, Confidence


@dataclass(frozen=True, kw_only=True)
class TileRecord:
    """A tile that was used, and what it shows if that was looked at."""

    name: str
    sha256: str
    strata: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything there is to say; what ``report.json`` holds."""

    created_utc: str
    command: str
    bundle: str
    bundle_sha256: str
    """Of its manifest, INT8 graphs included."""
    graph_sha256: Mapping[str, str]
    """Of each INT8 graph's file, by scenario."""
    classes: tuple[ClassSpec, ...]
    budget_points: float
    calibration_sha256: str
    calibration: tuple[TileRecord, ...]
    strata_available: Mapping[str, int]
    """Calibration tiles to choose from, by what they show."""
    strata_covered: Mapping[str, int]
    """Chosen ones."""
    search: tuple[TileRecord, ...]
    evaluation: tuple[TileRecord, ...]
    confidence: tuple[Confidence, ...]
    """Of the floating-point model, as the bundle's manifest has it."""
    studies: tuple[Study, ...]
    timings: tuple[Timing, ...]
    tools: Mapping[str, str]
    cpu: str

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        settings: Settings,
        studies: Sequence[Study],
        timings: Sequence[Timing],
        *,
        command: Sequence[str],
    ) -> Report:
        """Of a bundle with INT8 graphs in it and the studies they come from."""
        chosen = settings.calibration
        return cls(
            created_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            command=f"python -m calib.run {' '.join(command)}",
            bundle=bundle.manifest.name,
            bundle_sha256=bundle.digest,
            graph_sha256={scenario: by["int8"].sha256 for scenario, by in bundle.manifest.graphs.items()},
            classes=bundle.manifest.classes,
            budget_points=settings.budget_points,
            calibration_sha256=chosen.sha256,
            calibration=tuple(
                TileRecord(name=tile.name, sha256=tile.sha256, strata=strata)
                for tile, strata in zip(chosen.tiles, chosen.strata, strict=True)
            ),
            strata_available=chosen.available,
            strata_covered=chosen.covered,
            search=_records(settings.search),
            evaluation=_records(settings.evaluation),
            confidence=bundle.manifest.training.confidence,
            studies=tuple(studies),
            timings=tuple(timings),
            tools=tools(),
            cpu=versions()["cpu"],
        )


def tools() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {name: number for name, number in versions().items() if name != "cpu"}
    found |= {name: version(name) for name in ("nvidia-modelopt", "onnx", "numpy")}
    return {f"calib/{name}": number for name, number in {"python": platform.python_version(), **found}.items()}


def _records(tiles: Sequence[SceneTile]) -> tuple[TileRecord, ...]:
    return tuple(TileRecord(name=tile.name, sha256=tile.sha256) for tile in tiles)
