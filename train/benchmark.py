"""Train systems on the same scenes with the same budget, score them on the same held-out scenes, print the table.

    python -m train.benchmark --steps 300 --out runs/benchmark
    python -m train.benchmark --presets paper,nano --seeds 0,1,2 --steps 2000 --out runs/pair
    python -m train.benchmark --seeds 0,1,2 --lr 5e-4,2e-3 --steps 300 --out runs/tuned

A budget of a few minutes wants another learning rate than the presets' hours do, and each system its own: with several
in --lr, the first seed trains with each, and the other seeds with the one that validated best.

Systems that OUT holds already are neither trained nor scored again (delete a run's scores.json for that), an
interrupted one goes on where it was: repeat the command. Writes benchmark.csv (a row per preset, seed and scenario) and
benchmark.md (the layout of the GEMMNet paper's Table 1, mean over seeds).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import logging
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import msgspec
import torch

from engine.contract.atomic import replacing
from engine.contract.command import command_parser
from engine.contract.errors import InterruptedRunError, UsageError
from engine.contract.formats import MalformedError, from_json, read_file
from engine.contract.sensors import Scenario
from train import budget, checkpoint, run
from train.config import PRESETS, differences
from train.data.procedural import ProceduralSource
from train.evaluate import score
from train.model import gmac
from train.predict import generated
from train.report import COLUMNS

log = logging.getLogger("train.benchmark")

DEFAULT_PRESETS = tuple(PRESETS)
CSV_NAME, TABLE_NAME, SCORES_NAME = "benchmark.csv", "benchmark.md", "scores.json"


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One trained system in one scenario, on the held-out scenes; a row of the result. Fractions in 0..1."""

    preset: str
    system: str
    """Its name in the paper's Table 1."""
    seed: int
    lr: float
    """Peak learning rate."""
    scenario: Scenario
    parameters: int
    """That at least one exported graph holds."""
    gmac: float
    """At 512 x 512."""
    mean_f1: float
    mean_iou: float
    overall_accuracy: float
    tile_mean_iou: float | None
    synthesis_mae: float | None = None
    """nDSM: metres; RGIR: grey levels."""
    synthesis_ssim: float | None = None


def train_one(
    options: argparse.Namespace,
    name: str,
    seed: int,
    *,
    preset: str = "",
    model: Mapping[str, object] | None = None,
    lr: float | None = None,
) -> Path:
    """Train a model, or go on with it, or find it done: its best checkpoint.

    Args:
        options: budget and folders.
        name: of the run's folder, with the seed.
        seed: of weights, samples and augmentation.
        preset: what is trained; ``name`` unless given.
        model: fields of the model that differ from the preset's.
        lr: peak learning rate, where it is not the preset's.

    Raises:
        InterruptedRunError: Ctrl-C; the same call goes on.
        RuntimeError: training failed; the log says why.
        UsageError: the folder holds a run with other settings.
    """
    out = options.out / f"{name}-{seed}"
    validate_every = options.validate_every or options.steps
    arguments = ["--preset", preset or name, "--seed", str(seed), "--out", str(out), "--cache", str(options.cache)]
    arguments += ["--synthetic", str(options.synthetic), "--steps", str(options.steps), "--batch", str(options.batch)]
    arguments += ["--crop", str(options.crop), "--validate-every", str(validate_every)]
    arguments += ["--validation-scenes", str(options.validation_scenes), "--threads", str(options.threads)]
    arguments += ["--workers", str(options.workers)]
    if model:
        arguments += ["--model", json.dumps(dict(model))]
    if lr:
        arguments += ["--lr", f"{lr:g}"]
    last = out / "last.safetensors"
    if last.exists():
        given, info = run.parse(arguments), checkpoint.load(last)[1]
        asked = run.settings(given, run.mix_of(given))
        differing = [*differences(info.model, asked.model), *differences(info.train, asked.train)]
        if differing:
            raise UsageError(
                f"{out} was trained with other settings ({'; '.join(differing)}): choose another folder for the runs, "
                "or delete that one"
            )
        if info.step >= options.steps:
            return out / "best.safetensors"
    if (out / "resume.pt").exists():
        arguments.append("--resume")
    log.info("%s, seed %d", name, seed)
    code = run.main(arguments)
    if code == InterruptedRunError.exit_code:
        raise InterruptedRunError(f"training of {name} with seed {seed} was interrupted")
    if code != 0:
        raise RuntimeError(f"training {name} with seed {seed} ended with exit code {code}")
    return out / "best.safetensors"


def trained(
    options: argparse.Namespace, name: str, *, preset: str = "", model: Mapping[str, object] | None = None
) -> Iterator[tuple[int, Path]]:
    """Each seed with its checkpoint, at the preset's learning rate, the one that is given or the best of several.

    Args:
        options: budget, seeds, learning rates and folders.
        name, preset, model: as for :func:`train_one`; a given learning rate is added to the name.

    Raises:
        InterruptedRunError, RuntimeError, UsageError: as :func:`train_one`.
    """

    def at(lr: float | None, seed: int) -> Path:
        return train_one(options, f"{name}-lr{lr:g}" if lr else name, seed, preset=preset or name, model=model, lr=lr)

    first, *others = options.seeds
    tried = {lr: at(lr, first) for lr in options.lr or [None]}
    best, *more = tried
    if more:
        validated = {lr: checkpoint.load(path)[1].mean_f1 for lr, path in tried.items()}
        best = max(validated, key=lambda lr: validated[lr])
        for lr, mean_f1 in validated.items():
            log.info(
                "%s, learning rate %g: validation mF1 %.1f%s", name, lr, 100 * mean_f1, ": chosen" if lr == best else ""
            )
    yield first, tried[best]
    yield from ((seed, at(best, seed)) for seed in others)


