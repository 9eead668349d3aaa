"""``report.html``: what a finished run did, on one page that needs nothing but a browser.

:func:`write_report` makes it from ``run.json``, ``tiles.csv`` and the maps; nothing is computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.contract.atomic import write_whole
from engine.contract.errors import writing
from engine.contract.page import page
from engine.output import REPORT_NAME
from engine.report import conditions, flight, mapped, summary
from engine.report.data import Finished
from engine.report.words import SENSOR_NAMES

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
    blended = run.record.tiling.blend == "hann"
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
    title = f"Flight report: {output.resolve().name}"
    sensors = " and ".join(SENSOR_NAMES[sensor] for sensor in run.sensors)
    started = run.record.started_utc.replace("T", " ").removesuffix("+00:00")
    text = page(
        title,
        byline=f"{run.record.bundle.name}, {sensors}, started {started} UTC",
        lead=[summary.verdict(run), summary.story(run), summary.facts(run, seen)],
        sections=[each for each in sections if each is not None],
    )
    return _write(output, text)


def _write(output: Path, text: str) -> Path:
    target = output / REPORT_NAME
    with writing(target, f"free space or check permissions, then run `python -m engine.report {output}`"):
        write_whole(target, text.encode(), durable=True)
    return target
