"""What an item says: of a map (extensions projection, raster, classification, processing), of a bundle (mlm).

Plain JSON, STAC 1.1. Links to files are relative to the item.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from engine.contract.atomic import write_whole
from engine.contract.bundle import MANIFEST_NAME, NODATA_CLASS, Bundle, ClassSpec
from engine.contract.errors import writing
from engine.contract.sensors import PROVENANCE_LABELS, PROVENANCE_RGB, Provenance, Scenario
from engine.probabilities import NODATA, STEPS
from engine.rasters.footprint import footprint, taken_at
from engine.rasters.map_reader import MapReader
from engine.rasters.names import local_file
from engine.record import RunRecord

ITEM_NAME = "item.json"
_EXTENSION = "https://stac-extensions.github.io/{}/schema.json"
_OF_MAPS = ("projection/v2.0.0", "raster/v1.1.0", "classification/v2.0.0", "processing/v1.1.0")
_OF_BUNDLES = ("mlm/v1.4.0", "raster/v1.1.0")
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"


def map_item(folder: Path, record: RunRecord, *, stamp: str = "") -> dict[str, Any]:
    """The item of the maps in a folder.

    Args:
        folder: holds them.
        record: of the run that made them.
        stamp: of a live frame; empty for a raster.

    Raises:
        RasterOpenError: a map is missing or cannot be read.
    """
    with MapReader(folder) as maps:
        grid, classes = maps.grid, maps.classes
    ring, properties = footprint(grid), dict[str, Any]()
    if grid.crs is not None:
        authority = grid.crs.to_authority()
        properties["proj:code"] = None if authority is None else ":".join(authority)
        if authority is None:
            properties["proj:wkt2"] = grid.crs.to_wkt(version="WKT2_2018")
    properties["proj:shape"] = [grid.height, grid.width]
    if grid.transform is not None:
        properties["proj:transform"] = [*grid.transform][:6]
    if grid.gsd_m is not None:
        properties["gsd"] = round(grid.gsd_m, 6)
    inputs = record.inputs or {}
    seen = ", ".join(f"{sensor} {Path(raster.path).name}".strip() for sensor, raster in inputs.items())
    properties |= {
        "title": f"Land cover {stamp or folder.resolve().name}",
        "processing:software": {
            "gemmnet-edge": record.version,
            record.backend.library.split()[0]: record.backend.library.split()[-1],
        },
        "processing:lineage": f"Mapped {'from ' + seen if seen else 'live'} by the model {record.bundle.name} "
        f"(bundle {record.bundle.sha256})",
    }
    return _item(
        identity=_slug(f"{folder.resolve().name}-{record.bundle.sha256[:12]}"),
        extensions=_OF_MAPS,
        at=_taken(folder, record),
        made=datetime.fromisoformat(record.started_utc),
        ring=ring,
        properties=properties,
        assets=_map_assets(folder, classes, grid.gsd_m),
    )


def bundle_item(bundle: Bundle, place: Path) -> dict[str, Any]:
    """The item of a bundle, for a file in the folder ``place``."""
    manifest = bundle.manifest
    classes = _classes(enumerate((spec.name, spec.rgb) for spec in manifest.classes))
    sensors = {
        spec.sensor: {
            "name": spec.sensor.value,
            "bands": [band.name for band in spec.bands],
            "input": {
                "shape": [-1, len(spec.bands), manifest.tile_px, manifest.tile_px],
                "dim_order": ["batch", "channel", "height", "width"],
                "data_type": spec.dtype,
            },
            "description": f"Raw values in {spec.bands[0].unit}; the graph normalises them. The graph of each scenario "
            "takes the sensors that are alive.",
        }
        for spec in manifest.sensors
    }
    result = {"shape": [-1, len(classes), manifest.tile_px, manifest.tile_px], "data_type": "float32"}
    assets: dict[str, Any] = {
        "manifest": _asset(bundle.root / MANIFEST_NAME, place, "application/json", ["mlm:metadata", "metadata"])
    }
    for scenario in Scenario:
        for precision, ref in manifest.graphs[scenario].items():
            asset = _asset(bundle.root / ref.path, place, "application/octet-stream; framework=onnx", ["mlm:model"])
            taken = [spec for spec in manifest.sensors if spec.sensor in scenario.sensors]
            assets[f"{scenario}-{precision}"] = {
                **asset,
                "title": f"{scenario}, {precision}: takes {' and '.join(spec.sensor for spec in taken)}",
                "mlm:artifact_type": "onnx",
                "raster:bands": [
                    {"name": band.name, "data_type": spec.dtype, "unit": band.unit}
                    for spec in taken
                    for band in spec.bands
                ],
            }
    for ref in manifest.weights:
        assets[ref.path] = _asset(bundle.root / ref.path, place, "application/octet-stream", ["mlm:weights"])
    created = datetime.fromisoformat(manifest.created_utc.replace("Z", "+00:00"))
    return _item(
        identity=_slug(f"{manifest.name}-{bundle.digest[:12]}"),
        extensions=_OF_BUNDLES,
        at=created,
        made=created,
        ring=None,
        properties={
            "title": manifest.name,
            "description": f"Trained on {manifest.training.dataset}; scored on {manifest.training.held_out}",
            "mlm:name": re.sub(r"[^a-zA-Z0-9_.\s-]", "-", f"gemmnet {manifest.name}").strip("-_. "),
            "mlm:architecture": "GEMMNet",
            "mlm:framework": "ONNX",
            "mlm:tasks": ["semantic-segmentation"],
            "mlm:pretrained": True,
            "mlm:pretrained_source": manifest.training.dataset,
            "mlm:input": [*sensors.values()],
            "mlm:output": [
                {
                    "name": "probabilities",
                    "tasks": ["semantic-segmentation"],
                    "result": {**result, "dim_order": ["batch", "class", "height", "width"]},
                    "classification:classes": classes,
                    "post_processing_function": None,
                }
            ],
            "mlm:hyperparameters": {
                "tile_px": manifest.tile_px,
                "halo_px": manifest.halo_px,
                "gsd_m": [*manifest.gsd_m],
            },
        },
        assets=assets,
    )


def write_item(path: Path, item: Mapping[str, Any]) -> Path:
    """Write an item whole or not at all.

    Raises:
        OutputError: the system refuses.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(msgspec.json.encode(item), indent=2) + b"\n", durable=True)
    return path