def measure(path: Path, options: argparse.Namespace, preset: str, seed: int) -> list[BenchmarkRow]:
    """Score a checkpoint and count what it costs, or find that done beside it: an entry per scenario."""
    source = ProceduralSource(cache=options.cache, count=1, test_count=options.test_scenes)
    kept = path.with_name(SCORES_NAME)
    key = hashlib.sha256(path.read_bytes() + source.digest("test").encode()).hexdigest()
    # What another version wrote is scored again.
    with suppress(FileNotFoundError, MalformedError):
        known = from_json(read_file(kept), dict[str, list[BenchmarkRow]])
        if key in known:
            return known[key]
    model, info = checkpoint.load(path)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    ways = generated(model, Scenario)
    entries = []
    for result in score(model, ways, source.split("test"), info.labels, gsd_m=info.gsd_m):
        made = result.synthesis
        entries.append(
            BenchmarkRow(
                preset=preset,
                system=info.model.title,
                seed=seed,
                lr=info.train.lr,
                scenario=result.scenario,
                parameters=model.deployable_parameters(),
                gmac=gmac(model, result.scenario),
                mean_f1=result.scores.mean_f1,
                mean_iou=result.scores.mean_iou,
                overall_accuracy=result.scores.overall_accuracy,
                tile_mean_iou=result.tile_mean_iou,
                synthesis_mae=made.mean_absolute_error if made else None,
                synthesis_ssim=made.ssim if made else None,
            )
        )
    with replacing(kept) as temporary:
        temporary.write_bytes(msgspec.json.encode({key: entries}))
    return entries


def as_csv(entries: Iterable[BenchmarkRow], command: str) -> str:
    """A row per entry. The first line is the command, as a comment."""
    out = io.StringIO()
    out.write(f"# {command}\n")
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(field.name for field in fields(BenchmarkRow))
    digits = {"lr": "g", "gmac": ".3f"}
    for entry in entries:
        rows.writerow(
            format(value, digits.get(name, ".5f")) if isinstance(value, float) else value
            for name, value in asdict(entry).items()
        )
    return out.getvalue()


def as_table(entries: Sequence[BenchmarkRow]) -> str:
    """Markdown: mF1 / mIoU by scenario in Table 1's order, mean over seeds, with the range where there are several."""
    by_preset: dict[str, list[BenchmarkRow]] = defaultdict(list)
    for entry in entries:
        by_preset[entry.preset].append(entry)
    heading = " | ".join(f"{scenario.value.replace('_', ' ')} mF1 / mIoU" for scenario in COLUMNS)
    lines = [f"| preset | system | parameters, M | GMAC, full | GMAC, one missing | {heading} |", "|---" * 8 + "|"]
    for preset, group in by_preset.items():
        by_scenario = {scenario: [entry for entry in group if entry.scenario is scenario] for scenario in COLUMNS}
        cells = [
            preset,
            group[0].system,
            f"{group[0].parameters / 1e6:.2f}",
            f"{by_scenario[Scenario.FULL][0].gmac:.1f}",
            f"{max(by_scenario[scenario][0].gmac for scenario in COLUMNS[1:]):.1f}",
        ]
        for mine in by_scenario.values():
            f1, iou = [100 * entry.mean_f1 for entry in mine], [100 * entry.mean_iou for entry in mine]
            spread = f" ({min(f1):.1f}..{max(f1):.1f})" if len(f1) > 1 else ""
            cells.append(f"{sum(f1) / len(f1):.1f}{spread} / {sum(iou) / len(iou):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = command_parser("train.benchmark", __doc__)
    parser.add_argument("--presets", default=",".join(DEFAULT_PRESETS), help=f"({','.join(DEFAULT_PRESETS)})")
    budget.add_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs and of the table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    options = parse(argv)
    command = shlex.join(["python", "-m", "train.benchmark", *(sys.argv[1:] if argv is None else argv)])
    presets = options.presets.split(",")
    if set(presets) - set(PRESETS):
        print(f"error: --presets takes {', '.join(PRESETS)}; received {options.presets!r}", file=sys.stderr)
        return UsageError.exit_code
    entries: list[BenchmarkRow] = []
    try:
        for preset in presets:
            for seed, path in trained(options, preset):
                entries += measure(path, options, preset, seed)
                # written after each, so that an interruption leaves what there is
                for name, text in ((CSV_NAME, as_csv(entries, command)), (TABLE_NAME, as_table(entries))):
                    with replacing(options.out / name) as temporary:
                        temporary.write_text(text)
    except InterruptedRunError:
        print(f"stopped; go on with: {command}", file=sys.stderr)
        return InterruptedRunError.exit_code
    except (UsageError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, UsageError) else 1
    print(as_table(entries))
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
