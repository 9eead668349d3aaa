"""Device plans: what a serialised TensorRT engine was built from and for, and when it is refused.

:attr:`PlanKey.digest` covers all that an engine depends on: the graph and the weights it reads, the library and its
exact version, the operating system, the devices it is for, the batch sizes and the builder's options. Any other value
of any of them is another plan. Files and folders: :mod:`engine.contract.plan_cache`.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from engine.contract.bundle import Bundle, Precision
from engine.contract.files import FileRef
from engine.contract.sensors import Scenario

RECORD_VERSION = 2
PLATFORM = f"{sys.platform}-{platform.machine()}"
"""Serialised engines do not move between operating systems or machine architectures."""
AMPERE = 80
POWER_STATUS = Path("/var/lib/nvpmodel/status")

Library = Literal["tensorrt", "tensorrt_rtx"]
"""The import name of a library; TensorRT 10 and 11 share theirs and differ in :attr:`PlanKey.library_version`."""
Scope = Literal["device", "capabilities", "ampere_and_later"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """A CUDA device as the driver describes it (``cuDeviceGetName``, compute capability 8.7 as 87).

    The name alone is not enough: three Jetson boards call theirs "Orin", and differ in their multiprocessors.
    """

    name: str
    compute_capability: int
    multiprocessors: int
    power_mode: str | None = None
    """A Jetson's ``nvpmodel`` mode, on which its clocks depend; None elsewhere. A plan fits every mode."""

    @property
    def model(self) -> str:
        """What tells it from other devices: ``Orin, 16 multiprocessors``."""
        return f"{self.name}, {self.multiprocessors} multiprocessors"

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.compute_capability}, {self.multiprocessors} multiprocessors)"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The devices a plan may be loaded on.

    ``device``: the model it was built on and no other. ``capabilities``: any device of the listed compute
    capabilities. ``ampere_and_later``: any from compute capability 8.0 on.

    Raises:
        ValueError: the fields do not fit the scope.
    """

    scope: Scope
    device_name: str | None = None
    multiprocessors: int | None = None
    compute_capabilities: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for identity in (self.device_name, self.multiprocessors):
            if (identity is not None) != (self.scope == "device"):
                raise ValueError(f"a device's name and multiprocessors belong to scope 'device' alone, received {self}")
        listed = len(self.compute_capabilities)
        if not {"device": listed == 1, "capabilities": listed > 0, "ampere_and_later": listed == 0}[self.scope]:
            raise ValueError(
                "compute capabilities: one for scope 'device', at least one for 'capabilities', none for "
                f"'ampere_and_later', received {self.compute_capabilities} for {self.scope!r}"
            )

    @classmethod
    def of(cls, device: Device) -> Target:
        """Devices of this model alone."""
        return cls(
            scope="device",
            device_name=device.name,
            multiprocessors=device.multiprocessors,
            compute_capabilities=(device.compute_capability,),
        )

    def accepts(self, device: Device) -> bool:
        """Whether a plan for this target may be loaded on ``device``."""
        match self.scope:
            case "ampere_and_later":
                return device.compute_capability >= AMPERE
            case "capabilities":
                return device.compute_capability in self.compute_capabilities
            case "device":
                return self == Target.of(device)

    def __str__(self) -> str:
        if self.scope == "ampere_and_later":
            return f"sm_{AMPERE} and later"
        listed = ", ".join(f"sm_{capability}" for capability in self.compute_capabilities)
        return f"{self.device_name} ({listed}, {self.multiprocessors} multiprocessors)" if self.device_name else listed


@dataclass(frozen=True, kw_only=True)
class BatchRange:
    """Batch sizes of a plan's optimisation profile: the smallest, the one it is tuned for, the largest.

    Raises:
        ValueError: not 1 <= minimum <= optimum <= maximum.
    """

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise ValueError(f"batch sizes must satisfy 1 <= minimum <= optimum <= maximum, received {self}")

    def __str__(self) -> str:
        return f"{self.minimum},{self.optimum},{self.maximum}"


@dataclass(frozen=True, kw_only=True)
class PlanKey:
    """All that a plan depends on."""

    scenario: Scenario
    precision: Precision
    source_sha256: str
    """:func:`source_sha256` of the graph it was built from."""
    library: Library
    library_version: str
    target: Target
    batch: BatchRange
    workspace_mib: int | None = None
    """Most scratch memory a layer may ask for; None leaves the library's own limit."""
    probabilities: bool = False
    """Whether the engine has the output ``probabilities``, which blended maps need and others need not write."""
    platform: str = PLATFORM

    @property
    def digest(self) -> str:
        """SHA-256 over every field."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    @property
    def stem(self) -> str:
        """Name of the plan's files without suffix, and of the engine itself (``ICudaEngine.name``)."""
        return f"{self.scenario}-{self.precision}-{self.digest[:12]}"


