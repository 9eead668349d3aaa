"""The bundle: one portable folder that holds everything a runtime needs to trust and run a model.

::

    bundle/
    ├── manifest.json          this module's :class:`Manifest`
    ├── full.onnx              both sensors in, no generator
    ├── missing_ndsm.onnx      RGIR in, nDSM generator embedded
    ├── missing_rgir.onnx      nDSM in, RGIR generator embedded
    ├── weights.bin            ONNX external data, shared by the three graphs
    └── golden.npz             one input tile and what each graph must answer

Graph inputs are raw sensor units, ``rgir`` uint8 [N, 3, T, T] and ``ndsm`` float32 [N, 1, T, T] in metres, both
finite. Outputs are ``classes`` uint8 [N, T, T], ``confidence`` uint8 [N, T, T] (largest probability x 255, rounded)
and ``probabilities`` float32 [N, C, T, T]. T is :attr:`Manifest.tile_px`; N is free.

``golden.npz`` holds ``rgir`` [3, T, T] and ``ndsm`` [1, T, T], and for each scenario ``{scenario}/classes`` uint8
[T, T] and ``{scenario}/probabilities`` float16 [C, T/s, T/s], every s-th pixel with s = :data:`GOLDEN_STRIDE`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from engine.contract.bands import SensorSpec
from engine.contract.errors import IntegrityError, ManifestError
from engine.contract.health import HealthLimits, default_limits
from engine.contract.sensors import Scenario, Sensor

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
GOLDEN_STRIDE = 4
NODATA_CLASS = 255

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class FileRef:
    """A file of the bundle, by its path relative to the bundle's folder.

    Raises:
        ValueError: the path leaves the bundle, or the hash is not 64 hexadecimal digits.
    """

    path: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts:
            raise ValueError(f"a bundle file's path must stay inside the bundle, received {self.path!r}")
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError(f"sha256 must be 64 lower-case hexadecimal digits, received {self.sha256!r}")

    @classmethod
    def of(cls, file: Path, root: Path) -> FileRef:
        """Describe ``file`` as it is on disk now."""
        return cls(path=file.relative_to(root).as_posix(), size_bytes=file.stat().st_size, sha256=sha256_of(file))


@dataclass(frozen=True, kw_only=True)
class ClassSpec:
    """A land-cover class; its index is its place in :attr:`Manifest.classes`.

    Raises:
        ValueError: a colour component is not in 0..255.
    """

    name: str
    rgb: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(not 0 <= component <= 255 for component in self.rgb):
            raise ValueError(f"class {self.name!r}: colour components lie in 0..255, received {self.rgb}")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Held-out segmentation quality: means over the foreground classes, from one confusion matrix.

    ``input`` says what the missing sensor was replaced with: ``generator`` is the shipped graph, ``zeros`` and
    ``mean`` are the full graph fed a constant, for comparison.
    """

    scenario: Scenario
    input: Literal["generator", "zeros", "mean"]
    mean_f1: float
    mean_iou: float
    overall_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """Where the weights come from: the command, the data and the scores on held-out scenes."""

    command: str
    dataset: str
    steps: int
    held_out: str
    scores: tuple[Score, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``manifest.json`` holds.

    Raises:
        ValueError: two fields contradict each other; the message names the rule and the numbers.
    """

    schema_version: int
    name: str
    created_utc: str
    classes: tuple[ClassSpec, ...]
    sensors: tuple[SensorSpec, ...]
    gsd_m: tuple[float, float]
    """Ground sampling distances the model was trained for, finest and coarsest, in metres."""
    tile_px: int
    halo_px: int
    """Context a tile needs on each side before its core pixels are trusted."""
    graphs: Mapping[Scenario, Mapping[Precision, FileRef]]
    weights: tuple[FileRef, ...]
    golden: FileRef
    training: Training
    tools: Mapping[str, str] = field(default_factory=dict)
    health: Mapping[Sensor, HealthLimits] = field(default_factory=default_limits)
    """When a sensor's tile is suspicious or beyond use; a manifest without it has the defaults."""

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version must be {SCHEMA_VERSION}, received {self.schema_version}: "
                "export the bundle again with `python -m export.run`, or update this runtime"
            )
        if not 0 < len(self.classes) < NODATA_CLASS:
            raise ValueError(f"1 to {NODATA_CLASS - 1} classes are allowed, received {len(self.classes)}")
        if [spec.sensor for spec in self.sensors] != list(Sensor):
            raise ValueError(f"sensors must be {list(Sensor)} in this order")
        if self.tile_px <= 0 or self.tile_px % 32:
            raise ValueError(f"tile_px must be a positive multiple of 32, received {self.tile_px}")
        if not 0 <= 2 * self.halo_px < self.tile_px:
            raise ValueError(f"halo_px must lie in [0, tile_px / 2), received {self.halo_px} for tile {self.tile_px}")
        if not 0 < self.gsd_m[0] <= self.gsd_m[1]:
            raise ValueError(f"gsd_m must be (finest, coarsest) in metres, received {self.gsd_m}")
        missing = [scenario for scenario in Scenario if not self.graphs.get(scenario)]
        if missing:
            raise ValueError(f"a graph is needed for each of {list(Scenario)}; missing: {missing}")
        if set(self.health) != set(Sensor):
            raise ValueError(f"health must hold limits for each of {list(Sensor)}, received {list(self.health)}")

    def sensor(self, sensor: Sensor) -> SensorSpec:
        """The spec of one sensor."""
        return next(spec for spec in self.sensors if spec.sensor is sensor)

    def files(self) -> tuple[FileRef, ...]:
        """Every file the bundle must hold besides the manifest."""
        graphs = (ref for by_precision in self.graphs.values() for ref in by_precision.values())
        return (*graphs, *self.weights, self.golden)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk whose every file has been checked against its manifest."""

    root: Path
    manifest: Manifest
    digest: str
    """SHA-256 of manifest.json, which holds the hash of every other file: one name for the whole bundle."""

    @classmethod
    def load(cls, root: Path) -> Bundle:
        """Read the manifest and verify the size and SHA-256 of every file it names.

        Raises:
            ManifestError: there is no manifest, or it is malformed or of another schema version.
            IntegrityError: a file is missing or differs from the manifest.
        """
        path = root / MANIFEST_NAME
        try:
            text = path.read_bytes()
        except OSError as error:
            raise ManifestError(
                f"a bundle is a folder with {MANIFEST_NAME} in it; {path} cannot be read ({error.strerror}): "
                "pass the folder that `python -m export.run` wrote"
            ) from error
        try:
            manifest = msgspec.json.decode(text, type=Manifest)
        except msgspec.MsgspecError as error:
            raise ManifestError(f"{path} is not a valid manifest: {error}") from error
        for ref in manifest.files():
            _verify(root, ref)
        return cls(root=root, manifest=manifest, digest=hashlib.sha256(text).hexdigest())

    def graph(self, scenario: Scenario, precision: Precision) -> Path:
        """The ONNX file of a scenario.

        Raises:
            ManifestError: the bundle has no graph of that precision.
        """
        available = self.manifest.graphs[scenario]
        if precision not in available:
            raise ManifestError(
                f"the bundle {self.root} has no {precision} graph for {scenario}; it has {', '.join(available)}"
            )
        return self.root / available[precision].path

    @property
    def golden_path(self) -> Path:
        """The golden tile's file."""
        return self.root / self.manifest.golden.path


def save_manifest(manifest: Manifest, root: Path) -> Path:
    """Write ``manifest.json`` whole or not at all."""
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    temporary = root / f".{MANIFEST_NAME}.{os.getpid()}"
    try:
        temporary.write_bytes(encoded)
        temporary.replace(root / MANIFEST_NAME)
    finally:
        temporary.unlink(missing_ok=True)
    return root / MANIFEST_NAME


def sha256_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _verify(root: Path, ref: FileRef) -> None:
    file = root / ref.path
    again = "copy the bundle again or export it anew with `python -m export.run`"
    try:
        size = file.stat().st_size
        if size != ref.size_bytes:
            raise IntegrityError(f"{file}: the manifest says {ref.size_bytes} bytes, found {size}: {again}")
        found = sha256_of(file)
    except OSError as error:
        raise IntegrityError(f"{file}: named by the manifest but cannot be read ({error.strerror}): {again}") from error
    if found != ref.sha256:
        raise IntegrityError(f"{file}: the manifest says sha256 {ref.sha256[:12]}…, found {found[:12]}…: {again}")
