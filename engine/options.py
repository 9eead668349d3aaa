"""The options of ``python -m engine.run``, and the request that they make."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import get_args

from engine import demo
from engine.backends.base import ExecutionPrecision, PerformanceHint
from engine.backends.options import BackendName, BackendOptions
from engine.contract.errors import UsageError
from engine.contract.sensors import Sensor, parse_sensors
from engine.health.faults import parse_faults
from engine.inputs import rasters_given
from engine.live.frame_name import Pattern
from engine.polygons.convert import SIMPLIFY_PX, SMALLEST_PX, Polygons
from engine.rasters.names import raster_name
from engine.rasters.raster import RasterInput
from engine.rasters.stretch import parse_stretch
from engine.request import PATTERN, LandingFolder, RasterFiles, RunRequest
from engine.resolution import Gsd
from engine.stitcher import Blend
from engine.telemetry.log import LogFormat
from engine.view.address import BASE_HELP

DEADLINE_MS = 1000.0
"""Of a tile, when --rate is given and --deadline is not."""
BY_SIDECAR = "sidecar"
"""The word for ``--pattern`` that goes by sidecars alone."""
PARTNER_WAIT_MS = 500.0


OPTIONS = {
    "rgir_bands": "--rgir-bands",
    "ndsm_scale_m": "--ndsm-scale",
    "partner_wait_ms": "--partner-wait",
    "idle_exit_s": "--idle-exit",
    "rate_hz": "--rate",
    "deadline_ms": "--deadline",
    "when_behind": "--when-behind",
    "watchdog_s": "--watchdog",
    "halo_px": "--halo",
    "audit_every": "--audit-every",
    "drivers": "--live-driver",
    "smallest_px": "--smallest",
    "simplify_px": "--simplify",
    **{
        name: f"--{name}"
        for name in ("overwrite", "resume", "threads", "readers", "blend", "inject", "health", "output", "pattern")
    },
    **{
        name: f"--{name}"
        for name in (
            "rgir",
            "ndsm",
            "sensors",
            "dsm",
            "dtm",
            "gsd",
            "area",
            "stretch",
            "ground",
            "stac",
            "backend",
            "precision",
            "metrics",
        )
    },
}
"""Arguments of the library whose errors reach a user of the command, by the option that gives them."""


def in_options(message: str) -> str:
    """An error of the library as the command says it: ``halo_px must be …`` as ``--halo must be …``.

    >>> in_options("rate_hz must be a positive number, received 0: pass overwrite=True, or another `output`")
    '--rate must be a positive number, received 0: pass --overwrite, or another --output'
    >>> in_options("choose them, as in `rgir_bands=4,1,2`; `inject` needs watch=True")
    'choose them, as in `--rgir-bands 4,1,2`; --inject needs --sensors auto'
    """
    names = "|".join(OPTIONS)
    message = message.replace("watch=True", "--sensors auto")
    message = re.sub(rf"\b({names})=True\b", lambda found: OPTIONS[found[1]], message)
    message = re.sub(rf"\b({names})=(?=[\w.])", lambda found: f"{OPTIONS[found[1]]} ", message)
    message = re.sub(rf"`({names})`", lambda found: OPTIONS[found[1]], message)
    return re.sub(r"\b[a-z]+_[a-z_]+\b", lambda found: OPTIONS.get(found[0], found[0]), message)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every option of the command."""
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--rgir", type=raster_name, metavar="PATH", help="raster with near-infrared, red, green")
    inputs.add_argument("--ndsm", type=raster_name, metavar="PATH", help="raster with height above ground")
    inputs.add_argument(
        "--dsm", type=raster_name, metavar="PATH", help="raster with height of roofs and crowns; with --dtm, for --ndsm"
    )
    inputs.add_argument("--dtm", type=raster_name, metavar="PATH", help="raster with height of the ground; with --dsm")
    inputs.add_argument(
        "--ground", choices=("auto",), help="find the ground below --dsm by cloth simulation, where there is no --dtm"
    )
    inputs.add_argument(
        "--stac",
        metavar="ITEM",
        help="a STAC item instead: its assets with the bands nir, red, green and with heights",
    )
    inputs.add_argument(
        "--sensors",
        metavar="LIST",
        help="auto watches the health of those given (default for both); rgir, ndsm or rgir,ndsm trusts what it names",
    )
    inputs.add_argument(
        "--rgir-bands",
        metavar="N,N,N",
        help="band numbers of NIR, red, green, as in 4,1,2 (default: as the bands call themselves, else 1,2,3)",
    )
    inputs.add_argument(
        "--list",
        type=raster_name,
        metavar="WHAT",
        help="map many: a CSV with columns rgir and ndsm (or dsm and dtm, or stac; name), a folder, a STAC collection "
        "(its JSON), or a prefix in a bucket (s3://bucket/rasters); repeat it to go on",
    )
    inputs.add_argument(
        "--shard", metavar="I/N", help="of the list every N-th from the I-th, counted from 0, as in 0/4 to 3/4"
    )
    inputs.add_argument(
        "--speed", type=float, metavar="MPX/S", help="of a worker: --dry-run of a list says how many hours it takes"
    )
    inputs.add_argument("--price", type=float, metavar="P", help="of a worker for an hour: --dry-run says the sum")
    inputs.add_argument("--ndsm-scale", type=float, metavar="M", help="metres per unit of nDSM (0.1 for decimetres)")
    inputs.add_argument(
        "--stretch",
        metavar="HOW",
        help="to 8 bits, of RGIR with more: percent (the 2nd and 98th percentile), percent=LOW,HIGH, "
        "reflectance=VALUE, LOW:HIGH for each band, or the run.json of an earlier run",
    )
    inputs.add_argument(
        "--area",
        metavar="WHAT",
        help="map this part alone: a vector file (FILE|layername=NAME), or left,bottom,right,top[@CRS]",
    )
    live = parser.add_argument_group("live folder")
    live.add_argument("--live", type=Path, metavar="DIR", help="map the frames that land here, each into a folder")
    live.add_argument(
        "--pattern",
        metavar="NAME",
        help=f"of frames' files (default: {PATTERN.text}); {BY_SIDECAR}: only those that a JSON file beside them names",
    )
    live.add_argument(
        "--partner-wait",
        type=float,
        metavar="MS",
        help=f"a frame waits so long for its second sensor (default: {PARTNER_WAIT_MS:g})",
    )
    live.add_argument(
        "--idle-exit", type=float, metavar="S", help="end when nothing has landed for so long (default: at SIGTERM)"
    )
    live.add_argument(
        "--live-driver",
        action="append",
        metavar="NAME",
        help="GDAL driver that may open a frame, repeatable (default: GTiff alone; others may reach for other files)",
    )
    flight = parser.add_argument_group("flight")
    flight.add_argument(
        "--health",
        action="append",
        default=[],
        metavar="WHAT",
        help="limits other than the bundle's, repeatable: a TOML or JSON file, or as in ndsm.max_height_m=80 or "
        "audit.every_tiles=50",
    )
    flight.add_argument(
        "--audit-every",
        type=int,
        metavar="N",
        help="map one tile in N by all three graphs, to see which sensor is wrong; 0 never (default: the bundle's)",
    )
    flight.add_argument("--rate", type=_rate_hz, metavar="HZ", help="replay at so many tiles a second, as in 10Hz")
    flight.add_argument(
        "--deadline",
        type=float,
        metavar="MS",
        help=f"count tiles later than this, from available to written (default with --rate: {DEADLINE_MS:g})",
    )
    flight.add_argument(
        "--when-behind",
        choices=("block", "drop-oldest"),
        default="block",
        help="tiles that come too fast wait, or the oldest is skipped and counted (default: block)",
    )
    flight.add_argument(
        "--inject",
        metavar="FAULTS",
        help='make sensors fail, as in "ndsm:dead@120-180,rgir:noise@200,ndsm:offset=5@300-"',
    )
    flight.add_argument(
        "--metrics",
        metavar="[HOST]:PORT",
        help="serve /metrics for Prometheus and /healthz, as in :9102 (this machine alone unless a host is given)",
    )
    flight.add_argument(
        "--serve",
        metavar="[HOST]:PORT",
        help="show the map in a browser while it grows, as in :8080 (this machine alone unless a host is given)",
    )
    flight.add_argument("--base-layer", metavar="WHAT", help=f"of --serve: {BASE_HELP}")
    model = parser.add_argument_group("model")
    model.add_argument("--bundle", type=Path, default=demo.BUNDLE, metavar="DIR", help="default: the demo model")
    model.add_argument(
        "--require-signature",
        action="store_true",
        help="run a bundle that a trusted key has signed, and no other (also a setting: see engine/contract/trust.py)",
    )
    model.add_argument("--backend", choices=get_args(BackendName), default="auto", help="default: auto")
    model.add_argument(
        "--precision", choices=get_args(ExecutionPrecision), default="auto", help="fp32 is exact; auto is fastest"
    )
    model.add_argument("--plans", type=Path, metavar="DIR", help="TensorRT plans (default: those under the bundle)")
    model.add_argument("--threads", type=int, metavar="N", help="CPU threads for inference (default: all cores)")
    model.add_argument(
        "--readers", type=int, metavar="N", help="threads that decode rasters (default: by cores and backend)"
    )
    model.add_argument(
        "--hint",
        choices=get_args(PerformanceHint),
        help="OpenVINO takes several tiles at a time, or one on all cores (default: latency with --rate)",
    )
    model.add_argument(
        "--watchdog",
        type=float,
        default=30.0,
        metavar="S",
        help="a backend silent for so long is replaced by the next (default: 30)",
    )
    model.add_argument("--halo", type=int, metavar="PX", help="context around each tile (default: the bundle's)")
    model.add_argument(
        "--blend", choices=get_args(Blend), default="hann", help="hann cross-fades tiles (default); none does not"
    )
    model.add_argument(
        "--gsd",
        type=gsd_of,
        default="auto",
        metavar="auto|M|off",
        help="map at M metres a pixel, resampled tile by tile; auto (default): what the bundle maps best at",
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--output",
        type=raster_name,
        metavar="DIR",
        help="folder (default: segmented-SENSORS); of a list also a bucket, as in s3://bucket/maps",
    )
    results.add_argument("--overwrite", action="store_true", help="replace results that are there")
    results.add_argument("--resume", action="store_true", help="finish an interrupted run")
    results.add_argument(
        "--probabilities", action="store_true", help="also write probabilities.tif, a band for each class"
    )
    results.add_argument(
        "--polygons",
        type=Path,
        metavar="FILE",
        help="also write the map as polygons: .gpkg, .fgb or .parquet (pip install 'gemmnet-edge[gis]'); of a list a "
        "name within each unit's folder",
    )
    results.add_argument(
        "--smallest", type=int, default=SMALLEST_PX, metavar="PX", help="give smaller polygons away (10 pixels)"
    )
    results.add_argument(
        "--simplify", type=float, default=SIMPLIFY_PX, metavar="PX", help="move their borders by so much (1 pixel)"
    )
    results.add_argument("--report", action="store_true", help="also write report.html, to read in a browser")
    results.add_argument("--dry-run", action="store_true", help="check everything, say what would run, write nothing")
    results.add_argument(
        "--log-format", choices=get_args(LogFormat), default="text", help="of log lines on standard error (text)"
    )
    results.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="least of the log lines (info); debug has all that a library said of an error",
    )
    results.add_argument("--json", action="store_true", help="one JSON object per line on standard output")
    results.add_argument("--quiet", action="store_true", help="errors only")


