"""Train GEMMNet, or one of the systems it is compared with, or a part of either.

    python -m train.run --preset edge --synthetic 400 --out runs/edge
    python -m train.run --data vaihingen:/data/Vaihingen --out runs/vaihingen
    python -m train.run --data synthetic:600 --data folder:/data/naip --labels train/data/labels/naip \
        --share 0.5,0.5 --zoom 0.7-1.6,1-3 --init runs/edge/best.safetensors --out runs/mixed
    python -m train.run --preset paper --model '{"hyfma_attention": false}' --out runs/without-hyfma
    python -m train.run --preset paper --loss '{"scales": 0, "unimodal": 0}' --out runs/without-deep-supervision

Writes into ``--out``: ``best.safetensors`` (highest mean of the three scenarios' mF1 on held-out scenes) and
``last.safetensors``, each with a .json beside it (:mod:`train.checkpoint`), ``resume.pt`` for ``--resume``, and
TensorBoard events. With several sources a scene without heights teaches the scenario that needs none, one without
labels the generators; each source validates by itself and counts alike in the mean. Sample i and its augmentation
depend on (seed, i) alone, so a resumed run sees the samples an uninterrupted one would have seen; labels that came
meanwhile are used from then on.

Exit codes: 0 done, 1 the loss stopped being finite, 2 options that do not fit, 130 Ctrl-C (state saved).
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from engine.contract.command import command_parser
from engine.contract.errors import one_line
from engine.contract.formats import from_builtins, from_json
from engine.contract.sensors import Scenario
from train import checkpoint
from train.checkpoint import BandStatistics, CheckpointInfo
from train.config import PRESETS, LossWeights, ModelConfig, Preset, differences
from train.data.dataset import ZOOM, CropDataset, Pool, band_statistics
from train.data.fingerprint import differing, fingerprint
from train.data.folder import FolderSource
from train.data.procedural import ProceduralSource
from train.data.rasters import DataError
from train.data.scenes import Scene
from train.data.sources import GRAMMAR, Mix, Source, open_mix
from train.distributed import Group, joined
from train.evaluate import scenarios_of, score, usable
from train.metrics import Scores
from train.predict import generated, tiles
from train.trainer import Trainer, TrainingDivergedError

log = logging.getLogger("train")

Config = TypeVar("Config", ModelConfig, LossWeights)

STATISTICS_SCENES = 100
"""Band statistics feed a baseline of the evaluation only; so many scenes are enough."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A trainer with its data and its output folder."""

    trainer: Trainer
    out: Path
    mix: Mix
    pools: tuple[Pool, ...]
    validation: Mapping[str, tuple[Scene, ...]]
    """Labelled scenes by the name of their source; the first source's have both sensors."""
    statistics: Mapping[str, tuple[BandStatistics, ...]]
    workers: int
    command: str
    group: Group

    def train(self) -> bool:
        """Run to the last step; True when finished, False when stopped by a signal. Saves either way."""
        trainer, config = self.trainer, self.trainer.preset.train
        loader = self._loader(trainer.done_steps)
        with (
            SummaryWriter(self.out) if self.group.leads else nullcontext() as board,
            _stop_requests() as stop,
            tqdm(
                total=config.steps,
                initial=trainer.done_steps,
                desc="training",
                unit="step",
                smoothing=0.05,
                disable=not self.group.leads,
            ) as bar,
        ):
            smoothed, window_start, window_steps = None, time.perf_counter(), 0
            for batch in loader:
                logged = trainer.step(batch)
                step = trainer.done_steps
                window_steps += 1
                smoothed = logged["total"] if smoothed is None else 0.95 * smoothed + 0.05 * logged["total"]
                bar.update()
                if step % 10 == 0:
                    now = time.perf_counter()
                    rate = window_steps * config.batch / (now - window_start)
                    window_start, window_steps = now, 0
                    bar.set_postfix(loss=f"{smoothed:.3f}", lr=f"{logged['lr']:.1e}", samples_s=f"{rate:.1f}")
                    for name, value in (logged | {"samples_per_second": rate}).items():
                        if board is not None:
                            board.add_scalar(f"train/{name}", value, step)
                last = self.group.any(stop()) or step == config.steps
                if step % config.validate_every == 0 or step == config.steps:
                    if board is not None:
                        self.save(*self.validate(board))
                    window_start, window_steps = time.perf_counter(), 0
                elif board is not None and (last or step % config.checkpoint_every == 0):
                    self.save()
                if last:
                    break
            self.group.wait()
        return trainer.done_steps >= config.steps

    def validate(self, board: SummaryWriter) -> list[dict[Scenario, Scores]]:
        """Score the averaged weights on each source's validation scenes, and log scores and one picture."""
        model, step = self.trainer.average, self.trainer.done_steps
        found: list[dict[Scenario, Scores]] = []
        for name, scenes in self.validation.items():
            ways = generated(model, scenarios_of(scenes))
            results = score(model, ways, scenes, self.mix.labels, gsd_m=self.mix.gsd_m, synthesis=False)
            metrics = {result.scenario: result.scores for result in results}
            branch = f"/{name}" if found else ""
            for scenario, scores in metrics.items():
                board.add_scalar(f"validation{branch}/{scenario}/mF1", scores.mean_f1, step)
                board.add_scalar(f"validation{branch}/{scenario}/mIoU", scores.mean_iou, step)
                board.add_scalar(f"validation{branch}/{scenario}/OA", scores.overall_accuracy, step)
            summary = [f"{s.value} mF1 {100 * m.mean_f1:.1f} mIoU {100 * m.mean_iou:.1f}" for s, m in metrics.items()]
            tqdm.write(f"step {step}, {name}: {'  '.join(summary)}")
            found.append(metrics)
        first = next(iter(self.validation.values()))[0]
        board.add_image("validation/scene", self.picture(first), step, dataformats="HWC")
        return found

    @torch.no_grad()
    def picture(self, scene: Scene) -> np.ndarray:
        """uint8 [2T, 4T, 3]: rgir, nDSM, both synthesised; below, truth and the three scenarios' maps.

        Black where the system synthesises nothing.
        """
        model, tile, palette = self.trainer.average, next(tiles(scene)), self.mix.labels.palette()
        rgir, ndsm = (bands[None].to(self.trainer.device) for bands in (tile.rgir, tile.ndsm))
        logits_no_ndsm, made_ndsm = model.forward_missing_ndsm(rgir)
        logits_no_rgir, made_rgir = model.forward_missing_rgir(ndsm)

        def bands(normalised: Tensor | None) -> np.ndarray:
            if normalised is None:
                return np.zeros((*tile.labels.shape, 3), np.uint8)
            shown = ((normalised[0].clamp(-1, 1) + 1) * 127.5).byte().cpu().numpy()
            return np.broadcast_to(shown, (3, *shown.shape[1:])).transpose(1, 2, 0)

        def classes(logits: Tensor) -> np.ndarray:
            return palette[logits[0].argmax(0).cpu().numpy()]

        real = model.normalise["rgir"](rgir), model.normalise["ndsm"](ndsm)
        top = [bands(x) for x in (*real, made_rgir, made_ndsm)]
        maps = [classes(x) for x in (model.forward_full(rgir, ndsm), logits_no_ndsm, logits_no_rgir)]
        truth = palette[tile.labels]
        return np.concatenate([np.concatenate(top, axis=1), np.concatenate([truth, *maps], axis=1)])

    def save(self, *metrics: dict[Scenario, Scores]) -> None:
        """Write last, resume and, if the mean mF1 has risen, best.

        Args:
            metrics: of each source after a validation, nothing without one.
        """
        trainer = self.trainer
        info = CheckpointInfo(
            model=trainer.preset.model,
            train=trainer.preset.train,
            sensors=trainer.preset.model.sensor_specs,
            statistics=self.statistics,
            dataset=self.mix.describe(self.pools),
            labels=self.mix.labels,
            gsd_m=self.mix.gsd_m,
            step=trainer.done_steps,
            metrics=metrics[0] if metrics else {},
            other_metrics=dict(zip(list(self.validation)[1:], metrics[1:], strict=True)) if metrics else {},
            command=self.command,
            tools=checkpoint.tool_versions(),
        )
        weights = trainer.average.state_dict()
        checkpoint.save(self.out / "last.safetensors", weights, info)
        if metrics and info.mean_f1 > trainer.best_score:
            trainer.best_score = info.mean_f1
            checkpoint.save(self.out / "best.safetensors", weights, info)
        state = {**trainer.state(), "data": fingerprint(self.mix, self.pools)}
        checkpoint.save_state(self.out / "resume.pt", state)

    def _loader(self, done_steps: int) -> DataLoader[dict[str, Tensor]]:
        config = self.trainer.preset.train
        data = CropDataset(
            self.pools,
            counted=self.mix.labels.counted,
            length=config.steps * config.batch,
            crop_px=config.crop_px,
            seed=config.seed,
            rare_share=config.rare_share,
            border_share=config.border_share,
        )
        return DataLoader(
            data,
            batch_size=config.batch // self.group.size,
            sampler=self.group.part(done_steps * config.batch, len(data), config.batch),
            num_workers=self.workers,
            worker_init_fn=_prepare_worker,
            # spawn: a fork of a process whose torch already runs threads can hang.
            multiprocessing_context="spawn" if self.workers else None,
            persistent_workers=self.workers > 0,
            pin_memory=self.trainer.device.type == "cuda",
        )


