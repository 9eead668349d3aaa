"""Adapt a model to your own images, without labels.

    python -m train.adapt --init demo --data folder:MINE --out runs/mine
    python -m train.adapt --init demo --data folder:MINE --labels MY_LABELS --steps 1000 --out runs/mine
    python -m export.run runs/mine/best.safetensors --bundle mine            then fly with it: engine.run --bundle mine

MINE holds a folder per scene with ``rgir.tif`` and, where there are heights, ``ndsm.tif`` (:mod:`train.data.folder`;
two scenes at least, a dozen or more to be of use). Half of each batch are procedural scenes with their labels; the
other half are your images with labels of a teacher, the running average of the model that is trained, and with objects
of procedural scenes pasted in (:mod:`train.selftraining`). Where heights exist the teacher looks at both sensors, and
what it sees there teaches the scenarios with one. Used where they are: labels (``labels.tif``, ``--labels``), crowns
that people marked (``trees.csv`` with pixel columns x and y), NDVI.

The first steps (``--warm-up``) only get used to both kinds of image; no pseudo-label is believed yet. Every ``--check``
steps the averaged model maps held-out images, the best so far is kept, and after three checks without a better one the
run ends. Which is best is told without labels, and is no accuracy:

- where held-out images have heights, the model whose maps, from both sensors and from either one, agree best in the
  mean with those that the first model made from both;
- else the model that agrees best with itself when an image is turned and lit otherwise, less its drift from the prior
  share of each class. The prior is the mean of what the model calls in your images before and what the procedural
  scenes have; of uncounted classes (clutter) the lesser of the two.

Crops are brought to the ground sampling distances that the model maps best at, as the runtime brings rasters there.
``--without PART`` leaves a part out, to see what it earns (``python -m benchmarks.ablations``).

Writes ``best.safetensors`` and, at the end, ``last.safetensors`` with their .json into ``--out``. Exit codes: 0 done,
1 the loss stopped being finite, 2 options or data that do not fit, 130 Ctrl-C (the best so far is kept).
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from engine.contract.command import command_parser
from engine.contract.sensors import Sensor
from train import checkpoint
from train.checkpoint import CheckpointInfo
from train.config import Preset, TrainConfig
from train.data.dataset import ZOOM, CropDataset, Pool
from train.data.folder import FolderSource
from train.data.isprs import Part
from train.data.labels import IGNORE_INDEX
from train.data.rasters import DataError
from train.data.scenes import Scene
from train.data.sources import GRAMMAR, open_source
from train.selftraining import (
    Fidelity,
    FirstMaps,
    PseudoLabels,
    Rules,
    Stability,
    class_mix,
    measured,
    stability,
    teach,
)
from train.system import System
from train.trainer import Trainer, TrainingDivergedError

log = logging.getLogger("train.adapt")

CHECK_CROPS = 32
PATIENCE = 3
ZOOM_TARGET = (1.0, 2.0)
"""Of images whose ground sampling distance is not known."""
PARTS = ("heights", "mixing", "average", "prior", "ndvi", "trees")
AGE_STEPS = 10_000
"""The average begins as the model that is adapted, not as a random one: no short memory at first."""

Batch = dict[str, Tensor]


@dataclass(kw_only=True)
class Adaptation:
    """A trainer, what it learns from, and the best model so far."""

    trainer: Trainer
    info: CheckpointInfo
    out: Path
    source: Iterator[Batch]
    target: Iterator[Batch]
    judge: Callable[[System], Stability | Fidelity]
    """How good a model in eval mode is, without labels."""
    pseudo: PseudoLabels
    teacher: System
    mixing: bool
    heights: bool
    warm_up: int
    check: int
    generator: torch.Generator

    def run(self) -> Stability | Fidelity:
        """Train to the last step or until three checks found nothing better; what the best check found.

        Raises:
            TrainingDivergedError: the loss is no longer finite.
        """
        trainer, steps = self.trainer, self.trainer.preset.train.steps
        best, since = self.judge(self.trainer.average), 0
        print(f"before: {best}", flush=True)
        self._save("best")
        believed = 0.0
        with tqdm(total=steps, desc="adapting", unit="step", smoothing=0.05) as bar:
            while trainer.done_steps < steps:
                logged, share = self.step()
                believed = 0.95 * believed + 0.05 * share
                bar.update()
                bar.set_postfix(loss=f"{logged['total']:.3f}", believed=f"{believed:.0%}")
                if trainer.done_steps % self.check and trainer.done_steps != steps:
                    continue
                if trainer.done_steps < self.warm_up:
                    continue
                found = self.judge(trainer.average)
                tqdm.write(f"step {trainer.done_steps}: {found}")
                if found.score > best.score:
                    best, since = found, 0
                    self._save("best")
                else:
                    since += 1
                if since == PATIENCE:
                    tqdm.write(f"{PATIENCE} checks without a better model: done")
                    break
        self._save("last")
        return best

    def step(self) -> tuple[dict[str, float], float]:
        """One step; what is logged, and the share of pixels whose pseudo-label is believed."""
        source, target = next(self.source), next(self.target)
        known = target["labels"].long()
        share = 0.0
        if self.trainer.done_steps >= self.warm_up:
            seen_by = measured(target) if self.heights else target["available"]
            probabilities = teach(self.teacher, target["rgir_weak"], target["ndsm_weak"], seen_by)
            found = self.pseudo.label(probabilities, target["rgir_weak"])
            seen = target["rgir_valid"] | target["ndsm_valid"]
            found = found.masked_fill(~seen, IGNORE_INDEX)
            share = float((found != IGNORE_INDEX).float().mean())
            known = torch.where(known != IGNORE_INDEX, known, found)
        mixed = {**target, "labels": known.to(torch.uint8)}
        if self.mixing:
            mixed = class_mix(mixed, source, self.generator)
        batch = {name: torch.cat((tensor, mixed[name])) for name, tensor in source.items()}
        return self.trainer.step(batch), share

    def _save(self, name: str) -> None:
        info = replace(self.info, step=self.trainer.done_steps)
        checkpoint.save(self.out / f"{name}.safetensors", self.trainer.average.state_dict(), info)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = command_parser("train.adapt", __doc__)
    parser.add_argument(
        "--init", type=checkpoint.named, default="demo", metavar="FILE", help="checkpoint to adapt (demo, the shipped)"
    )
    parser.add_argument("--data", required=True, metavar="folder:DIR", help="your images")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="labels of some of them, <scene>.png")
    parser.add_argument(
        "--source", default="synthetic:200", metavar="SOURCE", help=f"scenes with labels: {GRAMMAR} (synthetic:200)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where scenes are kept (runs/cache)")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps at most (600)")
    parser.add_argument("--warm-up", type=int, default=60, metavar="N", help="steps without pseudo-labels (60)")
    parser.add_argument("--check", type=int, default=100, metavar="N", help="steps between checks (100)")
    parser.add_argument("--batch", type=int, default=8, help="samples per step, half of each kind (8)")
    parser.add_argument("--crop", type=int, default=256, dest="crop_px", help="side of a training crop, px (256)")
    parser.add_argument("--lr", type=float, default=3e-4, help="peak learning rate (3e-4)")
    parser.add_argument("--threshold", type=float, default=0.8, help="confidence from which a label is believed (0.8)")
    parser.add_argument(
        "--prior-strength", type=float, default=0.5, metavar="A", help="how far shares of classes are held, 0..1 (0.5)"
    )
    parser.add_argument(
        "--without",
        action="append",
        choices=PARTS,
        default=[],
        help="leave a part out; may be repeated: the teacher's average (it stays what --init is), objects pasted in, "
        "heights for the teacher where the model has none, NDVI (say for cameras that are not NIR-R-G), the prior, "
        "marked crowns",
    )
    parser.add_argument("--amp", choices=("auto", "bf16", "off"), default="auto", help="as for train.run (auto)")
    parser.add_argument("--seed", type=int, default=0, help="of samples and mixtures (0)")
    parser.add_argument("--threads", type=int, default=1, help="ways to split a step (1)")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples of each kind (1)")
    return parser.parse_args(argv)


def prepare(options: argparse.Namespace, command: str) -> Adaptation:
    """Open the data and the model.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: options, data and model do not fit.
    """
    if options.batch < 4 or options.batch % 2:
        raise ValueError(f"--batch must be even and at least 4, received {options.batch}")
    if min(options.steps, options.check) < 1 or not 0 <= options.warm_up < options.steps:
        raise ValueError("--steps and --check must be at least 1, --warm-up less than --steps")
    rules = Rules(
        threshold=options.threshold,
        prior_strength=0.0 if "prior" in options.without else options.prior_strength,
        green=None if "ndvi" in options.without else Rules.green,
    )
    if (options.out / "best.safetensors").exists():
        raise ValueError(f"{options.out} already holds a run: choose another --out")
    model, info = checkpoint.load(options.init)
    if options.crop_px % info.model.stride_px:
        raise ValueError(f"--crop must be a multiple of {info.model.stride_px}, received {options.crop_px}")
    target = open_source(options.data, options.cache / "adapt", options.labels)
    if not isinstance(target, FolderSource):
        raise DataError(f"--data takes folder:DIR, received {options.data!r}")
    target = replace(target, tree_points="trees" not in options.without)
    source = open_source(options.source, options.cache)
    for found in (source, target):
        if found.labels != info.labels:
            raise DataError(f"{found.name} must have the classes of the model, {', '.join(info.labels.names)}")
    train = TrainConfig(
        steps=options.steps,
        batch=options.batch,
        crop_px=options.crop_px,
        lr=options.lr,
        warmup_steps=50,
        ema_decay=0.99,
        amp=options.amp,
        seed=options.seed,
        weights=info.train.weights,
        rare_share=info.train.rare_share,
        border_share=info.train.border_share,
    )
    trainer = Trainer(Preset(model=info.model, train=train), _device(), threads=options.threads)
    trainer.start_from(model.state_dict(), info.model)
    trainer.average_age = AGE_STEPS
    images, held_out = (_with_images(target, part) for part in ("train", "validation"))
    batches = _loader(
        CropDataset(
            [_pool(held_out, info, zoom=(1.0, 1.0))],
            counted=info.labels.counted,
            length=CHECK_CROPS,
            crop_px=options.crop_px,
            seed=options.seed + 1,
            weak=True,
        ),
        options.batch,
        0,
    )
    checks = list(batches)
    scenes = source.split("train")
    prior = _prior(trainer, checks, _share_of_labels(scenes, len(info.labels.classes)), info.labels.counted)
    pseudo, first = PseudoLabels(prior, info.labels, rules), FirstMaps(model.eval(), checks)
    half = options.batch // 2
    return Adaptation(
        trainer=trainer,
        info=replace(
            info,
            train=train,
            dataset=f"{info.dataset}; adapted to {len(images)} scenes of {target.name} without their labels",
            metrics={},
            other_metrics={},
            temperatures={},
            confidence=(),
            command=command,
            tools=checkpoint.tool_versions(),
        ),
        out=options.out,
        source=iter(_loader(_crops(scenes, options, train, info, weak=False), half, options.workers)),
        target=iter(_loader(_crops(images, options, train, info, weak=True), half, options.workers)),
        judge=first.fidelity if first else lambda found: stability(found, checks, pseudo.prior),
        pseudo=pseudo,
        teacher=model.eval() if "average" in options.without else trainer.average,
        mixing="mixing" not in options.without,
        heights="heights" not in options.without,
        warm_up=options.warm_up,
        check=options.check,
        generator=torch.Generator().manual_seed(options.seed),
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _with_images(target: FolderSource, part: Part) -> tuple[Scene, ...]:
    found = tuple(scene for scene in target.split(part) if Sensor.RGIR in scene.sensors)
    if not found:
        raise DataError(f"{target.name}: no scene for {part} has rgir.tif, and that is what a model adapts to")
    return found


def _crops(
    scenes: tuple[Scene, ...], options: argparse.Namespace, train: TrainConfig, info: CheckpointInfo, *, weak: bool
) -> CropDataset:
    return CropDataset(
        [_pool(scenes, info, zoom=ZOOM_TARGET if weak else ZOOM)],
        counted=info.labels.counted,
        length=train.steps * train.batch // 2,
        crop_px=train.crop_px,
        seed=options.seed,
        rare_share=0.0 if weak else train.rare_share,
        border_share=0.0 if weak else train.border_share,
        weak=weak,
    )


def _pool(scenes: tuple[Scene, ...], info: CheckpointInfo, *, zoom: tuple[float, float]) -> Pool:
    """Scenes where the model maps them, magnified up to twice from there; ``zoom`` where that is not known."""
    known = [scene.gsd_m for scene in scenes if scene.gsd_m is not None]
    if len(known) < len(scenes):
        return Pool(scenes=scenes, zoom=zoom)
    low, high = (min(max(gsd_m, info.gsd_m[0]), info.gsd_m[1]) for gsd_m in (min(known) / 2, max(known)))
    return Pool(scenes=scenes, zoom=(1.0, 1.0), gsd_m=(low, high))


def _loader(data: CropDataset, batch: int, workers: int) -> DataLoader[Batch]:
    return DataLoader(data, batch_size=batch, num_workers=workers, multiprocessing_context="spawn" if workers else None)


def _share_of_labels(scenes: tuple[Scene, ...], classes: int) -> Tensor:
    """Share of each class in the labels of at most 100 scenes, [C]."""
    total = torch.zeros(classes)
    for scene in scenes[:100]:
        if scene.labelled:
            labels = torch.from_numpy(np.array(scene.labels())).flatten().long()
            total += torch.bincount(labels, minlength=256)[:classes]
    return total / total.sum().clamp_min(1)


def _prior(trainer: Trainer, batches: list[Batch], source: Tensor, counted: tuple[int, ...]) -> Tensor:
    """Mean of what the model calls in held-out images and what the source has; of uncounted classes the lesser."""
    called = torch.zeros_like(source)
    for batch in batches:
        called += teach(trainer.average, batch["rgir_weak"], batch["ndsm_weak"], measured(batch)).mean((0, 2, 3))
    called = called / called.sum()
    prior = (called + source) / 2
    for index in set(range(len(prior))) - set(counted):
        prior[index] = torch.minimum(called[index], source[index])
    return (prior / prior.sum()).clamp_min(1e-3)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    options = parse(argv)
    command = shlex.join(["python", "-m", "train.adapt", *(sys.argv[1:] if argv is None else argv)])
    best = options.out / "best.safetensors"
    try:
        adaptation = prepare(options, command)
        found = adaptation.run()
    except TrainingDivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = f"the best so far is in {best}" if best.exists() else "nothing was written"
        print(f"stopped; {kept}", file=sys.stderr)
        return 130
    print(f"done: {best}: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
