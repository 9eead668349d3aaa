"""What the doctor finds: the machine, the libraries, the bundle, and what each backend makes of them."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, get_args

import msgspec
from tqdm import tqdm

from engine.backends.base import ExecutionPrecision
from engine.backends.fastest import learn
from engine.backends.options import BackendName, BackendOptions
from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import BackendError, EngineError
from engine.contract.sensors import Scenario
from engine.doctor.host import Host, examine_host
from engine.doctor.probe import WANTED, Probe, try_backend
from engine.version import own_version

BACKENDS: tuple[BackendName, ...] = tuple(name for name in get_args(BackendName) if name != "auto")
TIMEOUT_S = 300.0
"""Longest time for one probe: a first just-in-time compilation takes minutes on a small GPU."""

_LIBRARIES: tuple[tuple[str, str, str], ...] = (
    ("numpy", "every run", "pip install numpy"),
    ("msgspec", "every run", "pip install msgspec"),
    ("rasterio", "every run", "pip install rasterio"),
    ("PIL", "every run", "pip install pillow"),
    ("tqdm", "every run", "pip install tqdm"),
    ("openvino", "backend openvino", "pip install openvino"),
    ("onnxruntime", "backend onnxruntime", "pip install onnxruntime"),
    ("tensorrt", "backend tensorrt", "pip install tensorrt"),
    ("tensorrt_rtx", "backend tensorrt", "pip install tensorrt-rtx"),
    ("pycuda", "backend tensorrt", "pip install pycuda"),
    ("prometheus_client", "--metrics", "pip install prometheus-client"),
)
"""Import name, what needs it, how to get it."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """An importable package and the distributions that provide it; none: not installed."""

    name: str
    needed_for: str
    install: str
    distributions: Mapping[str, str]
    """Name to version. More than one means that they overwrote each other's files."""


@dataclass(frozen=True, kw_only=True)
class BundleFinding:
    """The bundle as it is on disk."""

    path: str
    error: str = ""
    """Why it cannot be trusted; the fields below are then empty."""
    exit_code: int = 0
    name: str = ""
    sha256: str = ""
    classes: int = 0
    tile_px: int = 0
    halo_px: int = 0
    gsd_m: tuple[float, float] | None = None
    best_gsd_m: tuple[float, float] | None = None
    precisions: tuple[Precision, ...] = ()
    """Those that every scenario has a graph of."""
    files: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Everything the doctor found."""

    version: str
    host: Host
    libraries: tuple[Library, ...]
    engine_error: str
    """Why ``engine.run`` cannot even be imported; empty if it can."""
    bundle: BundleFinding
    probes: tuple[Probe, ...]
    auto: str = ""
    """What ``--precision auto`` is here, in words; empty where nothing was measured."""

    @property
    def usable(self) -> tuple[tuple[Probe, ...], ...]:
        """The backends and precisions that run all three scenarios: ``auto`` first, then as they were tried."""
        groups = [tuple(group) for _, group in itertools.groupby(self.probes, Probe.row)]
        whole = [group for group in groups if len(group) == len(Scenario) and all(probe.works for probe in group)]
        whole = [group for group in whole if not group[0].instruction_set]  # those are of other processors
        return tuple(sorted(whole, key=lambda group: group[0].precision != "auto"))

    @property
    def exit_code(self) -> int:
        """0: a run can start. Else the code it would end with."""
        if self.engine_error:
            return EngineError.exit_code
        if self.bundle.error:
            return self.bundle.exit_code
        broken = [probe for probe in self.probes if not probe.works]
        told = [probe for probe in broken if probe.instruction_set]
        if self.usable and not told:
            return 0
        found = told or [probe for probe in broken if probe.outcome != "unavailable"]
        return (found or broken)[0].exit_code if broken else BackendError.exit_code

    @property
    def verdict(self) -> str:
        """One line."""
        if self.engine_error:
            return f"NOT USABLE: engine.run cannot start: {self.engine_error}"
        if self.bundle.error:
            return "NOT USABLE: the bundle cannot be trusted"
        if not self.usable:
            return "NOT USABLE: no backend runs all three scenarios"
        told = dict.fromkeys(t.instruction_set for t in self.probes if t.instruction_set and not t.works)
        if told:
            return f"NOT USABLE on every processor: wrong or failed with {', '.join(told)}"
        first, slowest_ms = self.usable[0][0], max(probe.median_ms for probe in self.usable[0])
        precision = "" if first.precision == "auto" else f" --precision {first.precision}"
        return (
            f"USABLE with --backend {first.backend}{precision}: {slowest_ms:.0f} ms a tile of {self.bundle.tile_px} px "
            "in the slowest scenario"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What else to know."""
        cpu = self.host.cpu
        found = [
            f"{' and '.join(each.distributions)} both install {each.name} and have overwritten each other's files: "
            "uninstall them all, then install one"
            for each in self.libraries
            if len(each.distributions) > 1
        ]
        if cpu.governor == "powersave":
            found.append("the frequency governor is powersave: latencies are longer and vary more than they need to")
        if cpu.load is not None and cpu.load > cpu.cores + 1:
            found.append(f"the machine was busy (load {cpu.load:.1f} on {cpu.cores} cores): an idle one is faster")
        return (*found, *filter(None, (self.auto,)))