@dataclass(frozen=True, kw_only=True)
class EngineAudit:
    """What the library made of the network, by its own list of the engine's layers."""

    kernels: int
    bytes_written: int
    """By all kernels for one tile: what each hands to the next through memory."""
    written: Mapping[str, int]
    """Those bytes by type."""
    mac_share: Mapping[str, float]
    """Share of the network's multiply-accumulates by the type that the engine computes them in, as in
    :attr:`PlanAudit.mac_share`; ``unknown`` where the list does not say which layer computes them."""
    fallbacks: tuple[str, ...]
    """Layers of the network with multiply-accumulates that the engine computes in a wider type than its precision."""
    widened: int
    """int8 layers that hand floating point on, so that another kernel has to quantise it again."""


@dataclass(frozen=True, kw_only=True)
class PlanAudit:
    """Which arithmetic a plan was asked for, layer by layer, as ``python -m export.audit`` counts it."""

    macs: int
    """Multiply-accumulates of one tile in convolutions and matrix products."""
    mac_share: Mapping[str, float]
    """Share of them by the type they are computed in (``fp32``, ``tf32``, ``fp16``, ``bf16``, ``int8``); sums to 1."""
    layers: int
    fallbacks: tuple[str, ...]
    """Layers with multiply-accumulates in a wider type than the plan's precision."""
    casts: int
    """Conversions between floating-point types or to int8: each one may cost a pass over memory."""
    weights_bytes: int
    engine: EngineAudit | None = None
    """What became of it; None where the library did not tell."""


@dataclass(frozen=True, kw_only=True)
class CachedPlan:
    """What lies beside a plan as JSON."""

    key: PlanKey
    plan: FileRef
    """Its path is relative to the cache folder."""
    audit: PlanAudit
    created_utc: str
    build_s: float
    latency_ms: float | None = None
    """Median time of one tile on :attr:`latency_device`, transfers included; None until a benchmark measured it."""
    latency_device: str | None = None
    """:attr:`Device.model` it was measured on."""
    latency_power_mode: str | None = None
    """:attr:`Device.power_mode` at that time."""
    record_version: int = RECORD_VERSION


@dataclass(frozen=True, kw_only=True)
class PlanHost:
    """Who wants to load a plan; ``device`` is None where there is none, and then no device is refused."""

    library: Library
    library_version: str
    device: Device | None
    platform: str = PLATFORM


def measured_on(record: CachedPlan) -> str:
    """Where a plan's latency was measured, in words."""
    mode = record.latency_power_mode
    return f"{record.latency_device}{'' if mode is None else f', power mode {mode}'}"


def power_mode(status: Path = POWER_STATUS) -> str | None:
    """The mode that a Jetson's ``nvpmodel`` has set, as it numbers them; None on other machines.

    ``nvpmodel -q`` reads the same file, which holds ``pmode:0000``.
    """
    try:
        text = status.read_text()
    except OSError:
        return None
    found = re.search(r"pmode:(\d+)", text)
    return str(int(found[1])) if found else None


def source_sha256(bundle: Bundle, scenario: Scenario, precision: Precision) -> str:
    """One hash for a graph and the weights files it reads.

    ONNX keeps the name of an external file as plain text, so a weights file that the graph does not name cannot matter
    (https://onnx.ai/onnx/repo-docs/ExternalData.html).

    Raises:
        ManifestError: the bundle has no such graph.
    """
    bundle.graph(scenario, precision)
    graph = bundle.manifest.graphs[scenario][precision].read(bundle.root)
    total = hashlib.sha256(bundle.manifest.graphs[scenario][precision].sha256.encode())
    for weights in sorted(bundle.manifest.weights, key=lambda ref: ref.path):
        name = PurePosixPath(weights.path).name
        if name.encode() in graph:
            total.update(f"{name}:{weights.sha256}".encode())
    return total.hexdigest()


def refusal(
    record: CachedPlan, bundle: Bundle, host: PlanHost, *, batch: int | None = None, probabilities: bool = False
) -> str | None:
    """Why this plan must not be loaded, in words that complete "it ..."; None when it may be.

    Args:
        record: of the plan.
        bundle: whose graph is to run.
        host: that is to run it.
        batch: tiles at a time.
        probabilities: whether that output is wanted.
    """
    key = record.key
    if bundle.policy.require_signature:
        return "was built on board, and this installation runs what is signed alone"
    available = bundle.manifest.graphs[key.scenario]
    if key.precision not in available or key.source_sha256 != source_sha256(bundle, key.scenario, key.precision):
        return "was built from another graph or other weights than the bundle holds now"
    if (key.library, key.platform) != (host.library, host.platform):
        return f"was built by {key.library} on {key.platform}, this is {host.library} on {host.platform}"
    if key.library_version != host.library_version:
        return f"was built by {key.library} {key.library_version}, found {host.library_version}"
    if host.device is not None and not key.target.accepts(host.device):
        return f"was built for {key.target}, this is {host.device}"
    if batch is not None and not key.batch.minimum <= batch <= key.batch.maximum:
        return f"takes {key.batch.minimum} to {key.batch.maximum} tiles at a time, {batch} are wanted"
    if probabilities and not key.probabilities:
        return "was built without the output probabilities, which are wanted"
    return None