def request_of(options: argparse.Namespace) -> RunRequest:
    """The options as a request.

    Raises:
        UsageError: they contradict each other, or a text cannot be understood.
    """
    if isinstance(options.output, str):
        raise UsageError(f"--output of one raster is a folder of this machine, received {options.output}: use --list")
    source, watch = (_rasters if options.live is None else _folder)(options)
    names = "live" if options.live is not None else "-".join(each for each in Sensor if each in source.sensors)
    deadline_ms = options.deadline
    if deadline_ms is None and options.rate is not None:
        deadline_ms = DEADLINE_MS
    return RunRequest(
        source=source,
        bundle=options.bundle,
        require_signature=options.require_signature,
        output=options.output or Path(f"segmented-{names}"),
        backend=BackendOptions(
            name=options.backend,
            precision=options.precision,
            threads=options.threads,
            # tiles that come at a pace are mostly alone in flight
            hint=options.hint or ("throughput" if options.rate is None else "latency"),
            plans=options.plans,
            watchdog_s=options.watchdog,
        ),
        watch=watch,
        health=tuple(options.health),
        audit_every=options.audit_every,
        halo_px=options.halo,
        blend=options.blend,
        rate_hz=options.rate,
        when_behind=options.when_behind,
        deadline_ms=deadline_ms,
        inject=() if options.inject is None else parse_faults(options.inject),
        overwrite=options.overwrite,
        resume=options.resume,
        rgir_bands=parse_bands(options.rgir_bands),
        ndsm_scale_m=options.ndsm_scale,
        readers=options.readers,
        gsd=options.gsd,
        probabilities=options.probabilities,
        stretch=None if options.stretch is None else parse_stretch(options.stretch),
        area=options.area,
    )