def examine(
    bundle: Path,
    *,
    backends: Sequence[BackendName] = BACKENDS,
    precisions: Sequence[ExecutionPrecision] | None = None,
    tiles: int = 5,
    timeout_s: float = TIMEOUT_S,
    instruction_sets: Sequence[str] = (),
) -> Diagnosis:
    """Examine this machine with one bundle; progress goes to standard error if that is a terminal.

    Args:
        bundle: the bundle's folder.
        backends: those to try.
        precisions: those to try; None takes ``auto`` and what the bundle has.
        tiles: how many to time in each probe.
        timeout_s: longest time for one probe.
        instruction_sets: OpenVINO runs again with each, in a process of its own.
    """
    host = examine_host()  # before this process makes a load of its own
    loaded, finding = _examine_bundle(bundle)
    probes: list[Probe] = []
    if loaded is not None:
        todo: Sequence[ExecutionPrecision] = precisions or ("auto", *finding.precisions)
        rows = [(name, each) for name in backends for each in ("", *(instruction_sets if name == "openvino" else ()))]
        total = len(rows) * len(todo) * len(Scenario)
        with tqdm(total=total, unit="probe", leave=False, disable=None, file=sys.stderr) as bar:
            for name, told in rows:
                bar.set_description(name)
                for probe in try_backend(name, loaded, todo, tiles=tiles, timeout_s=timeout_s, instruction_set=told):
                    probes.append(probe)
                    bar.set_description(f"{name} {probe.precision} {probe.scenario}: {probe.outcome}")
                    bar.update()
    works = {probe.precision for probe in probes if probe.backend == "openvino" and probe.works}
    auto = ""
    if loaded is not None and {"auto", "int8"} <= works:  # they have not brought a process down
        auto = learn(BackendOptions(), loaded, scenarios=Scenario, wanted=WANTED)
    return Diagnosis(
        auto=auto,
        version=own_version(),
        host=host,
        libraries=_libraries(),
        engine_error=_engine_error(),
        bundle=finding,
        probes=tuple(probes),
    )


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """All of it, as JSON values."""
    return {
        "usable": diagnosis.exit_code == 0,
        "exit_code": diagnosis.exit_code,
        "verdict": diagnosis.verdict,
        "notes": list(diagnosis.notes),
        **msgspec.to_builtins(diagnosis),
    }


def _examine_bundle(path: Path) -> tuple[Bundle | None, BundleFinding]:
    try:
        bundle = Bundle.load(path)
    except EngineError as error:
        return None, BundleFinding(path=str(path), error=str(error), exit_code=error.exit_code)
    manifest = bundle.manifest
    everywhere = set.intersection(*(set(manifest.graphs[scenario]) for scenario in Scenario))
    files = {ref.path: ref.size_bytes for ref in manifest.files()}
    return bundle, BundleFinding(
        path=str(path),
        name=manifest.name,
        sha256=bundle.digest,
        classes=len(manifest.classes),
        tile_px=manifest.tile_px,
        halo_px=manifest.halo_px,
        gsd_m=manifest.gsd_m,
        best_gsd_m=manifest.best_gsd_m,
        precisions=tuple(each for each in get_args(Precision) if each in everywhere),
        files=len(files),
        size_bytes=sum(files.values()),
    )


def _libraries() -> tuple[Library, ...]:
    providers = packages_distributions()
    return tuple(
        Library(
            name=name,
            needed_for=needed_for,
            install=install,
            distributions={each: version(each) for each in sorted(set(providers.get(name, ())))},
        )
        for name, needed_for, install in _LIBRARIES
    )


def _engine_error() -> str:
    """Why a run could not start at all. Imported here so that the doctor itself outlives a broken rasterio."""
    try:
        importlib.import_module("engine.run")
    except ImportError as error:
        return str(error)
    return ""