def _item(
    *,
    identity: str,
    extensions: Sequence[str],
    at: datetime,
    made: datetime,
    ring: list[tuple[float, float]] | None,
    properties: Mapping[str, Any],
    assets: Mapping[str, Any],
) -> dict[str, Any]:
    place: dict[str, Any] = {"geometry": None}
    if ring is not None:
        across, along = zip(*ring, strict=True)
        place = {
            "geometry": {"type": "Polygon", "coordinates": [[list(point) for point in ring]]},
            "bbox": [min(across), min(along), max(across), max(along)],
        }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [_EXTENSION.format(name) for name in extensions],
        "id": identity,
        **place,
        "properties": {"datetime": _stamp(at), "created": _stamp(made), **properties},
        "links": [],
        "assets": dict(assets),
    }


def _map_assets(folder: Path, classes: Sequence[ClassSpec], gsd_m: float | None) -> dict[str, Any]:
    labels = {source.value: (label, PROVENANCE_RGB[source]) for source, label in PROVENANCE_LABELS.items() if source}
    told: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
        "classes": (
            "Land-cover classes",
            [{"nodata": NODATA_CLASS}],
            {"classification:classes": _classes(enumerate((spec.name, spec.rgb) for spec in classes))},
        ),
        "confidence": ("Probability of the class", [{"nodata": 0, "scale": 1 / 255}], {}),
        "provenance": (
            "Sensors that the class comes from",
            [{"nodata": Provenance.NONE.value}],
            {"classification:classes": _classes(labels.items())},
        ),
        "probabilities": (
            "Probability of each class",
            [{"name": spec.name, "nodata": NODATA, "scale": 1 / STEPS} for spec in classes],
            {},
        ),
    }
    fine = {} if gsd_m is None else {"spatial_resolution": round(gsd_m, 6)}
    assets: dict[str, Any] = {}
    for name, (title, bands, more) in told.items():
        if (folder / f"{name}.tif").exists():
            listed = [{"data_type": "uint8", **band, **fine} for band in bands]
            asset = _asset(folder / f"{name}.tif", folder, _COG, ["data"])
            assets[name] = {**asset, "title": title, "raster:bands": listed, **more}
    for name, kind, role in (
        ("quicklook.png", "image/png", "thumbnail"),
        ("run.json", "application/json", "metadata"),
        ("classes.qml", "application/xml", "metadata"),
    ):
        if (folder / name).exists():
            assets[name] = _asset(folder / name, folder, kind, [role])
    return assets


def _asset(path: Path, place: Path, kind: str, roles: list[str]) -> dict[str, Any]:
    href = Path(os.path.relpath(path.absolute(), place.absolute())).as_posix()
    return {"href": href if href.startswith("..") else f"./{href}", "type": kind, "roles": roles}


def _classes(named: Iterable[tuple[int, tuple[str, tuple[int, int, int]]]]) -> list[dict[str, Any]]:
    return [
        {
            "value": value,
            "name": _slug(name),
            "title": name,
            "description": name,
            "color_hint": "{:02X}{:02X}{:02X}".format(*rgb),
        }
        for value, (name, rgb) in named
    ]


def _taken(folder: Path, record: RunRecord) -> datetime:
    """When the pixels were taken; of a live frame, when it was mapped."""
    for raster in (record.inputs or {}).values():
        path = local_file(raster.path)
        if path is not None and path.is_file():
            return taken_at(path)
    if record.live is not None:
        return datetime.fromtimestamp((folder / "classes.tif").stat().st_mtime, UTC)
    return datetime.fromisoformat(record.started_utc)


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _slug(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z_-]+", "-", text).strip("-") or "item"
