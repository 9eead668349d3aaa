"""The tables of the pages by name: which file each is made from, by which function, and what its cells mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.readme import quality_tables, speed_tables
from benchmarks.readme.cells import SIDE_BY_SIDE
from benchmarks.readme.results import Result, load
from engine.contract.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Block:
    """How a table is made."""

    file: str
    command: str
    """Makes the file."""
    table: Callable[[Result], str]
    meaning: str
    """What the cells are, in a sentence or two."""


def block(name: str, results: Path, folder: str) -> str:
    """The text of one block: table, meaning, conditions; ``folder`` is that of the results as the page links it.

    Raises:
        UsageError: there is no such block, its result is not there, or an older version wrote it.
    """
    if name not in BLOCKS:
        raise UsageError(f"a table must be one of {', '.join(BLOCKS)}; received {name!r}")
    made = BLOCKS[name]
    result = load(results, made.file, made.command)
    try:
        table = made.table(result)
    except KeyError as error:
        raise UsageError(
            f"{results / made.file} must have {error} for table {name}, and an older version wrote it: "
            f"run `{made.command}` again"
        ) from error
    return f"{table}\n\n{made.meaning}\n{result.conditions(folder)}"


_TABLE1 = Block(
    file="table1.csv",
    command="python -m train.benchmark",
    table=quality_tables.table1,
    meaning=f"Percent, held-out procedural scenes, mean over seeds. {SIDE_BY_SIDE}",
)

BLOCKS = {
    "latency": Block(
        file="latency.csv",
        command="python -m benchmarks.latency",
        table=speed_tables.latency,
        meaning=f"One tile at a time, from host memory to host memory. {SIDE_BY_SIDE} Medians over rounds.",
    ),
    "throughput": Block(
        file="throughput.csv",
        command="python -m benchmarks.throughput",
        table=speed_tables.throughput,
        meaning="*Stream* is read, infer, compose, write; *end to end* adds opening and publishing the maps. The "
        "*plain loop* is the library by itself on tiles already in memory. Medians over rounds.",
    ),
    "peers": Block(
        file="peers.csv",
        command="python -m benchmarks.peers",
        table=speed_tables.peers,
        meaning="Same tiles and weights in one run; above 1 the engine is faster. *Same class* as PyTorch in float32, "
        f"worst scenario. {SIDE_BY_SIDE} Medians over rounds.",
    ),
    "peers-raster": Block(
        file="peers.csv",
        command="python -m benchmarks.peers",
        table=speed_tables.peers_raster,
        meaning="From a raster to its classes, everything loaded and compiled before; *disk to disk* reads and writes "
        f"GeoTIFF, the others begin and end in memory. {SIDE_BY_SIDE} Medians over rounds.",
    ),
    "peers-models": Block(
        file="peers_models.csv",
        command="python -m benchmarks.peers --presets paper,edge",
        table=speed_tables.peers_models,
        meaning=f"Networks side by side in one run. {SIDE_BY_SIDE} Medians over rounds.",
    ),
    "roofline": Block(
        file="roofline.csv",
        command="python -m benchmarks.roofline",
        table=speed_tables.roofline,
        meaning="Time per tile with every slot busy. The floor is all products at this machine's measured peak, or "
        f"weights, inputs and outputs once over memory, whichever is longer. {SIDE_BY_SIDE} Medians over rounds.",
    ),
    "soak": Block(
        file="soak.csv",
        command="python -m benchmarks.soak",
        table=speed_tables.soak,
        meaning="Memory at the end of the flight, and its slope over all of it.",
    ),
    "acceptance": Block(
        file="acceptance.csv",
        command="python -m engine.acceptance",
        table=quality_tables.acceptance,
        meaning="Every fault on every sensor, injected into the real pipeline.",
    ),
    "kill-resume": Block(
        file="kill_resume.csv",
        command="python -m benchmarks.kill_resume",
        table=quality_tables.kill_resume,
        meaning="Runs killed at random moments and resumed, compared with one that was left alone.",
    ),
    "agreement": Block(
        file="agreement.csv",
        command="python -m benchmarks.agreement",
        table=quality_tables.agreement,
        meaning=f"Share of pixels with the reference's class. {SIDE_BY_SIDE}",
    ),
    "accuracy": Block(
        file="accuracy.csv",
        command="python -m benchmarks.accuracy",
        table=quality_tables.accuracy,
        meaning=f"One confusion matrix over all pixels; points are lost against the reference. {SIDE_BY_SIDE}",
    ),
    "calibration": Block(
        file="calibration.json",
        command="python -m calib.run",
        table=quality_tables.calibration,
        meaning="Scores of scenes that took no part in calibration; speed in OpenVINO, medians of interleaved rounds.",
    ),
    "sweep": Block(
        file="sweep.csv",
        command="python -m benchmarks.sweep",
        table=quality_tables.sweep,
        meaning="Bold: on the Pareto front of mF1 and latency (means of the three scenarios). OpenVINO in float32, all "
        f"variants alternating in one run. {SIDE_BY_SIDE}",
    ),
    "table1": _TABLE1,
    # Fewer systems at a larger budget.
    "table1-longer": replace(_TABLE1, file="table1_longer.csv"),
}
"""By the name that stands in the pages."""

# The same measured on a processor with products of bfloat16 and int8 matrices.
BLOCKS |= {f"{name}-amx": replace(BLOCKS[name], file=f"{name}_amx.csv") for name in ("latency", "throughput")}
