"""The tables of the pages, declared: which file each is made from, which rows form a line, what its cells say."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.conditions import ROOT
from engine.contract.errors import UsageError
from engine.contract.sensors import Scenario
from engine.health.degradations import DEGRADATIONS

RESULTS = ROOT / "benchmarks" / "results"
SCENARIOS = {
    Scenario.FULL: "both sensors",
    Scenario.MISSING_NDSM: "nDSM missing",
    Scenario.MISSING_RGIR: "RGIR missing",
}
SIDE_BY_SIDE = f"Cells with slashes: {' / '.join(SCENARIOS.values())}."
MEDIANS = "Medians over rounds."

Row = Mapping[str, str]
Cell = Callable[[Sequence[Row]], str]
"""The rows that a line is made of -> the text of one cell."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """How a table is made."""

    file: str
    """In the folder of results: CSV, or JSON whose ``rows`` makes rows of it."""
    command: str
    """Makes the file."""
    meaning: str
    """What the cells are, in a sentence or two."""
    by: Sequence[str] | None
    """Columns whose values make a line; None makes one line of all rows."""
    cells: Mapping[str, Cell]
    """By heading, which may name a column of the first row in braces."""
    group: str | None = None
    """Only rows of this ``group``."""
    only: Callable[[Row], bool] = lambda _: True
    """Only rows for which it holds; the file has the others too."""
    keep: Callable[[Sequence[Row]], bool] = lambda _: True
    """Only lines for which it holds."""
    rows: Callable[[Mapping[str, Any]], list[Row]] | None = None

    def markdown(self, found: Sequence[Mapping[str, object]]) -> str:
        """The table of these rows, without a line feed at its end."""
        rows: list[Row] = [{name: "" if value is None else str(value) for name, value in row.items()} for row in found]
        lines: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            if self.group in (None, row.get("group")) and self.only(row):
                lines.setdefault(tuple(row[column] for column in self.by or ()), []).append(row)
        text = [[heading.format_map(rows[0]).strip() for heading in self.cells], ["---"] * len(self.cells)]
        text += [[cell(line) for cell in self.cells.values()] for line in lines.values() if self.keep(line)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in text)


def block(name: str, results: Path, folder: str) -> str:
    """Table, meaning and conditions as a page shows them; ``folder`` is that of the results as the page links it.

    Raises:
        UsageError: there is no such table, its result is not there or empty, or an older version wrote it.
    """
    if name not in TABLES:
        raise UsageError(f"a table must be one of {', '.join(TABLES)}; received {name!r}")
    table = TABLES[name]
    path, command = results / table.file, table.command
    if not path.is_file():
        raise UsageError(f"{path} must be there before its table can be written: run `{command}`")
    lines, rows, about = path.read_text().splitlines(), [], {}
    if lines and lines[0].startswith("# "):
        command = lines.pop(0).removeprefix("# ")
    try:
        if table.rows is not None:
            about = json.loads("\n".join(lines))
            rows = table.rows(about)
        else:
            rows = list(csv.DictReader(lines))
            about = dict(rows[0]) if rows else {}
        if not rows:
            raise UsageError(f"{path} must have at least one row, received none: run `{command}` again")
        text = table.markdown(rows)
    except KeyError as error:
        raise UsageError(
            f"{path} must have {error} for table {name}, and an older version wrote it: run `{command}` again"
        ) from error
    facts = ", ".join(str(fact) for fact in _conditions(about, rows) if fact)
    source = f"From `{about.get('command') or command}` ([{table.file}]({folder}/{table.file}))"
    return f"{text}\n\n{table.meaning}\n{source}{f': {facts}' if facts else ''}."


def _conditions(about: Mapping[str, Any], rows: Sequence[Row]) -> list[object]:
    """Machine, libraries, commit and date, as far as the result says."""
    machine = about.get("processor") or about.get("device") or about.get("cpu")
    load = about.get("load_at_start") or max((one["load"] for one in about.get("timings", ())), default=None)
    if about.get("libraries"):
        named = [one.strip() for one in str(about["libraries"]).split(";")]
        libraries = [one for one in named if one.split(" ")[0] not in ("numpy", "rasterio", "pycuda")]
    elif "tools" in about:
        libraries = [f"{name.split('/')[-1]} {v}" for name, v in about["tools"].items() if "openvino" in name]
    else:
        libraries = sorted({name for row in rows if " " in (name := row.get("library") or row.get("backend") or "")})
    return [
        f"{machine} ({about['features']})" if about.get("features") else machine,
        about.get("cores") and f"{about['cores']} cores",
        about.get("memory_gib") and f"{float(about['memory_gib']):.0f} GiB",
        load and f"load average {float(load):.1f}",
        ", ".join(libraries),
        about.get("commit") and f"commit {about['commit']}",
        about.get("date") or str(about.get("created_utc", ""))[:10],
    ]


# --- cells


def text(*columns: str) -> dict[str, Cell]:
    """Columns as they are, under their own names."""
    return {column: one(column) for column in columns}


def one(column: str, form: str = "{}", *, scale: float = 1) -> Cell:
    """A value of the first row, as text or as a number in a form."""
    return lambda line: form.format(line[0][column] if form == "{}" else scale * float(line[0][column]))


def last(column: str) -> Cell:
    """The value of the last row, as text."""
    return lambda line: line[-1][column]


def over_seeds(column: str, labels: str, scenario: Scenario) -> Cell:
    """Mean of one set and scenario over seeds, with the least and the most where there are several."""

    def cell(line: Sequence[Row]) -> str:
        found = [float(row[column]) for row in line if (row["labels"], row["scenario"]) == (labels, scenario.value)]
        if not found:
            return ""
        mean = f"{statistics.fmean(found):.1f}"
        return mean if len(found) == 1 else f"{mean} ({min(found):.1f} to {max(found):.1f})"

    return cell


def one_of(column: str, scenario: Scenario) -> Cell:
    """The value of a scenario's row, nothing where there is none."""
    return lambda line: next((row[column] for row in line if row["scenario"] == scenario.value), "")