def _prepare_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    torch.set_num_threads(1)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a flag that is read between steps, so that a step is never half done."""
    asked: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda received, _: asked.append(received)) for number in signals}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = command_parser("train.run", __doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="edge", help="model and training defaults (edge)")
    parser.add_argument(
        "--model", metavar="JSON", default="{}", help="what differs from the preset's model: '{\"token_depth\": 2}'"
    )
    parser.add_argument("--generator", choices=("ae", "cgan"), help="generator kind (the preset's)")
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--data", action="append", metavar="SOURCE", help=f"{GRAMMAR}; several times to mix, one with heights first"
    )
    data.add_argument("--synthetic", type=int, default=400, metavar="N", help="procedural training scenes (400)")
    parser.add_argument("--share", metavar="LIST", help="of each source in the samples: 0.5,0.5 (equal ones)")
    parser.add_argument(
        "--zoom",
        metavar="LIST",
        help="range of the random zoom, for each source or for all; above 1 magnifies: 0.7-1.4,1-3 "
        f"({ZOOM[0]}-{ZOOM[1]})",
    )
    parser.add_argument(
        "--gsd",
        metavar="LOW-HIGH",
        help="bring all scenes to this range of ground sampling distance before the zoom, in metres, as the runtime "
        "does with rasters outside it: 0.12-0.3 (as they are)",
    )
    parser.add_argument(
        "--labels", type=Path, metavar="DIR", help="further labels for folder: scenes without their own, <scene>.png"
    )
    parser.add_argument(
        "--leave-out",
        metavar="PLACE",
        help="scenes of folder: sources whose name begins so neither train nor validate, to score a model where it "
        "never was: long_beach; several with commas",
    )
    parser.add_argument(
        "--draw-heights",
        action="store_true",
        help="draw heights from labels for labelled images that have none, to teach both sensors and the generator",
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where scenes are kept (runs/cache)")
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/resume.pt")
    parser.add_argument(
        "--init",
        type=checkpoint.named,
        metavar="FILE",
        help="checkpoint to take weights from, where they fit; demo for the shipped one (random)",
    )
    parser.add_argument("--steps", type=int, help="optimiser steps (the preset's)")
    parser.add_argument("--batch", type=int, help="samples per step (the preset's)")
    parser.add_argument("--crop", type=int, dest="crop_px", help="side of a training crop, px (the preset's)")
    parser.add_argument("--lr", type=float, help="peak learning rate (the preset's)")
    parser.add_argument(
        "--loss",
        metavar="JSON",
        default="{}",
        help="what differs from the preset's weights of CoLoss, 0 leaves a term out: '{\"unimodal\": 0}'",
    )
    parser.add_argument("--seed", type=int, help="of weights, samples and augmentation (0)")
    parser.add_argument("--validate-every", type=int, help="steps between validations (the preset's)")
    parser.add_argument("--amp", choices=("auto", "bf16", "off"), help="bfloat16 where it is fast (auto), on, or off")
    parser.add_argument("--validation-scenes", type=int, default=16, help="of the procedural ones (16)")
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="ways to split a step; batch normalisation sees one part at a time (CPU cores)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples (1)")
    return parser.parse_args(argv)


def settings(options: argparse.Namespace, source: Mix) -> Preset:
    """What is trained and how: the preset, and what the options change in it.

    Raises:
        ValueError: the options do not fit each other or the model.
    """
    preset = PRESETS[options.preset]
    model = replace(changed(preset.model, options.model, "--model"), classes=len(source.labels.classes))
    model = replace(model, generator=options.generator) if options.generator else model
    overrides = {
        name: getattr(options, name)
        for name in ("steps", "batch", "crop_px", "lr", "seed", "validate_every", "amp")
        if getattr(options, name) is not None
    }
    train = replace(preset.train, weights=changed(preset.train.weights, options.loss, "--loss"), **overrides)
    if train.crop_px % model.stride_px:
        raise ValueError(f"--crop must be a multiple of {model.stride_px}, received {train.crop_px}")
    return Preset(model=model, train=train)


def prepare(options: argparse.Namespace, command: str, group: Group | None = None) -> TrainingRun:
    """Fill the scene cache and build the run that the options ask for.

    Raises:
        ValueError: the options do not fit each other, the model, or the run to resume.
    """
    group = group or Group()
    mix = mix_of(options)
    preset = settings(options, mix)
    group.part(0, 0, preset.train.batch)  # a batch that cannot be divided is told before anything is prepared

    state_path = options.out / "resume.pt"
    if state_path.exists() and not options.resume:
        raise ValueError(f"{options.out} already holds a run: add --resume to go on, or choose another --out")
    if options.resume and not state_path.exists():
        raise ValueError(f"--resume needs {state_path}, which is not there: leave --resume out to start")
    if options.resume:
        known = checkpoint.load(options.out / "last.safetensors")[1]
        if (known.model, known.train) != (preset.model, preset.train):
            others = [*differences(known.model, preset.model), *differences(known.train, preset.train)]
            raise ValueError(f"--resume needs the options of the first run; differing: {'; '.join(others)}")

    initial = None
    if options.init and not options.resume:
        model, info = checkpoint.load(options.init)
        initial = model.state_dict(), info.model
        for difference in differences(info.model, preset.model):
            log.info("--init: another model than that of %s; %s", options.init, difference)

    if not group.leads:
        group.wait()  # the first process prepares scenes for all
    validation = _validation(mix)
    pools = mix.pools()
    if group.leads:
        group.wait()
    statistics = {
        sensor: tuple(BandStatistics(mean=mean, std=std) for mean, std in bands)
        for sensor, bands in band_statistics(pools[0].scenes[:STATISTICS_SCENES]).items()
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = 1 if device.type == "cuda" else max(1, min(options.threads, preset.train.batch))
    trainer = Trainer(preset, device, threads=threads, group=group)
    if initial is not None:
        left = trainer.start_from(*initial)
        if left and group.leads:
            log.info("%s has no weights for %s: they start at random", options.init, ", ".join(left))
    if options.resume:
        state = checkpoint.load_state(state_path, trainer.device)
        try:
            changes = differing(state["data"], mix, pools) if "data" in state else []  # of an earlier version: unknown
            trainer.restore(state)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{state_path} is not the state of this training: {one_line(error, 300)}") from error
        if changes:
            told = "; ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")
            raise ValueError(
                f"--resume needs the data of the first run; {told}: bring it back, or start another --out with "
                f"--init {options.out / 'last.safetensors'}"
            )
    return TrainingRun(
        trainer=trainer,
        out=options.out,
        mix=mix,
        pools=pools,
        validation=validation,
        statistics=statistics,
        workers=options.workers,
        command=command,
        group=group,
    )


def changed(config: Config, text: str, option: str) -> Config:
    """A configuration with the fields that a JSON object names.

    Args:
        config: of the preset.
        text: the object.
        option: that takes it, for errors.

    Raises:
        ValueError: that is no JSON object, or not of fields and values that the configuration can have.
    """
    kind = type(config)
    try:
        changes = from_json(text, dict[str, object])
        unknown = sorted(set(changes) - set(vars(config)))
        if unknown:
            raise ValueError(f"no such field: {', '.join(unknown)}")
        return from_builtins(msgspec.to_builtins(config) | changes, kind)
    except ValueError as error:
        raise ValueError(f"{option} takes a JSON object of fields of train.config.{kind.__name__}: {error}") from error


def mix_of(options: argparse.Namespace) -> Mix:
    """Where the scenes come from.

    Raises:
        DataError: no such source, or it cannot be used.
    """
    if options.synthetic < 1 or options.validation_scenes < 1:
        raise DataError("--synthetic and --validation-scenes need at least one scene")
    texts = options.data or [f"synthetic:{options.synthetic}"]
    mix = open_mix(
        texts, options.cache, shares=options.share, zooms=options.zoom, gsd=options.gsd, labels=options.labels
    )
    left_out = tuple(options.leave_out.split(",")) if options.leave_out else ()
    if left_out and not any(isinstance(source, FolderSource) for source in mix.sources):
        raise DataError(f"--leave-out belongs to a folder: source, received {', '.join(texts)}")

    def own(source: Source) -> Source:
        if isinstance(source, ProceduralSource):
            return replace(source, validation_count=options.validation_scenes)
        return replace(source, left_out=left_out) if isinstance(source, FolderSource) else source

    return replace(mix, sources=tuple(map(own, mix.sources)), draw_heights=options.draw_heights)


def _validation(mix: Mix) -> dict[str, tuple[Scene, ...]]:
    found = {source.name: tuple(s for s in source.split("validation") if s.labelled) for source in mix.sources}
    first = mix.sources[0].name
    found[first] = tuple(filter(usable, found[first]))
    if not found[first]:
        raise DataError(
            f"{first}: validation needs a scene with labels and both sensors, received none; of several sources name "
            "one that has some first"
        )
    return {name: scenes for name, scenes in found.items() if scenes}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    options = parse(argv)
    command = shlex.join(["python", "-m", "train.run", *(sys.argv[1:] if argv is None else argv)])
    with joined() as group:
        return _run(options, command, group)


def _run(options: argparse.Namespace, command: str, group: Group) -> int:
    try:
        prepared = prepare(options, command, group)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before the first step; scenes made so far are kept in --cache", file=sys.stderr)
        return 130
    try:
        finished = prepared.train()
    except TrainingDivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not finished:
        print(f"stopped; go on with: {command}{'' if options.resume else ' --resume'}", file=sys.stderr)
        return 130
    if group.leads:
        print(f"done: {options.out / 'best.safetensors'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