def polygons_of(options: argparse.Namespace) -> Polygons | None:
    """The polygons that are asked for; None where none are.

    Raises:
        UsageError: they make no sense, or cannot be made of what is mapped.
    """
    if options.polygons is None:
        return None
    if options.live is not None:
        raise UsageError(
            "--polygons belongs to rasters: leave it away, and run `python -m engine.polygons` on the maps you want"
        )
    if options.list is not None and options.polygons.name != str(options.polygons):
        raise UsageError(
            f"--polygons of a list names a file in each unit's folder, as in map.gpkg; received {options.polygons}"
        )
    return Polygons(
        path=options.polygons,
        smallest_px=options.smallest,
        simplify_px=options.simplify,
        overwrite=options.overwrite or options.resume,
    )


def _rasters(options: argparse.Namespace) -> tuple[RasterFiles, bool]:
    """What is read, and whether its sensors are watched."""
    for option in ("pattern", "partner_wait", "idle_exit", "live_driver"):
        if getattr(options, option) is not None:
            raise UsageError(f"--{option.replace('_', '-')} needs --live DIR, the folder where frames land")
    given, bands = rasters_given(
        rgir=options.rgir,
        ndsm=options.ndsm,
        dsm=options.dsm,
        dtm=options.dtm,
        ground=options.ground,
        stac=options.stac,
        rgir_bands=parse_bands(options.rgir_bands),
    )
    options.rgir_bands = None if bands is None else ",".join(map(str, bands))
    sources: dict[Sensor, RasterInput] = given or dict(demo.SCENE)
    watch = options.sensors == "auto" or (options.sensors is None and len(sources) == len(Sensor))
    named = options.sensors not in (None, "auto")
    alive = parse_sensors(options.sensors) if named else frozenset(sources)
    for sensor in alive - set(sources):
        raise UsageError(f"--sensors names {sensor}, but only {', '.join(sources)} is given: add --{sensor} PATH")
    return RasterFiles(paths={sensor: sources[sensor] for sensor in Sensor if sensor in alive}), watch