def most(column: str, form: str) -> Cell:
    """The largest value."""
    return lambda line: form.format(max(float(row[column]) for row in line))


def least(column: str, form: str, *, scale: float = 1) -> Cell:
    """The smallest value."""
    return lambda line: form.format(scale * min(float(row[column]) for row in line))


def _median(column: str, form: str) -> Cell:
    """The median of a column."""
    return lambda line: form.format(statistics.median(float(row[column]) for row in line))


def total(column: str) -> Callable[[Sequence[Row]], int]:
    """The sum of a column of counts."""
    return lambda line: sum(int(row[column]) for row in line)


def three(column: str, form: str, *, scale: float = 1) -> Cell:
    """The values of the three scenarios; a dash where one was not measured."""

    def cell(line: Sequence[Row]) -> str:
        found = {row["scenario"]: row[column] for row in reversed(line)}
        values = (found.get(scenario, "") for scenario in SCENARIOS)
        return " / ".join(form.format(scale * float(value)) if value else "-" for value in values)

    return cell


def unless_reference(cell: Cell) -> Cell:
    """Nothing in the lines of the reference itself."""
    return lambda line: "" if line[0]["backend"] == "reference" else cell(line)


def _quantiles(side: str) -> Cell:
    """Low, middle and high of one side, nothing where there are none."""
    return lambda line: " / ".join(value for at in (5, 50, 95) if (value := line[0][f"{side}_p{at}"]))


def _harmful(line: Sequence[Row]) -> list[Row]:
    """Degradations that cost more than a few points if the sensor is used, from the mildest strength on."""
    order = list(dict.fromkeys(row["strength"] for row in line))
    return sorted((row for row in line if float(row["used"]) > 3), key=lambda row: order.index(row["strength"]))


def _unseen(line: Sequence[Row]) -> list[Row]:
    return [row for row in line if DEGRADATIONS[row["kind"]].unseen]


def _losing(line: Sequence[Row], points: float) -> str:
    return " -> ".join(str(sum(float(row[name]) > points for row in line)) for name in ("used", "lost"))


def _seeds(scenario: Scenario) -> Cell:
    """Mean mF1 over seeds, with its range where there are several, and mean mIoU; in percent."""

    def cell(line: Sequence[Row]) -> str:
        mine = [row for row in line if row["scenario"] == scenario]
        f1, iou = ([100 * float(row[name]) for row in mine] for name in ("mean_f1", "mean_iou"))
        spread = f" ({min(f1):.1f}..{max(f1):.1f})" if len(f1) > 1 else ""
        return f"{statistics.fmean(f1):.1f}{spread} / {statistics.fmean(iou):.1f}"

    return cell


