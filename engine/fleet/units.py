"""A unit: what a fleet maps at a time, and by what it is known to be done."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from engine.contract.bundle import Bundle
from engine.contract.health import parse_audit, parse_limits
from engine.contract.sensors import Sensor
from engine.options import polygons_of, request_of
from engine.polygons.convert import Polygons
from engine.rasters.height_models import HeightModels
from engine.rasters.names import RasterName, gdal_name, local_file, raster_name
from engine.rasters.raster import RasterInput
from engine.request import RasterFiles, RunRequest
from engine.version import own_version

RASTER_OPTIONS = ("rgir", "ndsm", "dsm", "dtm", "stac")
"""Options of a run that name rasters, and columns of a list."""
_SENSORS = RASTER_OPTIONS[:-1]
_IN_ANOTHER_FORM = frozenset({"source", "bundle", "backend", "health", "area"})
"""Fields of a request that the key holds in another form."""
_NOT_IN_THE_MAP = frozenset({"output", "overwrite", "resume", "deadline_ms", "require_signature", "readers"})
"""Fields of a request on which no byte of a map depends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One raster, or the rasters of one place."""

    name: str
    """Of the folder of its maps."""
    rasters: tuple[tuple[str, str], ...] = ()
    """Option of a run (:data:`RASTER_OPTIONS`) and the raster's name. Text: a list may be of millions."""
    broken: str = ""
    """Why it cannot be mapped, as the list stands; empty where it can be tried."""
    block: int | None = None
    """Of rows, where it is a part of one that is too large; see :mod:`engine.fleet.blocks`."""

    @property
    def sensors(self) -> frozenset[Sensor]:
        """Those that have a raster."""
        given = {option for option, _ in self.rasters}
        if "stac" in given:  # an item is opened when its turn comes
            return frozenset(Sensor)
        return frozenset(
            sensor for sensor in Sensor if sensor.value in given or (sensor is Sensor.NDSM and "dsm" in given)
        )

    def request(self, options: argparse.Namespace, output: Path) -> RunRequest:
        """A run that maps it.

        Args:
            options: of the command, see :mod:`engine.options`.
            output: where its maps go.

        Raises:
            UsageError: its rasters and the options contradict each other.
        """
        own: dict[str, Any] = {**dict.fromkeys((*RASTER_OPTIONS, "pattern")), **dict(self.rasters), "output": output}
        own |= {option: raster_name(own[option]) for option in _SENSORS if own[option] is not None}
        if own["dsm"] is None or own["dtm"] is not None:  # units differ: the ground is found where it is not given
            own["ground"] = None
        return request_of(argparse.Namespace(**{**vars(options), **own}))


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is made of a unit's maps and published with them."""

    polygons: Polygons | None = None
    """Their file lies within the unit's folder."""
    report: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> Extras:
        """Those that are asked for.

        Raises:
            UsageError: they make no sense.
        """
        return cls(polygons=polygons_of(options), report=options.report)


def unit_key(request: RunRequest, bundle: Bundle, extras: Extras | None = None) -> str:
    """What the bytes of a unit's files depend on, as 64 hexadecimal digits: inputs, bundle and options.

    A file counts as unchanged while its size and its time of change are, an object in a bucket of S3 while its entity
    tag is, and any other name that only GDAL understands while it is the same name.
    The processor is not part of it: machines that compute in another precision map the same unit.

    Raises:
        UsageError: a limit of the sensors' health cannot be understood.
    """
    assert isinstance(request.source, RasterFiles)
    extras = extras or Extras()
    health = None
    if request.watch:
        changes = list(request.health)
        health = parse_limits(changes, bundle.manifest.health), parse_audit(changes, bundle.manifest.audit)
    left_out = _IN_ANOTHER_FORM | _NOT_IN_THE_MAP
    told = {
        "version": own_version(),
        "bundle": bundle.digest,
        "inputs": {sensor.value: _identities(given) for sensor, given in request.source.paths.items()},
        "options": {each.name: getattr(request, each.name) for each in fields(request) if each.name not in left_out},
        "area": None if request.area is None else [str(request.area), _area_file(str(request.area))],
        "health": health,
        "backend": [request.backend.name, request.backend.precision, request.backend.plans],
        "polygons": None if extras.polygons is None else astuple(replace(extras.polygons, overwrite=False)),
        "report": extras.report,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _identities(given: RasterInput) -> list[Mapping[str, Any]]:
    names = given.files if isinstance(given, HeightModels) else (given,)
    return [_identity(name) for name in names if isinstance(name, str | Path)]


def _area_file(text: str) -> Mapping[str, Any] | None:
    """The vector file of an area; None where it is a box."""
    path = local_file(raster_name(text.partition("|layername=")[0]))
    return _identity(path) if path is not None and path.is_file() else None


def _version(name: str) -> str | None:
    """Of an object in a bucket of S3; None where that cannot be asked for."""
    found = re.match(r"(?:/vsis3/|s3://)([^/]+)/(.+)", name)
    if found is None:
        return None
    try:
        from engine.fleet.bucket import version_of
    except ImportError:
        return None
    return version_of(f"s3://{found[1]}", found[2])


def _identity(name: RasterName) -> Mapping[str, Any]:
    path = local_file(name)
    if path is None:
        return {"name": gdal_name(name), "version": _version(gdal_name(name))}
    try:
        found = path.stat()
    except OSError:
        return {"path": str(path.absolute())}  # mapping it will say what is wrong
    return {"path": str(path.absolute()), "bytes": found.st_size, "changed_ns": found.st_mtime_ns}