def _folder(options: argparse.Namespace) -> tuple[LandingFolder, bool]:
    """What is read, and whether its sensors are watched."""
    for option in ("rgir", "ndsm", "dsm", "dtm", "ground", "stac", "rate"):
        if getattr(options, option) is not None:
            raise UsageError(f"--live reads what lands in its folder, at its own pace: leave --{option} away")
    watch = options.sensors in (None, "auto")
    return LandingFolder(
        folder=options.live,
        sensors=frozenset(Sensor) if watch else parse_sensors(options.sensors),
        pattern=pattern_of(options.pattern),
        partner_wait_ms=PARTNER_WAIT_MS if options.partner_wait is None else options.partner_wait,
        idle_exit_s=options.idle_exit,
        drivers=tuple(options.live_driver or ("GTiff",)),
    ), watch


def pattern_of(text: str | None) -> Pattern | None:
    """What ``--pattern`` says of names of files; None goes by sidecars alone.

    Raises:
        UsageError: it cannot be read.
    """
    if text is None:
        return PATTERN
    return None if text == BY_SIDECAR else Pattern(text=text)


def parse_bands(text: str | None) -> tuple[int, int, int] | None:
    """``"4,1,2"`` as band numbers of NIR, red, green.

    Raises:
        UsageError: these are not three whole numbers.
    """
    if text is None:
        return None
    try:
        nir, red, green = (int(number) for number in text.split(","))
    except ValueError as error:
        raise UsageError(f"--rgir-bands takes three band numbers such as 4,1,2; received {text!r}") from error
    return nir, red, green


def gsd_of(text: str) -> Gsd:
    """What ``--gsd`` takes; for argparse."""
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    try:
        return float(text.removesuffix("m"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"auto, off or metres such as 0.1 are expected, received {text!r}") from None


def _rate_hz(text: str) -> float:
    try:
        return float(text.lower().removesuffix("hz"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"tiles a second such as 10 or 10Hz are expected, received {text!r}") from None