def _calibrated(document: Mapping[str, Any]) -> list[Row]:
    """What int8 costs and gains in OpenVINO: a row per scenario of calibration.json."""
    studies = {study["scenario"]: study for study in document["studies"]}
    timings = {timing["scenario"]: timing["latencies"] for timing in document["timings"]}
    rows: list[Row] = []
    for scenario, title in SCENARIOS.items():
        study = studies[scenario]
        f1 = {one["precision"]: one["mean_f1"] for one in study["evaluations"] if one["runtime"] == "openvino"}
        ms = {one["precision"]: one["median_ms"] for one in timings[scenario] if one["floating"] == "f32"}
        shares = {"share": study["int8_share"], "gain": ms["fp32"] / ms["int8"]}
        rows.append({"sensors": title, **{name: str(value) for name, value in {**f1, **shares}.items()}})
    return rows


# --- tables

_LATENCY = Table(
    file="latency.csv",
    command="python -m benchmarks.latency",
    meaning=f"One tile at a time, from host memory to host memory. {SIDE_BY_SIDE} {MEDIANS}",
    by=("backend", "precision", "hint"),
    cells={
        **text("backend", "precision", "hint"),
        "p50, ms": three("single_stream_p50_ms", "{:.1f}"),
        "p99 / p50 at most": most("jitter_p99_over_p50", "{:.2f}"),
        "tiles/s, offline": three("offline_tiles_per_s", "{:.1f}"),
        "cold start": lambda line: f"{float(ms) / 1e3:.1f} s" if (ms := line[0]["cold_start_ms"]) else "",
    },
)
_THROUGHPUT = Table(
    file="throughput.csv",
    command="python -m benchmarks.throughput",
    meaning="*Stream* is read, infer, compose, write; *end to end* adds opening and publishing the maps. The "
    f"*plain loop* is the library by itself on tiles already in memory. {MEDIANS}",
    by=("mpx", "sensors"),
    cells={
        "raster": one("mpx", "{:g} Mpx"),
        "sensors": lambda line: line[0]["sensors"].replace("+", ", "),
        "end to end": one("end_to_end_mpx_per_s", "{:.1f} Mpx/s"),
        "stream": one("stream_tiles_per_s", "{:.1f} tiles/s"),
        "of the plain loop": one("stream_over_loop", "{:.2f}"),
        "of the backend saturated": one("stream_over_saturated", "{:.2f}"),
        "peak memory": one("peak_rss_mib", "{:.0f} MiB"),
    },
)
_PEERS = Table(
    file="peers.csv",
    command="python -m benchmarks.peers",
    meaning="Same tiles and weights in one run; above 1 the engine is faster. *Same class* as PyTorch in float32, "
    f"worst scenario. {SIDE_BY_SIDE} {MEDIANS}",
    group="tile",
    by=("peer", "precision"),
    cells={
        "library": one("peer"),
        "precision": one("precision"),
        "one tile at a time, ms": three("single_stream_ms", "{:.0f}"),
        "engine = 1": three("single_stream_over_engine", "{:.2f}"),
        "as many as it takes, ms": three("offline_ms", "{:.0f}"),
        "engine = 1 ": three("offline_over_engine", "{:.2f}"),
        "same class, %": least("agreement", "{:.2f}", scale=100),
    },
)
_TABLE1 = Table(
    file="table1.csv",
    command="python -m train.benchmark",
    meaning=f"Percent, held-out procedural scenes, mean over seeds. {SIDE_BY_SIDE}",
    by=("preset",),
    cells={
        **text("preset", "system"),
        "parameters, M": one("parameters", "{:.1f}", scale=1e-6),
        "GMAC": three("gmac", "{:.1f}"),
        **{f"{title}, mF1 / mIoU": _seeds(scenario) for scenario, title in SCENARIOS.items()},
    },
)


