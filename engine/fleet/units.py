"""A unit: what a fleet maps at a time, and by what it is known to be done."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.contract.bundle import Bundle
from engine.contract.health import parse_limits
from engine.contract.sensors import Sensor
from engine.options import request_of
from engine.rasters.height_models import HeightModels
from engine.rasters.names import RasterName, gdal_name, local_file, raster_name
from engine.rasters.raster import RasterInput
from engine.request import RasterFiles, RunRequest
from engine.version import own_version

RASTER_OPTIONS = ("rgir", "ndsm", "dsm", "dtm")
"""Options of a run that name rasters, and columns of a list."""
_NOT_IN_THE_MAP = frozenset(
    {"source", "bundle", "output", "overwrite", "resume", "backend", "health", "deadline_ms", "require_signature"}
)
"""Fields of a request on which no byte of a map depends, or which the key holds in another form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One raster, or the rasters of one place."""

    name: str
    """Of the folder of its maps."""
    rasters: tuple[tuple[str, str], ...] = ()
    """Option of a run (:data:`RASTER_OPTIONS`) and the raster's name. Text: a list may be of millions."""
    broken: str = ""
    """Why it cannot be mapped, as the list stands; empty where it can be tried."""

    def files(self) -> dict[str, RasterName]:
        """Its rasters by option."""
        return {option: raster_name(text) for option, text in self.rasters}

    @property
    def sensors(self) -> frozenset[Sensor]:
        """Those that have a raster."""
        given = {option for option, _ in self.rasters}
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
        own: dict[str, Any] = {**dict.fromkeys((*RASTER_OPTIONS, "pattern")), **self.files(), "output": output}
        return request_of(argparse.Namespace(**{**vars(options), **own}))


def unit_key(request: RunRequest, bundle: Bundle) -> str:
    """What the bytes of the maps depend on, as 64 hexadecimal digits: inputs, bundle and options.

    A file counts as unchanged while its size and its time of change are, an object in a bucket of S3 while its entity
    tag is, and any other name that only GDAL understands while it is the same name.
    The processor is not part of it: machines that compute in another precision map the same unit.

    Raises:
        UsageError: a limit of the sensors' health cannot be understood.
    """
    assert isinstance(request.source, RasterFiles)
    limits = parse_limits(list(request.health), bundle.manifest.health) if request.watch else None
    told = {
        "version": own_version(),
        "bundle": bundle.digest,
        "inputs": {sensor.value: _identities(given) for sensor, given in request.source.paths.items()},
        "options": {
            each.name: getattr(request, each.name) for each in fields(request) if each.name not in _NOT_IN_THE_MAP
        },
        "health": limits,
        "backend": [request.backend.name, request.backend.precision],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _identities(given: RasterInput) -> list[Mapping[str, Any]]:
    names = given.files if isinstance(given, HeightModels) else (given,)
    return [_identity(name) for name in names if isinstance(name, str | Path)]


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
