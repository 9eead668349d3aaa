"""The end of the page: what inferred, everything that one needs to repeat the run, links to what else it left."""

from __future__ import annotations

from markupsafe import Markup

from engine.contract.page import Content, Section, section, table, tag
from engine.frame_log import NAME as FRAME_LOG_NAME
from engine.report.data import Finished
from engine.report.words import SENSOR_NAMES, count
from engine.tile_log import NAME as TILE_LOG_NAME

FILES = (
    ("classes.tif", "land cover; class names and colours inside"),
    ("confidence.tif", "probability of the winning class x 255"),
    ("provenance.tif", "which sensors each pixel was mapped from"),
    ("classes.qml", "the names and colours of classes.tif, which QGIS reads by itself"),
    ("provenance.qml", "those of provenance.tif"),
    ("quicklook.png", "inputs and maps side by side"),
    (TILE_LOG_NAME, "one line for each tile: sensors, scenario, times"),
    (FRAME_LOG_NAME, "one line for each frame"),
    ("run.json", "all of this, for programs"),
)


def backend(run: Finished) -> Section:
    """What inferred, and what went wrong with it."""
    used, events = run.record.backend, run.record.backend_events
    about = f"{used.library} on {used.device}: {used.graph} graphs computed in {used.precision}, "
    about += f"{used.threads} threads, {count(used.slots, 'tile')} at a time."
    body: Markup = tag("p", "It ran through: no failure, no fallback.")
    if events:
        rows: list[list[Content]] = [
            [each.at_utc, each.backend, each.what, each.detail, each.tiles_in_flight] for each in events
        ]
        body = table(["time (UTC)", "backend", "what", "detail", "tiles in flight"], rows, numbers=(4,))
    return section("backend", "Backend", tag("p", about), body)


def conditions(run: Finished) -> Section:
    """Everything that one needs to repeat the run."""
    record = run.record
    entries: list[tuple[str, str]] = [
        ("bundle", f"{record.bundle.name}, {record.bundle.path}"),
        ("bundle SHA-256", record.bundle.sha256),
    ]
    for sensor, raster in (record.inputs or {}).items():
        rules = ", ".join(raster.nodata) or "none"
        size = f"{raster.width} x {raster.height} px, {raster.dtype}, {raster.crs or 'no CRS'}"
        warped = ", warped onto the other's grid" if raster.warped else ""
        minus = f", minus {raster.minus.path}" if raster.minus is not None else ""
        entries.append((SENSOR_NAMES[sensor], f"{raster.path}{minus} ({size}, nodata: {rules}{warped})"))
    tiling = record.tiling
    text = f"{tiling.tiles} of {tiling.tile_px} px, halo {tiling.halo_px} px, blend {tiling.blend}"
    entries.append(("tiles", text))
    if record.grid is not None and record.grid.gsd_m:
        entries.append(("ground sampling distance", f"{record.grid.gsd_m:.3g} m"))
    entries += [(name, str(getattr(record.system, name))) for name in record.system.__struct_fields__]
    entries += [("engine", record.version), ("started (UTC)", record.started_utc)]
    resumed = record.resumed_at_tile or record.resumed_after_frames
    if resumed:
        entries.append(("resumed", f"at {'frame' if run.frames else 'tile'} {resumed}; times are those of both parts"))
    items = [part for name, text in entries for part in (tag("dt", name), tag("dd", text))]
    return section("system", "System and settings", tag("dl", items, class_="plain"))


def files(run: Finished) -> Section:
    """Links to what else the run left."""
    rows = [
        [tag("a", name, href=name), what, f"{(run.output / name).stat().st_size / 1e6:.2f} MB"]
        for name, what in FILES
        if (run.output / name).is_file()
    ]
    return section("files", "Files", table(["file", "what is in it", "size"], rows, numbers=(2,)))