def _by_strength(line: Sequence[Row]) -> Mapping[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in line:
        found.setdefault(row["strength"], []).append(row)
    return found


def _said(detail: str) -> str:
    """Without what differs from scene to scene."""
    return re.sub(
        r"; maps with and without it agree in \d+% of the pixels", "", detail.split(" | ")[0].split(" (in ")[0]
    )


_DEGRADATIONS = (
    "python -m engine.acceptance --degradations --scene ../shared/data/town_north --scene ../shared/data/town_palms_a "
    "--scene ../shared/data/rural_strip --scene engine/demo/scene --csv benchmarks/results/degradations.csv"
)
_DEGRADATION = Table(
    file="degradations.csv",
    command=_DEGRADATIONS,
    meaning="Points of class agreement lost beyond dropping the sensor. *Harmful*: more than 3 in a scene if it is "
    "used. *Dead*: not used, in so many of the harmful cases. *Most harm*: of all cases, used and watched. "
    "☆: no rule and no limit was made by looking at this kind. Kinds that are never harmful are left out.",
    by=("kind",),
    only=lambda row: row["sensor"] == "rgir",
    keep=lambda line: bool(_harmful(line)),
    cells={
        "degradation": lambda line: line[0]["kind"] + " ☆" * DEGRADATIONS[line[0]["kind"]].unseen,
        "strength is": lambda line: DEGRADATIONS[line[0]["kind"]].means,
        "tried": lambda line: ", ".join(dict.fromkeys(f"{float(row['strength']):g}" for row in line)),
        "harmful from": lambda line: next((f"{float(row['strength']):g}" for row in _harmful(line)), "never"),
        "dead": lambda line: f"{sum(bool(row['seen_after']) for row in _harmful(line))} of {len(_harmful(line))}",
        "most harm": lambda line: " / ".join(
            f"{max(float(row[name]) for row in line):.0f}" for name in ("used", "lost")
        ),
    },
)
TABLES = {
    "latency": _LATENCY,
    # The same measured on a processor with products of bfloat16 and int8 matrices.
    "latency-amx": replace(_LATENCY, file="latency_amx.csv"),
    "throughput": _THROUGHPUT,
    "throughput-amx": replace(_THROUGHPUT, file="throughput_amx.csv"),
    "host": Table(
        file="host.csv",
        command="python -m benchmarks.host",
        meaning="A backend that answers at once. *Floor*: what GDAL alone takes to decode every block once and "
        f"to write the same maps, from the first tile to published maps. Parts in ms of processor a tile. {MEDIANS}",
        by=("case",),
        cells={
            "case": one("case"),
            "tiles/s": one("tiles_per_s", "{:.0f}"),
            "processor, ms a tile": one("cpu_ms_per_tile", "{:.1f}"),
            "its floor": one("floor_cpu_ms_per_tile", "{:.1f}"),
            "processor / floor": one("cpu_over_floor", "{:.2f}"),
            "time / floor": one("wall_over_floor", "{:.2f}"),
            "read / health / compose / write": lambda line: " / ".join(
                f"{sum(float(line[0][f'{stage}_ms']) for stage in stages):.1f}"
                for stages in (("read",), ("health",), ("decide", "compose", "count", "preview"), ("write", "publish"))
            ),
            "publishing": one("publish_s", "{:.2f} s"),
            "peak memory": one("peak_rss_mib", "{:.0f} MiB"),
        },
    ),
    "degradations-rgir": _DEGRADATION,
    "degradations-ndsm": replace(_DEGRADATION, only=lambda row: row["sensor"] == "ndsm"),
    "degradations-all": Table(
        file="degradations.csv",
        command=_DEGRADATIONS,
        meaning="Cases that lose more than 3 or 15 points beyond dropping the sensor: used -> watched.",
        by=None,
        only=lambda row: bool(row["sensor"]),
        cells={
            "cases": lambda line: str(len(line)),
            "more than 3": lambda line: _losing(line, 3),
            "more than 15": lambda line: _losing(line, 15),
            "cases of kinds ☆": lambda line: str(len(_unseen(line))),
            "more than 3 ☆": lambda line: _losing(_unseen(line), 3),
            "more than 15 ☆": lambda line: _losing(_unseen(line), 15),
        },
    ),
    "false-alarms": Table(
        file="false_alarms.csv",
        command="python -m benchmarks.false_alarms --tiles 6 --naip ../shared/data/naip",
        meaning="Tiles in which a sensor that is right was not used (*dead*) or suspected (*degraded*).",
        by=("scene",),
        cells=text("scene", "tiles", "dead", "degraded", "audits"),
    ),
    "before-flight": Table(
        file="before_flight.csv",
        command="python -m benchmarks.false_alarms --before-flight ../shared/data/town_north "
        "--before-flight ../shared/data/town_palms_a --before-flight ../shared/data/town_palms_b "
        "--before-flight ../shared/data/rural_strip --before-flight engine/demo/scene",
        meaning="Four real scenes and the procedural one. *Told*: in so many something is said of the sensor, or of "
        "how the two lie; *said*: in one of these, of the strongest. Nothing is said of scenes as they are.",
        by=("sensor", "kind"),
        only=lambda row: bool(row["sensor"]),
        cells={
            "sensor": one("sensor"),
            "degradation": one("kind"),
            "strength is": lambda line: DEGRADATIONS[line[0]["kind"]].means,
            "told, of how many scenes": lambda line: ", ".join(
                f"{float(strength):g}: {sum(bool(row['blamed']) for row in rows)} of {len(rows)}"
                for strength, rows in _by_strength(line).items()
            ),
            "said": lambda line: next((_said(row["detail"]) for row in reversed(line) if row["blamed"]), ""),
        },
    ),
    "peers": _PEERS,
    "peers-raster": replace(
        _PEERS,
        meaning="From a raster to its classes, everything loaded and compiled before; *disk to disk* reads and writes "
        f"GeoTIFF, the others begin and end in memory. {SIDE_BY_SIDE} {MEDIANS}",
        group="raster",
        cells={
            "tiler": one("peer"),
            "precision": one("precision"),
            "seconds": three("raster_s", "{:.1f}"),
            "engine in memory = 1": three("raster_over_engine", "{:.2f}"),
            "engine.run = 1": three("raster_over_run", "{:.2f}"),
            "same class, %": least("agreement", "{:.2f}", scale=100),
        },
    ),
    "peers-models": Table(
        file="peers_models.csv",
        command="python -m benchmarks.peers --presets paper,edge",
        meaning=f"Networks side by side in one run. {SIDE_BY_SIDE} {MEDIANS}",
        by=("network", "peer", "precision"),
        cells={
            "network": one("network"),
            "library": one("peer"),
            "precision": one("precision"),
            "one tile at a time, ms": three("single_stream_ms", "{:.0f}"),
            "{network} in the same library = 1": three("single_stream_over_first", "{:.2f}"),
            "times as fast as {network} in PyTorch": three("single_stream_speedup_over_first_eager", "{:.1f}"),
        },
    ),
    "roofline": Table(
        file="roofline.csv",
        command="python -m benchmarks.roofline",
        meaning="Time per tile with every slot busy. The floor is all products at this machine's measured peak, or "
        f"weights, inputs and outputs once over memory, whichever is longer. {SIDE_BY_SIDE} {MEDIANS}",
        by=("backend", "precision"),
        cells={
            **text("backend", "precision"),
            "GMAC": three("gmac", "{:.1f}"),
            "per tile, ms": three("tile_ms", "{:.1f}"),
            "floor, ms": three("floor_ms", "{:.1f}"),
            "floor / time": three("share_of_floor", "{:.0f} %", scale=100),
            "time in nodes without a product": three("share_without_products", "{:.0f} %", scale=100),
        },
    ),
    "analyst": Table(
        file="analyst.csv",
        command="python -m benchmarks.analyst",
        meaning="Seconds and peak memory of one process for the map, one for its polygons; the largest difference of a "
        "class's area from its pixels, of all pixels.",
        by=("raster_mpx",),
        cells={
            "raster": one("raster_mpx", "{:.0f} Mpx"),
            "map": one("map_s", "{:.0f} s"),
            "peak memory": one("map_peak_mib", "{:.0f} MiB"),
            "polygons": one("polygons"),
            "in": one("polygons_s", "{:.0f} s"),
            "with peak memory of": one("polygons_peak_mib", "{:.0f} MiB"),
            "area off": one("area_off_percent", "{:.2f} %"),
        },
    ),
    "gap": Table(
        file="gap.csv",
        command="python -m benchmarks.gap --data ../shared/data/naip --labels train/data/labels/naip",
        meaning="Training scenes at the ground sampling distance of the real ones. *Distance*: Wasserstein-1 over the "
        "standard deviation of the real pixels; of *told apart* the percentage of held-out crops that a linear "
        "classifier calls real or procedural rightly (50: it cannot). The CSV has every class and measure.",
        by=("class", "measure"),
        only=lambda row: row["class"] == "all" or float(row["distance"]) >= 0.6,
        cells={
            **text("class", "measure", "distance"),
            "real, 5 / 50 / 95 %": _quantiles("real"),
            "procedural, 5 / 50 / 95 %": _quantiles("procedural"),
        },
    ),
    "ablations": Table(
        file="ablations.csv",
        command="python -m benchmarks.ablations --target folder:IGN --data ../shared/data",
        meaning="Mean of the seeds, with the least and the most. IGN: overall accuracy; NAIP: mF1. *Kept*: the weights "
        "that the rule without labels chose; the other lines have the last ones.",
        by=("steps", "variant", "weights"),
        only=lambda row: row["weights"] != "best" or row["variant"] in ("all parts", "without mixing"),
        cells={
            **text("steps"),
            "adapted with": lambda line: line[0]["variant"] + (", kept" if line[0]["weights"] == "best" else ""),
            "IGN, both": over_seeds("oa_percent", "rules", Scenario.FULL),
            "IGN, RGIR": over_seeds("oa_percent", "rules", Scenario.MISSING_NDSM),
            "IGN, nDSM": over_seeds("oa_percent", "rules", Scenario.MISSING_RGIR),
            "NAIP, RGIR": over_seeds("mf1_percent", "people", Scenario.MISSING_NDSM),
        },
    ),
    "overlaps": Table(
        file="overlaps.csv",
        command="python -m benchmarks.overlaps --data ../shared/data/naip",
        meaning="Percent of the pixels in two overlapping tiles whose class differs.",
        by=("scenes",),
        cells={
            **text("scenes", "count"),
            **{name: one_of("differ_percent", scenario) for scenario, name in SCENARIOS.items()},
        },
    ),
    "real": Table(
        file="real.csv",
        command="python -m benchmarks.real --data ../shared/data",
        meaning="Percent over the pixels of the five counted classes. *Trees hit*: marked crowns that are mapped as "
        "tree; *ground as tree*: other labelled ground that is. ECE: calibration error of the confidence; *before* "
        "without the temperature in the graph. The CSV has every place in every precision.",
        only=lambda row: row["place"] == "all" or (row["precision"] == "fp32" and row["labels"] == "people"),
        by=("data", "place", "scenario", "backend", "precision"),
        cells={
            "scenes": lambda line: f"{line[0]['data']}, labels by {line[0]['labels']}",
            **text("place", "scenario", "precision"),
            "mF1": one("mf1_percent", "{:.1f}"),
            "OA": one("oa_percent", "{:.1f}"),
            "F1 impervious / building / low vegetation / tree / car": lambda line: " / ".join(
                f"{float(line[0][f'f1 {name}']):.0f}"
                for name in ("impervious surface", "building", "low vegetation", "tree", "car")
            ),
            "trees hit": one("tree_points_hit_percent"),
            "ground as tree": one("ground_called_tree_percent"),
            "ECE": one("ece_percent", "{:.1f}"),
            "before": one("ece_before_percent", "{:.1f}"),
        },
    ),
    "soak": Table(
        file="soak.csv",
        command="python -m benchmarks.soak",
        meaning="Memory at the end of the flight, and its slope over all of it.",
        by=None,
        cells={
            "flight": lambda rows: f"{len(rows) - 1} min at {float(rows[-1]['rate_hz']):g} Hz",
            **{name: last(name) for name in ("tiles", "lost", "switches")},
            "latency p50 / p99": lambda rows: f"{float(rows[-1]['p50_ms']):.0f} / {float(rows[-1]['p99_ms']):.0f} ms",
            "memory and its slope": lambda rows: (
                f"{float(rows[-1]['rss_mib']):.0f} MiB, {float(rows[-1]['rss_slope_mib_per_h']):+.1f} MiB/h"
            ),
            "file descriptors at most": last("descriptors_max"),
        },
    ),
    "acceptance": Table(
        file="acceptance.csv",
        command="python -m engine.acceptance",
        meaning="Every fault on every sensor, injected into the real pipeline.",
        by=None,
        cells={
            "cases passed": lambda rows: f"{total('passed')(rows)} of {len(rows)}",
            "faults found": lambda rows: f"{total('detected')(rows)} of {total('spoiling')(rows)}",
            "hard faults found in the tile where they start": lambda rows: (
                f"{total('hard_at_once')(rows)} of {total('hard')(rows)}"
            ),
            "false alarms": lambda rows: f"{total('false_alarms')(rows)} in {total('tiles')(rows)} tiles",
            "tiles lost": lambda rows: str(total("lost")(rows)),
            "tiles poisoned": lambda rows: str(total("poisoned")(rows)),
        },
    ),
    "kill-resume": Table(
        file="kill_resume.csv",
        command="python -m benchmarks.kill_resume",
        meaning="Runs killed at random moments and resumed, compared with one that was left alone.",
        by=None,
        cells={
            "kills": lambda rows: str(len(rows)),
            "of a run that had been killed before": lambda rows: str(sum(row["resumed"] == "True" for row in rows)),
            "maps equal to the last byte": lambda rows: f"{sum(row['equal'] == 'True' for row in rows)} of {len(rows)}",
        },
    ),
    "power-loss": Table(
        file="power_loss.csv",
        command="python -m benchmarks.kill_resume --power-loss --kills 50 --tiles 36",
        meaning="Power cut at random moments of recorded commands; of what was written is left what was synced, or in "
        "every second case some more. The command is repeated, and its results compared.",
        by=("publisher",),
        cells={
            "of what": one("publisher"),
            "moments": lambda rows: str(len(rows)),
            "in the end equal": lambda rows: f"{sum(row['equal'] == 'True' for row in rows)} of {len(rows)}",
        },
    ),
    "hardening": Table(
        file="hardening.csv",
        command="python -m benchmarks.hardening",
        meaning="*Anything else*: a wrong exit code, several lines, a traceback, a hang, a native crash, or "
        "an input that was accepted although wrong.",
        by=None,
        cells={
            "formats": lambda rows: str(len(rows)),
            "malformed inputs": lambda rows: str(total("tried")(rows)),
            "refused": lambda rows: str(total("refused")(rows)),
            "rightly accepted": lambda rows: str(total("accepted")(rows)),
            "anything else": lambda rows: str(
                sum(int(row["tried"]) - int(row["refused"]) - int(row["accepted"]) for row in rows)
            ),
        },
    ),
    "attacks": Table(
        file="attacks.csv",
        command="python -m benchmarks.attacks",
        meaning=f"On the demo bundle, signed anew. {MEDIANS}",
        by=("error",),
        cells={
            "attacks": lambda rows: ", ".join(row["attack"] for row in rows),
            "refused": lambda rows: f"{sum(row['refused'] == 'True' for row in rows)} of {len(rows)}",
            "with": one("error"),
            "in at most, ms": most("refused_ms", "{:.2f}"),
        },
    ),
    "agreement": Table(
        file="agreement.csv",
        command="python -m benchmarks.agreement",
        meaning=f"Share of pixels with the reference's class. {SIDE_BY_SIDE}",
        by=("library", "graph"),
        cells={
            **text("library", "graph"),
            "same class, %": three("class_agreement", "{:.2f}", scale=100),
            "largest difference of a probability": most("max_probability_difference", "{:.1g}"),
            "against": one("reference"),
            "tolerance": lambda line: (
                "kept" if all(row["within_tolerance"] == "True" for row in line) else "**out of tolerance**"
            ),
        },
    ),
    "accuracy": Table(
        file="accuracy.csv",
        command="python -m benchmarks.accuracy",
        meaning=f"One confusion matrix over all pixels; points are lost against the reference. {SIDE_BY_SIDE}",
        by=("backend", "precision", "arithmetic"),
        cells={
            "backend": one("backend"),
            "graph": one("precision"),
            "computed in": one("arithmetic"),
            "mF1, %": three("mf1_percent", "{:.1f}"),
            "mIoU, %": three("miou_percent", "{:.1f}"),
            "points of mF1 lost": unless_reference(three("drop_mf1_points", "{:+.2f}")),
            "same class, %": unless_reference(three("same_class_percent", "{:.2f}")),
        },
    ),
    "calibration": Table(
        file="calibration.json",
        command="python -m calib.run",
        meaning="Scores of scenes that took no part in calibration; speed in OpenVINO, medians of interleaved rounds.",
        by=("sensors",),
        rows=_calibrated,
        cells={
            "sensors": one("sensors"),
            "mF1 fp32, %": one("fp32", "{:.1f}"),
            **{precision: one(precision, "{:.1f}") for precision in ("fp16", "int8")},
            "multiply-accumulates in int8": one("share", "{:.0f} %", scale=100),
            "int8 times as fast as fp32": one("gain", "{:.2f}"),
        },
    ),
    "sweep": Table(
        file="sweep.csv",
        command="python -m benchmarks.sweep",
        meaning="Bold: on the Pareto front of mF1 and latency (means of the three scenarios). OpenVINO in float32, all "
        f"variants alternating in one run. {SIDE_BY_SIDE}",
        by=("variant",),
        cells={
            "variant": lambda line: f"**{line[0]['variant']}**" if line[0]["pareto"] == "True" else line[0]["variant"],
            "encoder widths": one("encoder_widths"),
            "stem, tokens": lambda line: f"1/{line[0]['stem_stride']}, 1/{line[0]['token_stride_px']}",
            "parameters, M": one("parameters", "{:.1f}", scale=1e-6),
            "GMAC": three("gmac", "{:.1f}"),
            "latency, ms": three("latency_ms", "{:.0f}"),
            "of {reference}": three("latency_over_reference", "{:.2f}"),
            "trained on": lambda line: "{steps} steps of {batch} x {crop}² px".format_map(line[0]),
            "mF1, %": three("mean_f1", "{:.1f}", scale=100),
        },
    ),
    "fleet": Table(
        file="fleet.csv",
        command="python -m benchmarks.fleet",
        meaning="One process has all processors, each of three nodes one. `node killed`: by SIGKILL in the middle, and "
        "another added. `all there`: nothing is left to map. `large`: one raster in six blocks of rows, from the start "
        "of the driver. `list`, `books`: reading a list, keeping the books.",
        by=("case",),
        cells={
            **text("case", "units"),
            "mapped": one("mapped"),
            "s": one("seconds", "{:.1f}"),
            "Mpx/s": lambda line: line[0]["mpx_per_s"] if float(line[0]["mpx_per_s"]) else "",
            "efficiency": one("efficiency"),
            "ms a unit": one("ms_per_unit"),
            "published twice": one("twice"),
            "unlike a lone run": one("differing"),
            "peak MiB": one("peak_mib"),
        },
    ),
    "viewers": Table(
        file="viewers.csv",
        command="python -m benchmarks.viewers",
        meaning="Latency of a tile over all rounds, and of a switch until Chromium shows it. `none`: without the page.",
        by=("browsers",),
        cells={
            "browsers": one("browsers"),
            "p50, ms": _median("p50_ms", "{:.1f}"),
            "p90, ms": _median("p90_ms", "{:.1f}"),
            "p99, ms": _median("p99_ms", "{:.1f}"),
            "tiles/s": _median("tiles_per_s", "{:.2f}"),
            "squares drawn": lambda line: str(total("squares")(line)),
            "switch shown after, s": one("shown_s"),
        },
    ),
    "traffic": Table(
        file="traffic.csv",
        command="python -m benchmarks.traffic",
        meaning=f"For one tile, by TensorRT-RTX's own list of layers; built without a GPU. {SIDE_BY_SIDE}",
        by=("graph", "outputs"),
        cells={
            **text("graph", "outputs"),
            "kernels": three("kernels", "{:.0f}"),
            "they write, MB": three("written_mb", "{:.1f}"),
            "of it in fp32": three("written_fp32_mb", "{:.1f}"),
            "int8 layers that hand on floating point": three("widened", "{:.0f}"),
        },
    ),
    "table1": _TABLE1,
    # Fewer systems at a larger budget.
    "table1-longer": replace(_TABLE1, file="table1_longer.csv"),
}
"""By the name that stands in the pages."""
