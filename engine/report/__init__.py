"""``report.html``: what a finished run did, on one page that needs nothing but a browser.

:func:`write_report` makes it from ``run.json``, ``tiles.csv`` and the maps; nothing is computed again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from engine.contract.errors import OutputError
from engine.report import conditions, flight, mapped, summary
from engine.report.data import Finished
from engine.report.page import contents, page, tag
from engine.report.words import SENSOR_NAMES
from engine.request import REPORT_NAME

__all__ = ["write_report"]


def write_report(output: Path, *, progress: Callable[[float], None] = lambda _: None) -> Path:
    """Write ``report.html`` into the folder of a finished run, replacing an older one.

    Args:
        output: what the run was given as ``--output``.
        progress: told the share that is done, 0..1.

    Returns:
        The file.

    Raises:
        UsageError: the folder holds no finished run of this version.
        RasterOpenError: a map is missing or damaged.
        OutputError: the file cannot be written.
    """
    run = Finished(output)
    grid = run.grid
    shown, seen = mapped.live_maps(run, progress) if grid is None else mapped.raster_maps(run, grid, progress)
    blended = run.told["tiling"].get("blend") == "hann"
    sections = [
        shown,
        flight.timeline(run),
        flight.health(run),
        flight.injected(run),
        flight.latency(run),
        None if seen is None else mapped.confidence(seen),
        None if seen is None else mapped.seams(seen, blended=blended),
        conditions.backend(run),
        conditions.conditions(run),
        conditions.files(run),
    ]
    there = [each for each in sections if each is not None]
    title = f"Flight report: {output.resolve().name}"
    sensors = " and ".join(SENSOR_NAMES[sensor] for sensor in run.sensors)
    started = run.told["started_utc"].replace("T", " ").removesuffix("+00:00")
    text = page(
        title,
        tag("h1", title),
        tag("p", f"{run.told['bundle']['name']}, {sensors}, started {started} UTC", class_="byline"),
        summary.verdict(run),
        summary.story(run),
        summary.facts(run, seen),
        contents(there),
        [each.html for each in there],
    )
    return _write(output, text)


def _write(output: Path, text: str) -> Path:
    target = output / REPORT_NAME
    temporary = output / f".{REPORT_NAME}.{os.getpid()}"
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written ({error.strerror}): free space or check permissions, then run "
            f"`python -m engine.report {output}`"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return target
