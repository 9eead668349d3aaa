"""What a run's output folder holds, and whether a run may write there. Nothing here writes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from engine.contract.errors import OutputError, writing
from engine.contract.sensors import Sensor
from engine.frame_log import NAME as FRAME_LOG_NAME
from engine.journal import Journal
from engine.ownership import RUN_NAME, check_text, frame_mark, holds_a_run, is_marked
from engine.rasters.height_models import HeightModels
from engine.rasters.map_kinds import PROBABILITIES
from engine.rasters.map_reader import MAPS
from engine.rasters.names import local_file
from engine.rasters.raster import RasterInput
from engine.rasters.style import STYLED
from engine.stac.items import ITEM_NAME
from engine.tile_log import NAME as TILE_LOG_NAME

QUICKLOOK_NAME = "quicklook.png"
REPORT_NAME = "report.html"
FRAME_NAMES = (
    *(f"{name}.tif" for name in (*MAPS, PROBABILITIES)),
    *(f"{name}.qml" for name in STYLED),
    QUICKLOOK_NAME,
    ITEM_NAME,
)
"""What the folder of a live frame holds, beside the marker that says it is ours."""
OUTPUT_NAMES = (*FRAME_NAMES, RUN_NAME, TILE_LOG_NAME, FRAME_LOG_NAME, REPORT_NAME)
"""What the folder of a run holds."""


def check_output(output: Path, *, overwrite: bool, resume: bool) -> None:
    """See that results may go into a folder.

    Raises:
        OutputError: it holds some that must not be replaced, or is a file.
    """
    again = overwrite or resume
    check_text(output, "`output`")
    with writing(output):
        if output.exists() and not output.is_dir():
            raise OutputError(f"`output` must be a folder; {output} is a file: pass another `output`")
        existing = [name for name in OUTPUT_NAMES if os.path.lexists(output / name)]
        unfinished = Journal(output)
        if unfinished.begun and not again:
            raise OutputError(
                f"{output} holds an unfinished run: pass resume=True to go on with it, overwrite=True to start over, "
                "or another `output`"
            )
    if existing and not again:
        raise OutputError(
            f"{output} already holds {', '.join(existing)}: pass overwrite=True to replace them, or another `output`"
        )
    if existing and overwrite and not (unfinished.ours or holds_a_run(output)):
        raise OutputError(
            f"{output} holds {', '.join(existing)}, and nothing that shows a run of this project to have written that: "
            "move it away, or pass another `output`"
        )


def check_input(sensor: Sensor, given: RasterInput, output: Path) -> None:
    """See that a raster is none of the files that the run writes.

    Raises:
        OutputError: it is.
    """
    names = given.files if isinstance(given, HeightModels) else (given,)
    for name in names:
        path = local_file(name) if isinstance(name, str | Path) else None
        for written in (output / each for each in OUTPUT_NAMES):
            with suppress(OSError):
                if path is not None and path.samefile(written):
                    raise OutputError(f"{sensor} {name} is a file that the run would replace: pass another `output`")


def taken(output: Path, stamp: str) -> str | None:
    """Why the maps of a frame cannot be put in place: their folder is somebody else's."""
    place = output / stamp
    if os.path.lexists(place) and not is_marked(place, frame_mark(stamp)):
        return f"its maps would replace {place}, which this project did not write"
    return None
