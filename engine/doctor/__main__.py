"""Is this machine fit to run a bundle, and how fast will it be?

    python -m engine.doctor                                        the demo bundle, every backend and precision
    python -m engine.doctor --bundle flight/bundle                 your bundle
    python -m engine.doctor --backend openvino --precision auto    only what a run will use
    python -m engine.doctor --json > doctor.json                   the same for machines
    python -m engine.doctor --instruction-sets all                 OpenVINO as on lesser processors, too
    python -m engine.doctor --rgir ortho.tif --ndsm height.tif     your rasters as well: bands, units, ground, alignment

Shows the machine, the installed libraries, whether the bundle is whole, and for each backend, precision and scenario
whether it reproduces the bundle's golden tile, how long a tile takes here, or exactly why it does not work. With
--instruction-sets OpenVINO also plays processors with fewer instructions than this one, each in a process of its own.

Exit codes: 0 usable; else that of the error a run would end with: 1 a library of the engine itself is missing; 2 wrong
options; 3 a raster; 5 the bundle; 6 no backend reproduces the golden tiles, or one does not with an instruction set
asked for.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from engine import demo
from engine.backends.base import ExecutionPrecision
from engine.backends.instruction_sets import available, in_use
from engine.contract.command import command_parser
from engine.contract.errors import InputError, UsageError
from engine.contract.sensors import Scenario, Sensor
from engine.doctor.diagnosis import BACKENDS, BundleFinding, Diagnosis, Library, as_json, examine
from engine.doctor.host import Host
from engine.doctor.probe import Probe
from engine.doctor.rasters import look
from engine.health.preflight import Advice
from engine.options import in_options, parse_bands
from engine.rasters.names import raster_name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        if options.tiles < 1:
            raise UsageError(f"--tiles must be at least 1, received {options.tiles}")
        diagnosis = examine(
            options.bundle,
            backends=_chosen(options.backend, BACKENDS, "--backend") or BACKENDS,
            precisions=_chosen(options.precision, get_args(ExecutionPrecision), "--precision"),
            tiles=options.tiles,
            instruction_sets=_instruction_sets(options.instruction_sets),
        )
        paths = {sensor: path for sensor in Sensor if (path := getattr(options, sensor.value)) is not None}
        advice = None
        if paths and not diagnosis.bundle.error:
            advice = look(
                options.bundle,
                paths,
                rgir_bands=parse_bands(options.rgir_bands),
                ndsm_scale_m=options.ndsm_scale,
            )
    except (UsageError, InputError) as error:
        print(f"error: {in_options(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if options.json:
        told = None if advice is None else msgspec.to_builtins(advice)
        print(json.dumps({**as_json(diagnosis), "rasters": told}, indent=2))
    else:
        width = min(shutil.get_terminal_size((100, 24)).columns, 120)
        if advice is not None:
            print("\n".join(("rasters", *_rasters(advice, width), "")))
        print("\n".join(render(diagnosis, width=width)))
    return diagnosis.exit_code


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = command_parser("engine.doctor", __doc__)
    parser.add_argument("--bundle", type=Path, default=demo.BUNDLE, metavar="DIR", help="model (default: the demo's)")
    parser.add_argument("--rgir", type=raster_name, metavar="PATH", help="raster to look at: near-infrared, red, green")
    parser.add_argument("--ndsm", type=raster_name, metavar="PATH", help="its heights above ground")
    parser.add_argument("--rgir-bands", metavar="N,N,N", help="as for engine.run")
    parser.add_argument("--ndsm-scale", type=float, metavar="M", help="as for engine.run")
    parser.add_argument("--backend", metavar="LIST", help=f"of {','.join(BACKENDS)} (default: all)")
    parser.add_argument(
        "--precision",
        metavar="LIST",
        help=f"of {','.join(get_args(ExecutionPrecision))} (default: auto and all that the bundle has)",
    )
    parser.add_argument(
        "--instruction-sets",
        metavar="LIST",
        help=f"all below the one in use, or of {','.join(available()) or 'none: this is no x86 processor'}: "
        "OpenVINO as if the processor had no more than that",
    )
    parser.add_argument("--tiles", type=int, default=5, metavar="N", help="tiles to time in each probe (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def render(diagnosis: Diagnosis, *, width: int) -> Iterator[str]:
    """All of it, as lines for a terminal of ``width`` columns."""
    yield f"gemmnet-edge {diagnosis.version}, Python {diagnosis.host.python}, {diagnosis.host.system}"
    yield from ("", "machine", *_machine(diagnosis.host, width))
    yield from ("", "libraries", *_libraries(diagnosis.libraries))
    yield from ("", "bundle", *_bundle(diagnosis.bundle, width))
    if diagnosis.probes:
        yield from ("", "backends: golden tile of each scenario, median of one tile at a time")
        yield from _backends(diagnosis.probes, width)
    if diagnosis.notes:
        yield ""
        for note in diagnosis.notes:
            yield from _row("note", note, width, column=6)
    yield from ("", diagnosis.verdict)


def _machine(host: Host, width: int) -> Iterator[str]:
    cpu, memory = host.cpu, host.memory
    if host.board:
        yield from _row("board", host.board, width)
    quota = "" if cpu.quota_cores is None else f", limited to the time of {cpu.quota_cores:g}"
    load = "" if cpu.load is None else f", load {cpu.load:.1f}"
    governor = "" if cpu.governor is None else f", governor {cpu.governor}"
    yield from _row("CPU", f"{cpu.model}, {cpu.cores} cores{quota}{load}{governor}", width)
    has = ", ".join(name for name, there in cpu.features.items() if there) or "not known"
    lacks = ", ".join(name for name, there in cpu.features.items() if not there)
    yield from _row("instructions", has + (f"; no {lacks}" if lacks else ""), width)
    limit = "" if memory.limit_bytes is None else f", this process limited to {_gib(memory.limit_bytes)}"
    yield from _row("memory", f"{_gib(memory.available_bytes)} free of {_gib(memory.total_bytes)}{limit}", width)
    for gpu in host.gpus:
        about = f"{gpu.name}, {gpu.memory}, compute capability {gpu.compute_capability}, driver {gpu.driver}"
        yield from _row("GPU", about, width)
    if host.gpu_note:
        yield from _row("GPU", f"none: {host.gpu_note}", width)


def _libraries(libraries: Sequence[Library]) -> Iterator[str]:
    for library in libraries:
        versions = " and ".join(
            number if name.replace("-", "_") == library.name else f"{number} ({name})"
            for name, number in library.distributions.items()
        )
        missing = "" if versions else f"  {library.install}"
        yield f"  {library.name:<19}{versions or '-':<30}{library.needed_for:<20}{missing}".rstrip()


def _bundle(bundle: BundleFinding, width: int) -> Iterator[str]:
    yield from _row("path", bundle.path, width)
    if bundle.error:
        yield from _row("error", bundle.error, width)
        return
    finest, coarsest = bundle.gsd_m or (0, 0)
    tiles = f"{bundle.tile_px} px with a halo of {bundle.halo_px} px, {finest:g} to {coarsest:g} m a pixel"
    resampled = "never, each raster is mapped as it is"
    if bundle.best_gsd_m is not None:
        resampled = "to {:g} to {:g} m a pixel, which it maps best at".format(*bundle.best_gsd_m)
    files = f"{bundle.files} files, {bundle.size_bytes / 2**20:.1f} MiB, each with the manifest's SHA-256"
    yield from _row(
        "model", f"{bundle.name}, {bundle.classes} classes, {' and '.join(bundle.precisions)} graphs", width
    )
    yield from _row("tiles", tiles, width)
    yield from _row("resampled", resampled, width)
    yield from _row("files", files, width)


def _backends(probes: Sequence[Probe], width: int) -> Iterator[str]:
    """A row for each backend and precision, a column for each scenario; reasons below their row, once."""
    yield f"  {'':<34}" + "".join(f"{scenario:>14}" for scenario in Scenario)
    for (name, instruction_set), of_backend in itertools.groupby(probes, lambda probe: probe.row()[:2]):
        told: set[str] = set()
        if instruction_set:
            yield f"  {name} with {instruction_set}"
        for precision, group in itertools.groupby(of_backend, lambda probe: probe.precision):
            found = {probe.scenario: probe for probe in group}
            ran = {f"{probe.graph} graph in {probe.computes_in}" for probe in found.values() if probe.works}
            cells = (_cell(found[scenario]) if scenario in found else "" for scenario in Scenario)
            lead = "" if instruction_set else name
            row = f"  {lead:<13}{precision:<6}{'; '.join(sorted(ran)):<17}" + "".join(f"{cell:>14}" for cell in cells)
            reasons = [probe.reason for probe in found.values() if probe.reason]
            if not told.issuperset(reasons) or not reasons:
                yield row.rstrip()
            for reason in dict.fromkeys(reasons):
                if reason not in told:
                    yield from _row("", reason, width, column=2)
            told.update(reasons)


def _rasters(advice: Sequence[Advice], width: int) -> Iterator[str]:
    if not advice:
        yield from _row("", "nothing is wrong in the tiles that were looked at", width, column=0)
    for each in advice:
        yield from _row("", str(each), width, column=0)


def _cell(probe: Probe) -> str:
    return f"{probe.median_ms:.0f} ms" if probe.works else str(probe.outcome)


def _row(name: str, text: str, width: int, column: int = 14) -> list[str]:
    lead = f"  {name:<{column}}"
    return textwrap.wrap(
        text, width, initial_indent=lead, subsequent_indent=" " * len(lead), break_long_words=False
    ) or [lead.rstrip()]


def _chosen(text: str | None, known: Sequence[Any], option: str) -> tuple[Any, ...] | None:
    """A comma-separated choice among ``known``, in its order."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or set(names) - set(known):
        raise UsageError(f"{option} takes a comma-separated list of {', '.join(known)}; received {text!r}")
    return tuple(name for name in known if name in names)


def _instruction_sets(text: str | None) -> tuple[str, ...]:
    if text != "all":
        return _chosen(text, available(), "--instruction-sets") or ()
    names = available()
    return names[: names.index(in_use())] if names else ()  # the one in use is probed anyway


def _gib(size_bytes: int | None) -> str:
    return "?" if size_bytes is None else f"{size_bytes / 2**30:.1f} GiB"


if __name__ == "__main__":
    sys.exit(main())
