"""Areas as a vector file: GeoPackage, FlatGeobuf or GeoParquet, whole or not at all, in batches."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import geopandas
import pyarrow
import pyarrow.parquet
import pyogrio
import shapely

from engine.contract.atomic import sync
from engine.contract.bundle import ClassSpec
from engine.contract.errors import OutputError
from engine.ownership import clear_marked, is_marked, is_unmarked, mark, owned
from engine.rasters.georeference import Grid
from engine.rasters.polygons import MapArea

logging.getLogger("pyogrio").setLevel(logging.WARNING)  # it tells of each batch
LAYER = "land_cover"
GPKG_VERSION = "1.2"
"""Of GeoPackage: GDAL before 3.7, as in QGIS 3.22, warns of newer ones."""
BATCH = 2000
"""Areas written at once."""


def is_ours(path: Path) -> bool:
    """Whether a file holds what :func:`write_areas` writes, by its columns."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        if path.suffix == ".parquet":
            names = set(pyarrow.parquet.read_schema(path).names)
        else:
            names = set(pyogrio.read_info(path, layer=LAYER if path.suffix == ".gpkg" else 0)["fields"])
    except (OSError, pyarrow.ArrowException, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError):
        return False
    return names >= {"class", "class_index", "pixels", "confidence", "share_both", "share_rgir", "share_ndsm"}


def write_areas(areas: Iterable[MapArea], path: Path, grid: Grid, classes: Sequence[ClassSpec]) -> int:
    """Write areas with their class, size, confidence and provenance as attributes.

    Args:
        areas: with geometries in pixels of ``grid``.
        path: of the file; one that is there is replaced once the new one is whole.
        grid: where the pixels lie.
        classes: of the map.

    Returns:
        How many areas were written.

    Raises:
        OutputError: the file cannot be written.
    """
    count = 0
    try:
        with _under_way(path) as folder:
            collected = folder / "areas.gpkg"  # the format that can be appended to
            remaining = iter(areas)
            while batch := list(islice(remaining, BATCH)):
                frame = _frame(batch, grid, classes)
                pyogrio.write_dataframe(
                    frame,
                    collected,
                    layer=LAYER,
                    append=count > 0,
                    geometry_type="MultiPolygon",
                    promote_to_multi=True,
                    dataset_options={"VERSION": GPKG_VERSION},
                )
                count += len(batch)
            if not count:
                raise OutputError("the map holds no area to write: every pixel is nodata")
            whole = collected if path.suffix == ".gpkg" else _converted(collected, folder / path.name)
            sync(whole)
            whole.replace(path)
            sync(path.parent)
    except (OSError, pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError) as error:
        raise OutputError(f"{path} cannot be written ({error}): check free space and permissions") from error
    return count


@contextmanager
def _under_way(path: Path) -> Iterator[Path]:
    """A folder beside the file, locked and marked: what a process or a machine that dies leaves there is swept up.

    Raises:
        OutputError: somebody else writes the same file, or has such a folder.
    """
    folder, what = path.with_name(f".{path.name}.unfinished"), f"unfinished {path.name}"
    with owned(folder):
        if not (is_marked(folder, what) or is_unmarked(folder)):
            raise OutputError(f"{folder} was not made by this project: move it away, or pass another name")
        mark(folder, what)
        clear_marked(folder, keep=True)
        try:
            yield folder
        finally:
            clear_marked(folder)


def _frame(areas: Sequence[MapArea], grid: Grid, classes: Sequence[ClassSpec]) -> Any:
    """A GeoDataFrame, in coordinates of the grid's reference system or in pixels where there is none."""
    a, b, c, d, e, f = tuple(grid.transform)[:6] if grid.transform is not None else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    placed = shapely.transform(
        [area.geometry for area in areas],
        lambda x, y: (a * x + b * y + c, d * x + e * y + f),
        interleaved=False,
    )
    unit_m = grid.crs.linear_units_factor[1] if grid.crs is not None and grid.crs.is_projected else None
    columns: dict[str, list[Any]] = {
        "class": [classes[area.class_index].name for area in areas],
        "class_index": [area.class_index for area in areas],
        "pixels": [area.pixels for area in areas],
        **({"area_m2": [area.pixels * abs(a * e - b * d) * unit_m**2 for area in areas]} if unit_m else {}),
        "confidence": [round(area.confidence, 4) for area in areas],
    }
    for at, name in enumerate(("share_both", "share_rgir", "share_ndsm")):
        columns[name] = [round(area.shares[at], 4) for area in areas]
    return geopandas.GeoDataFrame(columns, geometry=placed, crs=None if grid.crs is None else grid.crs.to_wkt())


def _converted(source: Path, target: Path) -> Path:
    """The areas in another format, batch by batch."""
    with pyogrio.open_arrow(source, layer=LAYER, use_pyarrow=True) as (about, reader):
        if target.suffix == ".fgb":
            pyogrio.write_arrow(
                reader,
                target,
                layer=LAYER,
                driver="FlatGeobuf",
                geometry_name=about["geometry_name"] or "wkb_geometry",
                geometry_type="MultiPolygon",
                crs=about["crs"],
            )
            return target
        geometry = about["geometry_name"] or "wkb_geometry"
        column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["MultiPolygon"], "crs": None}
        if about["crs"]:
            column["crs"] = json.loads(geopandas.GeoSeries(crs=about["crs"]).crs.to_json())
        told = {"version": "1.1.0", "primary_column": geometry, "columns": {geometry: column}}
        # The layout of GeoParquet 1.1: https://geoparquet.org/releases/v1.1.0/
        schema = reader.schema.with_metadata({b"geo": json.dumps(told).encode()})
        with pyarrow.parquet.ParquetWriter(target, schema, compression="zstd") as file:
            for batch in reader:
                file.write_batch(batch.replace_schema_metadata(schema.metadata))
    return target
