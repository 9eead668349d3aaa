"""The bundle: one portable folder that holds everything a runtime needs to trust and run a model.

::

    bundle/
    ├── manifest.json          this module's :class:`Manifest`
    ├── full.onnx              both sensors in, no generator
    ├── missing_ndsm.onnx      RGIR in, nDSM generator embedded
    ├── missing_rgir.onnx      nDSM in, RGIR generator embedded
    ├── weights.bin            ONNX external data, shared by the three graphs
    └── golden.npz             input tiles and what each graph must answer

Graph inputs are raw sensor units, ``rgir`` uint8 [N, 3, T, T] and ``ndsm`` float32 [N, 1, T, T] in metres, both
finite. Outputs are ``classes`` uint8 [N, T, T], ``confidence`` uint8 [N, T, T] (largest probability x 255, rounded)
and ``probabilities`` float32 [N, C, T, T]. T is :attr:`Manifest.tile_px`; N is free.

``golden.npz`` holds ``rgir`` [3, T, T] and ``ndsm`` [1, T, T], and for each scenario ``{scenario}/classes`` uint8
[T, T] and ``{scenario}/probabilities`` float16 [C, T/s, T/s], every s-th pixel with s = :data:`GOLDEN_STRIDE`. The
names of a second tile begin with ``1/``, those of a third with ``2/``: :attr:`Manifest.golden_tiles` says how many.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.contract.atomic import write_whole
from engine.contract.bands import SensorSpec
from engine.contract.errors import IntegrityError, ManifestError
from engine.contract.files import FileRef, private_copies
from engine.contract.formats import MalformedError, from_json, from_npz, read_file
from engine.contract.health import AuditLimits, HealthLimits, default_limits
from engine.contract.onnx_files import external_files
from engine.contract.sensors import Scenario, Sensor
from engine.contract.trust import (
    SIGNATURE_SUFFIX,
    Policy,
    check_number,
    check_signature,
    installed_policy,
    remember_number,
)

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
GOLDEN_STRIDE = 4
NODATA_CLASS = 255
MANIFEST_LIMIT_BYTES = 4 << 20
TILE_LIMIT_PX = 8192
NAME_LIMIT = 200
GOLDEN_LIMIT = 16

_SENSORS = ((Sensor.RGIR, "uint8", 3), (Sensor.NDSM, "float32", 1))
_SENSORS_TOLD = " and ".join(f"{sensor} {dtype} with {bands} band(s)" for sensor, dtype, bands in _SENSORS)

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class ClassSpec:
    """A land-cover class; its index is its place in :attr:`Manifest.classes`.

    Raises:
        ValueError: the name is no printable text, or a colour component is not in 0..255.
    """

    name: str
    rgb: tuple[int, int, int]

    def __post_init__(self) -> None:
        _check_text("a class's name", self.name, NAME_LIMIT)
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
class Confidence:
    """How far the confidence of a scenario lies from its accuracy, on held-out scenes of one source.

    Expected calibration errors over 15 bins, 0..1 (https://arxiv.org/abs/1706.04599).
    """

    scenario: Scenario
    data: str
    temperature: float
    """What the graph divides its logits by; fitted on all sources together."""
    error_before: float
    """Of a temperature of 1."""
    error_after: float | None
    """By cross-validation over scenes; None where there are fewer than two."""

    def __str__(self) -> str:
        after = "-" if self.error_after is None else f"{100 * self.error_after:.1f}"
        return (
            f"{self.scenario:<14}T {self.temperature:.2f}  {self.data:<16} "
            f"calibration error {100 * self.error_before:.1f} -> {after} percent"
        )


@dataclass(frozen=True, kw_only=True)
class Training:
    """Where the weights come from: the command, the data and the scores on held-out scenes."""

    command: str
    dataset: str
    steps: int
    held_out: str
    scores: tuple[Score, ...]
    confidence: tuple[Confidence, ...] = ()
    """Empty where no temperature was fitted (``python -m train.temperature``)."""


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
    best_gsd_m: tuple[float, float] | None = None
    """Those that it maps best at, finest and coarsest, in metres, as measured on images; a raster outside is resampled
    to the nearer end. None: every raster is mapped as it is."""
    tile_px: int
    halo_px: int
    """Context a tile needs on each side before its core pixels are trusted."""
    graphs: Mapping[Scenario, Mapping[Precision, FileRef]]
    weights: tuple[FileRef, ...]
    golden: FileRef
    training: Training
    golden_tiles: int = 1
    """How many tiles the golden file holds."""
    tools: Mapping[str, str] = field(default_factory=dict)
    number: int = 0
    """Grows with every bundle of this name that is published: an installation can refuse older ones."""
    health: Mapping[Sensor, HealthLimits] = field(default_factory=default_limits)
    """When a sensor's tile is suspicious or beyond use; a manifest without it has the defaults."""
    audit: AuditLimits = field(default_factory=AuditLimits)
    """How the three graphs' maps judge the sensors; a manifest without it has the defaults."""

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version must be {SCHEMA_VERSION}, received {self.schema_version}: "
                "export the bundle again with `python -m export.run`, or update this runtime"
            )
        _check_text("name", self.name, NAME_LIMIT)
        if not 0 < len(self.classes) < NODATA_CLASS:
            raise ValueError(f"1 to {NODATA_CLASS - 1} classes are allowed, received {len(self.classes)}")
        for what in ("name", "rgb"):
            values = [getattr(spec, what) for spec in self.classes]
            if len(set(values)) < len(values):
                twice = next(value for value in values if values.count(value) > 1)
                raise ValueError(f"each class needs a {what} of its own, received {twice!r} twice")
        for spec, (sensor, dtype, bands) in zip(self.sensors, _SENSORS, strict=False):
            if (spec.sensor, spec.dtype, len(spec.bands)) != (sensor, dtype, bands):
                raise ValueError(
                    f"sensors must be {_SENSORS_TOLD} in this order, received {spec.sensor} {spec.dtype} with "
                    f"{len(spec.bands)} band(s)"
                )
        if len(self.sensors) != len(Sensor):
            raise ValueError(f"sensors must be {_SENSORS_TOLD} in this order, received {len(self.sensors)} of them")
        if not 0 < self.tile_px <= TILE_LIMIT_PX or self.tile_px % 32:
            raise ValueError(
                f"tile_px must be a positive multiple of 32 up to {TILE_LIMIT_PX}, received {self.tile_px}"
            )
        if not 0 <= 2 * self.halo_px < self.tile_px:
            raise ValueError(f"halo_px must lie in [0, tile_px / 2), received {self.halo_px} for tile {self.tile_px}")
        if not 1 <= self.golden_tiles <= GOLDEN_LIMIT:
            raise ValueError(f"golden_tiles must lie in 1..{GOLDEN_LIMIT}, received {self.golden_tiles}")
        if not 0 <= self.number < 1 << 53:
            raise ValueError(f"number must lie in 0..2**53, received {self.number}")
        if not 0 < self.gsd_m[0] <= self.gsd_m[1] < math.inf:
            raise ValueError(f"gsd_m must be (finest, coarsest) in metres, received {self.gsd_m}")
        if self.best_gsd_m is not None and not 0 < self.best_gsd_m[0] <= self.best_gsd_m[1] < math.inf:
            raise ValueError(f"best_gsd_m must be (finest, coarsest) in metres, received {self.best_gsd_m}")
        missing = [scenario for scenario in Scenario if not self.graphs.get(scenario)]
        if missing:
            raise ValueError(f"a graph is needed for each of {list(Scenario)}; missing: {missing}")
        if set(self.health) != set(Sensor):
            raise ValueError(f"health must hold limits for each of {list(Sensor)}, received {list(self.health)}")
        known: dict[str, FileRef] = {MANIFEST_NAME: self.golden}
        for ref in self.files():
            if known.setdefault(ref.path, ref) != ref or ref.path == MANIFEST_NAME:
                raise ValueError(f"a path names one file, with one size and hash; received two for {ref.path!r}")

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
    policy: Policy = field(default_factory=Policy, repr=False)
    """What it has been held to."""
    signed_by: str | None = None
    """Id of the key that signed it; None where no signature was required."""

    @classmethod
    def load(cls, root: Path, policy: Policy | None = None) -> Bundle:
        """Read the manifest and verify the size and SHA-256 of every file it names.

        Args:
            root: folder of the bundle.
            policy: whose bundles are trusted; None is this installation's (:mod:`engine.contract.trust`).

        Raises:
            SignatureError: the policy requires a signature that is not there, or a newer bundle.
            ManifestError: there is no manifest, or it is malformed or of another schema version.
            IntegrityError: a file is missing or differs from the manifest.
        """
        path, policy = root / MANIFEST_NAME, installed_policy() if policy is None else policy
        text, signed_by = _read_manifest(path, policy)
        manifest = _parse_manifest(text, path)
        check_number(manifest.name, manifest.number, path, policy)
        for ref in manifest.files():
            ref.verify(root)
        remember_number(manifest.name, manifest.number, policy)
        return cls(
            root=root,
            manifest=manifest,
            digest=hashlib.sha256(text).hexdigest(),
            policy=policy,
            signed_by=signed_by,
        )

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

    @contextmanager
    def opened(self, scenarios: Iterable[Scenario], precision: Precision) -> Iterator[dict[Scenario, Path]]:
        """Private copies of graphs and of the weights they read, to be opened by an inference library.

        What lies in the copies has been hashed on its way there, so that nothing can be swapped between the check and
        the use, and a graph finds no other file than those of the manifest.

        Raises:
            ManifestError: the bundle has no graph of that precision.
            IntegrityError: a file differs from the manifest, or a graph names a file that is not in it.
            BundleError: there is no room for the copies.
        """
        paths = {scenario: self.graph(scenario, precision) for scenario in scenarios}
        listed = {ref.path: ref for ref in self.manifest.weights}
        wanted: dict[str, FileRef] = {}
        for scenario, path in paths.items():
            ref = self.manifest.graphs[scenario][precision]
            wanted[ref.path] = ref
            try:
                names = external_files(ref.read(self.root))
            except MalformedError as error:
                raise IntegrityError(f"{path}: {error}: export the bundle again") from error
            for name in sorted(names):
                place = (PurePosixPath(ref.path).parent / name).as_posix()
                if place not in listed:
                    raise IntegrityError(
                        f"{path} reads the file {name!r}, which the manifest does not list among its weights: "
                        "export the bundle again"
                    )
                wanted[place] = listed[place]
        with private_copies(self.root, wanted.values()) as folder:
            yield {scenario: folder / self.manifest.graphs[scenario][precision].path for scenario in paths}

    @property
    def golden_path(self) -> Path:
        """The golden tiles' file; :meth:`golden` reads it verified."""
        return self.root / self.manifest.golden.path

    def golden(self, tile: int = 0) -> dict[str, NDArray[Any]]:
        """The arrays of a golden tile, by the names in the head of this module, without the tile's number.

        Args:
            tile: below :attr:`Manifest.golden_tiles`.

        Raises:
            IntegrityError: the file differs from the manifest, or is not what the manifest promises.
        """
        manifest, ref = self.manifest, self.manifest.golden
        side, classes = manifest.tile_px, len(manifest.classes)
        strided = -(-side // GOLDEN_STRIDE)
        arrays: dict[str, tuple[DTypeLike, tuple[int, ...]]] = {
            spec.sensor.value: (spec.dtype, (len(spec.bands), side, side)) for spec in manifest.sensors
        }
        for scenario in Scenario:
            arrays[f"{scenario}/classes"] = np.uint8, (side, side)
            arrays[f"{scenario}/probabilities"] = np.float16, (classes, strided, strided)
        try:
            numbered = {f"{golden_prefix(tile)}{name}": expected for name, expected in arrays.items()}
            found = from_npz(io.BytesIO(ref.read(self.root)), numbered)
        except MalformedError as error:
            raise IntegrityError(f"{self.root / ref.path}: {error}: export the bundle again") from error
        for name, values in found.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise IntegrityError(f"{self.root / ref.path}: {name} must be finite: export the bundle again")
        return {name.removeprefix(golden_prefix(tile)): values for name, values in found.items()}


def load_manifest(root: Path) -> Manifest:
    """The manifest in a folder; neither a signature nor the files that it names are looked at.

    Raises:
        ManifestError: there is none, or it is malformed or of another schema version.
    """
    path = root / MANIFEST_NAME
    return _parse_manifest(_read_manifest(path, Policy())[0], path)


def _read_manifest(path: Path, policy: Policy) -> tuple[bytes, str | None]:
    """Its bytes, of which nothing has been parsed, and who signed them."""
    try:
        text = read_file(path, MANIFEST_LIMIT_BYTES)
        return text, check_signature(text, path, policy)
    except OSError as error:
        raise ManifestError(
            f"a bundle is a folder with {MANIFEST_NAME} in it; {path} cannot be read ({error.strerror}): "
            "pass the folder that `python -m export.run` wrote"
        ) from error
    except MalformedError as error:
        raise ManifestError(f"{path} is not a valid manifest: {error}") from error


def _parse_manifest(text: bytes, path: Path) -> Manifest:
    try:
        return from_json(text, Manifest)
    except MalformedError as error:
        raise ManifestError(f"{path} is not a valid manifest: {error}") from error


def golden_prefix(tile: int) -> str:
    """What the names of a golden tile's arrays begin with."""
    return f"{tile}/" if tile else ""


def save_manifest(manifest: Manifest, root: Path) -> Path:
    """Write ``manifest.json`` whole or not at all; a signature of what was there before is taken away."""
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    (root / f"{MANIFEST_NAME}{SIGNATURE_SUFFIX}").unlink(missing_ok=True)
    write_whole(root / MANIFEST_NAME, encoded)
    return root / MANIFEST_NAME


def _check_text(what: str, text: str, longest: int) -> None:
    if not 0 < len(text) <= longest or not text.isprintable():
        raise ValueError(f"{what} must be 1 to {longest} printable characters, received {text[:80]!r} ({len(text)})")
