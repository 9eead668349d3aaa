"""The bundle's manifest, and putting a bundle in its place whole or not at all."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from engine.contract.atomic import sync
from engine.contract.bundle import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Manifest,
    Precision,
    Score,
    Training,
    load_manifest,
)
from engine.contract.errors import ManifestError, OutputError, UsageError
from engine.contract.files import FileRef
from engine.contract.formats import MalformedError, from_json, read_file
from engine.contract.sensors import Scenario
from export.onnx_graphs import SharedWeights
from train.checkpoint import CheckpointInfo
from train.metrics import Scores

METRICS_NAME = "metrics.json"
TOOLS = ("numpy", "onnx", "onnx-graphsurgeon", "onnxruntime", "openvino", "torch")
FP16_TOOL = "nvidia-modelopt"


@dataclass(frozen=True, kw_only=True)
class _Result:
    scenario: Scenario
    input: Literal["generator", "zeros", "mean"]
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class _Metrics:
    """``metrics.json`` as ``python -m train.evaluate`` writes it."""

    step: int
    held_out: str
    results: tuple[_Result, ...]


def training_of(checkpoint: Path, info: CheckpointInfo, metrics: Path | None) -> Training:
    """Where the weights come from and how well they do.

    Args:
        checkpoint: its file; ``metrics.json`` beside it is used when there is one.
        info: what the checkpoint says about itself; its validation scores are the last resort.
        metrics: another file that ``python -m train.evaluate`` wrote.

    Raises:
        UsageError: the metrics cannot be read, or belong to another step of the training.
    """
    path = metrics or checkpoint.with_name(METRICS_NAME)
    if metrics is None and not path.exists():
        held_out = "validation scenes of the training run" if info.metrics else "not measured"
        scores = tuple(_score(scenario, "generator", found) for scenario, found in info.metrics.items())
    else:
        again = f"run `python -m train.evaluate {checkpoint}` again"
        try:
            measured = from_json(read_file(path), _Metrics)
        except (OSError, MalformedError) as error:
            raise UsageError(f"metrics are a file of `python -m train.evaluate`; {path}: {error}: {again}") from error
        if measured.step != info.step:
            raise UsageError(
                f"metrics must be of the exported weights, received step {measured.step} in {path} for a checkpoint "
                f"of step {info.step}: {again}"
            )
        held_out = measured.held_out
        scores = tuple(_score(result.scenario, result.input, result.scores) for result in measured.results)
    return Training(
        command=info.command,
        dataset=info.dataset,
        steps=info.step,
        held_out=held_out,
        scores=scores,
        confidence=info.confidence,
    )


def manifest_of(
    root: Path,
    *,
    name: str,
    info: CheckpointInfo,
    training: Training,
    shared: Mapping[Precision, SharedWeights],
    golden: Path,
    golden_tiles: int,
    tile_px: int,
    halo_px: int,
    number: int,
    best_gsd_m: tuple[float, float] | None = None,
) -> Manifest:
    """Describe the files that lie in ``root`` now."""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        created_utc=_now(),
        classes=info.labels.classes,
        sensors=info.sensors,
        gsd_m=info.gsd_m,
        best_gsd_m=best_gsd_m,
        tile_px=tile_px,
        halo_px=halo_px,
        graphs={
            scenario: {precision: FileRef.of(found.graphs[scenario], root) for precision, found in shared.items()}
            for scenario in Scenario
        },
        weights=tuple(FileRef.of(found.weights, root) for found in shared.values()),
        golden=FileRef.of(golden, root),
        golden_tiles=golden_tiles,
        number=number,
        training=training,
        tools=_tools(info.tools, (*TOOLS, *([FP16_TOOL] if "fp16" in shared else []))),
    )


def number_of(target: Path, asked: int | None) -> int:
    """The number of a new bundle in ``target``: the one asked for, else one more than that of the bundle there, else 0.

    Raises:
        UsageError: it is not above that of the bundle that is replaced, or that cannot be read and none is asked for.
    """
    there = -1
    if (target / MANIFEST_NAME).is_file():
        try:
            there = load_manifest(target).number
        except ManifestError as error:
            if asked is None:
                raise UsageError(f"the bundle there has no number that can be read, pass --number: {error}") from error
    if asked is not None and asked <= there:
        raise UsageError(f"--number must grow with every bundle, received {asked} after {there} in {target}")
    return there + 1 if asked is None else asked


def check_target(target: Path, *, overwrite: bool) -> None:
    """See that a bundle may be written to ``target``.

    Raises:
        OutputError: something is there that is not to be, or must not be, replaced.
    """
    if not (target.exists() or target.is_symlink()):
        return
    if not (target / MANIFEST_NAME).is_file() or target.is_symlink():
        raise OutputError(f"{target} exists and is no bundle, so it is left alone: choose another --bundle")
    if not overwrite:
        raise OutputError(f"{target} already holds a bundle: choose another --bundle, or add --overwrite")


@contextmanager
def publishing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder beside ``target`` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: ``target`` must not be replaced, or the file system refuses.
    """
    check_target(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    except OSError as error:
        raise OutputError(f"the bundle's parent folder must be writable; {target.parent}: {error}") from error
    fresh, old = scratch / "new", scratch / "old"
    try:
        fresh.mkdir()
        yield fresh
        for path in (*fresh.rglob("*"), fresh):  # a power cut leaves the old bundle or the new one
            sync(path)
        check_target(target, overwrite=overwrite)
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        sync(target.parent)
    except OSError as error:
        raise OutputError(f"the bundle could not be written to {target}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _score(scenario: Scenario, fed: Literal["generator", "zeros", "mean"], scores: Scores) -> Score:
    return Score(
        scenario=scenario,
        input=fed,
        mean_f1=scores.mean_f1,
        mean_iou=scores.mean_iou,
        overall_accuracy=scores.overall_accuracy,
    )


def _tools(training: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    here = {"python": platform.python_version(), **{tool: version(tool) for tool in names}}
    return {
        **{f"train/{tool}": number for tool, number in training.items()},
        **{f"export/{tool}": number for tool, number in here.items()},
    }


def _now() -> str:
    # https://reproducible-builds.org/specs/source-date-epoch/
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
