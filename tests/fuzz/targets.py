"""What is fuzzed: for each foreign format a whole example, the function that reads it, and the errors it may raise.

Everything else that is raised, a hang included, is a defect. A target reads as the program does, by the same function.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from engine import demo
from engine.contract.bands import ndsm_spec
from engine.contract.bundle import MANIFEST_NAME, Manifest
from engine.contract.errors import InputError, ResumeError, SignatureError, UsageError
from engine.contract.formats import from_json, from_npz
from engine.contract.health import default_limits, parse_limits
from engine.contract.onnx_files import external_files
from engine.contract.plans import CachedPlan
from engine.contract.sensors import Sensor
from engine.contract.tiff import unfinished
from engine.contract.trust import Policy, check_signature, installed_policy
from engine.frame_log import read_frame_log
from engine.journal import Entry, Statistics
from engine.live.frame_name import Sidecar
from engine.rasters.area import place
from engine.rasters.georeference import Grid
from engine.rasters.raster import SensorRasters
from engine.record import RunRecord
from engine.stac.assets import rasters_of
from engine.tile_log import COLUMNS, read_tile_log


@dataclass(frozen=True, kw_only=True)
class Target:
    """One format."""

    example: Callable[[], bytes]
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = (ValueError,)
    """What may be raised: an error of ours, in one line."""


def _in_a_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def run(content: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            return read(path)

    return run


def _raster(path: Path) -> None:
    # as a frame that lands: one driver, nothing beside it
    with SensorRasters.open({Sensor.NDSM: path}, {Sensor.NDSM: ndsm_spec()}, drivers=("GTiff",)) as rasters:
        if rasters.grid.width * rasters.grid.height < 1 << 22:
            rasters.read(0, 0, min(rasters.grid.height, 64), min(rasters.grid.width, 64))


_ITEM = {
    "type": "Feature",
    "stac_version": "1.1.0",
    "id": "a",
    "geometry": None,
    "properties": {"datetime": "2026-01-01T00:00:00Z"},
    "links": [],
    "assets": {
        "image": {"href": "a.tif", "roles": ["data"], "bands": [{"name": "nir"}, {"name": "red"}, {"name": "green"}]},
        "height": {"href": "h.tif", "roles": ["chm"]},
    },
}
_GRID = Grid(width=20, height=20, crs=None, transform=from_origin(0, 0, 1, 1))


_stac_item = _in_a_file("item.json", lambda path: rasters_of(str(path)))


@cache
def _tiff() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tif")
        heights = np.random.default_rng(0).random((1, 32, 48), np.float32)
        profile = {"driver": "GTiff", "crs": "EPSG:2154", "transform": from_origin(650000, 6860000, 0.2, 0.2)}
        with rasterio.open(path, "w", height=32, width=48, count=1, dtype="float32", nodata=-9999, **profile) as file:
            file.scales, file.offsets = (0.5,), (1.0,)
            file.write(heights)
        return path.read_bytes()


@cache
def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.arange(12, dtype=np.float32).reshape(3, 4), b=np.zeros((2, 2), np.uint8))
    return buffer.getvalue()


def _signature() -> bytes:
    return f"ed25519 {'0123456789abcdef'} {'ab' * 64}\n".encode()


_FRAME = {
    "stamp": "0001", "files": {"rgir": "rgir_0001.tif"}, "absent": {"ndsm": {"fault": "late", "detail": "x"}},
    "verdicts": {}, "scenario": "missing_ndsm", "inferences": {"missing_ndsm": 1}, "provenance_pixels": {"none": 3},
    "tiles": 1, "mapped": True, "dropped": False, "partner_wait_ms": 1.5, "latency_ms": 2.5,
}  # fmt: skip
_ROW = "0,0001,0,0,64,64,full,0,0,alive,,dead,frozen,1.0,2.0,3.0,4.0,5.0,6.0"

TARGETS: dict[str, Target] = {
    "manifest": Target(
        example=lambda: (demo.BUNDLE / MANIFEST_NAME).read_bytes(), read=lambda content: from_json(content, Manifest)
    ),
    "journal": Target(
        example=lambda: Entry(key={"a": [1, 2]}, tiles_done=3, statistics=Statistics()).encode(), read=Entry.decode
    ),
    "tile log": Target(
        example=lambda: f"{','.join(COLUMNS)}\n{_ROW}\n".encode(),
        read=_in_a_file("tiles.csv", lambda path: list(read_tile_log(path))),
    ),
    "frame log": Target(
        example=lambda: json.dumps(_FRAME).encode() + b"\n",
        read=_in_a_file("frames.jsonl", lambda path: list(read_frame_log(path))),
    ),
    "sidecar": Target(
        example=lambda: b'{"sensor": "rgir", "stamp": "0001", "file": "a.tif"}',
        read=lambda content: from_json(content, Sidecar),
    ),
    "run record": Target(example=lambda: b'{"version": "0.1.0"}', read=_in_a_file("run.json", RunRecord.read)),
    "plan record": Target(example=lambda: b'{"key": {}}', read=lambda content: from_json(content, CachedPlan)),
    "limits": Target(
        example=lambda: b'[ndsm]\nmax_height_m = 80\nstuck = "off"\n[rgir.noise]\nhard = 60\n',
        read=_in_a_file("limits.toml", lambda path: parse_limits([str(path)], default_limits())),
        errors=(UsageError,),
    ),
    "archive": Target(
        example=_npz,
        read=lambda content: from_npz(io.BytesIO(content), {"a": (np.float32, (3, 4)), "b": (np.uint8, (2, 2))}),
    ),
    "graph": Target(example=lambda: (demo.BUNDLE / "full.onnx").read_bytes(), read=external_files),
    "trust policy": Target(
        example=lambda: b'require_signature = true\nkeys = "keys"\nminimum_number = 7\nstate = "."\n',
        read=_in_a_file("trust.toml", lambda path: installed_policy(folders=[path.parent])),
        errors=(SignatureError,),
    ),
    "signature": Target(
        example=_signature,
        read=_in_a_file(
            "manifest.json.sig",
            lambda path: check_signature(b"{}", path.with_name("manifest.json"), Policy(require_signature=True)),
        ),
        errors=(SignatureError,),
    ),
    "STAC item": Target(example=lambda: json.dumps(_ITEM).encode(), read=_stac_item, errors=(InputError,)),
    "area": Target(
        example=lambda: b'{"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, -9], [0, 0]]]}',
        read=_in_a_file("area.geojson", lambda path: place(str(path), _GRID)),
        errors=(InputError, UsageError),
    ),
    "TIFF structure": Target(example=_tiff, read=_in_a_file("a.tif", unfinished)),
    "TIFF": Target(example=_tiff, read=_in_a_file("a.tif", _raster), errors=(InputError,)),
}

CORPUS = Path(__file__).parent / "corpus"
"""Inputs that ended in a traceback, a hang or a wrong answer once: a folder for each target, with ``-`` for a space."""


def once_failing(name: str) -> list[Path]:
    """The corpus of a target."""
    return sorted((CORPUS / name.replace(" ", "-")).glob("*"))


def check(name: str, content: bytes) -> None:
    """Read some content as a target.

    Raises:
        AssertionError: its error is not one line.
        Exception: any that the target must not raise.
    """
    target = TARGETS[name]
    try:
        target.read(content)
    except (*target.errors, ResumeError) as error:
        if not str(error).isprintable():
            raise AssertionError(f"{name}: {error!r} is not one line") from error
