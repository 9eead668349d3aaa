"""The maps: pictures with the places where the engine was switched, confidence, seams."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from engine.contract.bundle import ClassSpec
from engine.contract.errors import UsageError
from engine.contract.page import Content, Section, charts, legend, note, section, swatch, table, tag, together
from engine.contract.sensors import PROVENANCE_LABELS, PROVENANCE_RGB, Provenance, Scenario
from engine.grid import TileGrid
from engine.rasters.map_reader import MapReader
from engine.report import pictures
from engine.report.data import Finished
from engine.report.pictures import Mark
from engine.report.seams import SeamScore, SeamSurvey, survey
from engine.report.words import MOST_ROWS, SCENARIO_LOOKS, css, milliseconds, percent

MOST_NUMBERED = 40
"""More switches than this are dots on the map."""
MOST_FRAMES = 48
"""Frames of a live flight that are shown, and looked at for seams and confidence."""


def raster_maps(run: Finished, grid: TileGrid, progress: Callable[[float], None]) -> tuple[Section, SeamSurvey]:
    """The section with the maps of one raster, and what a pass over them tells."""
    with MapReader(run.output) as maps:
        if (maps.height, maps.width) != (grid.height, grid.width):
            raise UsageError(
                f"run.json tells of {grid.width} x {grid.height} px, the maps in {run.output} have {maps.width} x "
                f"{maps.height}: they are not of one run; run it again"
            )
        seen = survey(maps, grid, progress=progress)
        switches = run.record.result.switches
        marks = _switch_marks(run)
        large = pictures.picture(
            maps, "classes", pictures.by_class(maps.classes), marks=marks, side_px=pictures.WIDE_PX
        )
        small = [
            pictures.picture(maps, name, colouring, marks=[], side_px=pictures.SMALL_PX)
            for name, colouring in (("provenance", pictures.by_provenance()), ("confidence", pictures.by_confidence()))
        ]
        classes = maps.classes
        wide = maps.width > 1.6 * maps.height
        folded = max(maps.width, maps.height) > pictures.STRETCHED * min(maps.width, maps.height)
    captions = ["Hatched: not mapped."]
    if marks:
        captions.append(
            "Marks: the first tile that is mapped from other sensors than the one before, in the colour of what it is "
            "mapped from."
        )
    if folded:
        captions.append("The strip is folded: it goes on where the line before ends.")
    figures = [
        tag("figure", large, _class_legend(run, classes), tag("figcaption", " ".join(captions))),
        tag("figure", small[0], _provenance_legend(run), tag("figcaption", "What each pixel was mapped from.")),
        tag("figure", small[1], tag("figcaption", "Confidence: black is 0 %, white 100 %.")),
    ]
    rows: list[list[Content]] = [
        [
            number,
            switch.tile,
            PROVENANCE_LABELS[switch.scenario.provenance],
            switch.reason,
            milliseconds(float(run.times.latency_ms[switch.tile])),
        ]
        for number, switch in enumerate(switches[:MOST_ROWS], start=1)
    ]
    listed = tag(
        "details",
        tag("summary", f"All switches ({run.record.result.switch_count})"),
        table(["", "tile", "now mapped from", "why", "latency"], rows, numbers=(1, 4)),
        note("run.json lists more of them.") if len(switches) > len(rows) else None,
    )
    shown = section(
        "map",
        "Map",
        together(figures[0], tag("div", *figures[1:], class_="maps"))
        if wide or folded
        else tag("div", figures[0], tag("div", *figures[1:]), class_="maps beside"),
        listed if rows else None,
    )
    return shown, seen


def live_maps(run: Finished, progress: Callable[[float], None]) -> tuple[Section | None, SeamSurvey | None]:
    """Some frames of a live flight, and what a pass over them tells."""
    stamps = [stamp for stamp in run.frames if (run.output / stamp / "classes.tif").is_file()]
    chosen = stamps[:: max(1, -(-len(stamps) // MOST_FRAMES))]
    figures: list[Markup] = []
    seen: SeamSurvey | None = None
    tiling = run.record.tiling
    firsts = [*run.frames.values(), len(run)]
    for number, stamp in enumerate(chosen):
        with MapReader(run.output / stamp) as maps:
            grid = TileGrid(height=maps.height, width=maps.width, tile_px=tiling.tile_px, halo_px=tiling.halo_px)
            mine = survey(maps, grid)
            seen = mine if seen is None else seen + mine
            classes = maps.classes
            image = pictures.thumbnail(maps, pictures.by_class(classes), alt=f"classes of frame {stamp}")
        first = run.frames[stamp]
        scenario = run.times.scenario[first]
        switched = run.times.switched[first : firsts[firsts.index(first) + 1]].any()
        colour = SCENARIO_LOOKS[int(scenario) + 1].colour if scenario < len(Scenario) else "var(--nodata)"
        link = tag("a", stamp, href=f"{quote(stamp)}/classes.tif")
        figures.append(
            tag(
                "figure",
                tag("div", image, class_="piece", style=f"border-color:{colour}"),
                tag("figcaption", link, " switched" if switched else ""),
            )
        )
        progress((number + 1) / len(chosen))
    if not figures:
        return None, None
    some = f" {len(chosen)} of {len(stamps)} frames, evenly picked." if len(chosen) < len(stamps) else ""
    shown = section(
        "map",
        "Frames",
        _class_legend(run, classes),
        tag("div", figures, class_="frames"),
        _provenance_legend(run),
        note(
            "The edge below a frame tells what it was mapped from; switched: in it is a tile that was mapped from "
            f"other sensors than the one before.{some}"
        ),
    )
    return shown, seen


def confidence(seen: SeamSurvey) -> Section | None:
    """How sure the model was, by the sensors it had."""
    total = seen.confidence[1:].sum()
    if not total:
        return None
    levels = np.arange(256) / 2.55
    rows: list[list[Content]] = []
    for source in (each for each in Provenance if each is not Provenance.NONE):
        counts = seen.confidence[source]
        if pixels := int(counts.sum()):
            colour = css(PROVENANCE_RGB[source])
            rows.append(
                [
                    together(swatch(colour), PROVENANCE_LABELS[source]),
                    percent(pixels / total),
                    percent(float(levels @ counts) / pixels / 100),
                    percent(float(counts[:128].sum()) / pixels),
                    charts.spark(counts.reshape(32, 8).sum(axis=1), colour),
                ]
            )
    headings = ["mapped from", "of the map", "mean confidence", "pixels below 50 %", "distribution, 0 to 100 %"]
    return section(
        "confidence",
        "Confidence by sensors",
        table(headings, rows, numbers=(1, 2, 3)),
        note(
            "The probability that the model gives the winning class. The model card says how often it is right at "
            "each: on other ground compare rows, and do not read it as a share of correct pixels."
        ),
    )


def seams(seen: SeamSurvey, *, blended: bool) -> Section | None:
    """Do borders between tiles show?"""
    kinds = [("same sensors on both sides", seen.same_sensors), ("other sensors on either side", seen.other_sensors)]
    rows: list[list[Content]] = [
        [name, score.segments, *_score_cells(score)] for name, score in kinds if score.segments
    ]
    if not rows:
        return None
    inside = seen.interior_differing / max(1, seen.interior_pairs)
    return section(
        "seams",
        "Seams",
        table(
            ["border", "segments", "pairs differ", "expected", "score", "95 % interval"], rows, numbers=(1, 2, 3, 4, 5)
        ),
        tag(
            "p",
            f"Two neighbouring pixels inside a tile have different classes in {percent(inside, 2)} of all cases. "
            "Across an invisible border it would be as many, so the score is the number of differing pairs across "
            "borders over the number expected from the two tiles on either side, in the same direction. 1 cannot be "
            "seen; 2 means twice as many edges along borders as there should be.",
        ),
        note(
            "Where the sensors change the lost information shows too, so that score is larger than 1 even with a "
            "perfect seam. Pairs with a pixel that is not mapped do not count. ",
            "Tiles cross-fade in this run; the border is the middle of the fade. " if blended else "",
        ),
    )


def _switch_marks(run: Finished) -> Sequence[Mark]:
    """A mark in the middle of each tile that was the first of another engine."""
    switches = run.record.result.switches
    numbered = len(switches) <= MOST_NUMBERED
    marks = []
    for number, switch in enumerate(switches, start=1):
        row, col, height, width = run.place[switch.tile].tolist()
        source = switch.scenario.provenance
        title = f"tile {switch.tile}: {PROVENANCE_LABELS[source]}"
        marks.append(
            Mark(
                row=row + height / 2,
                col=col + width / 2,
                label=str(number) if numbered else "",
                colour=css(PROVENANCE_RGB[source]),
                title=title,
            )
        )
    return marks


def _class_legend(run: Finished, classes: Sequence[ClassSpec]) -> Markup:
    """Classes by colour, with their share of what is mapped."""
    pixels = run.record.result.class_pixels
    total = max(1, sum(pixels.values()))
    return legend((css(each.rgb), f"{each.name} {percent(pixels.get(each.name, 0) / total)}") for each in classes)


def _provenance_legend(run: Finished) -> Markup:
    """Provenances by colour, with their share of the map."""
    pixels = run.record.result.provenance_pixels
    total = max(1, sum(pixels.values()))
    colours = {**PROVENANCE_RGB, Provenance.NONE: None}
    return legend(
        (css(rgb) if (rgb := colours[source]) else "none", f"{PROVENANCE_LABELS[source]} {percent(share)}")
        for source in Provenance
        if (share := pixels[source.name.lower()] / total) > 0
    )


def _score_cells(score: SeamScore) -> list[str]:
    low, high = score.interval
    interval = "" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
    value = "" if math.isnan(score.score) else f"{score.score:.2f}"
    return [percent(score.differing / score.pairs, 2), percent(score.expected / score.pairs, 2), value, interval]
