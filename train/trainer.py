"""One step of training: gradients over parts of a batch, two optimisers, averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.contract.sensors import Sensor
from train.config import ModelConfig, Preset, TrainConfig
from train.distributed import Group
from train.losses import CoLoss, discriminator_loss
from train.model import discriminators
from train.system import System
from train.systems import build


class TrainingDivergedError(RuntimeError):
    """The loss or a gradient is no longer finite."""


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up over at most a tenth of the run, then half a cosine down to ``lr * lr_final_fraction``."""
    warmup = min(config.warmup_steps, config.steps // 10)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(config.steps - warmup, 1)
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return config.lr * (config.lr_final_fraction + (1 - config.lr_final_fraction) * cosine)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights and batch statistics; short memory at first."""
    decay = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.dtype.is_floating_point:
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _widened(weight: Tensor, shape: torch.Size) -> Tensor:
    """A kernel [O, I, H, W] that reads as many channels as ``shape`` says, zeros for those it did not know."""
    more = shape[1] - weight.shape[1] if weight.ndim == len(shape) == 4 else 0
    return nn.functional.pad(weight, (0, 0, 0, 0, 0, more)) if more > 0 else weight


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels; none for norms, biases and embeddings of one dimension."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """What one thread found for its part of a step; None where a parameter took no part."""

    model: tuple[Tensor | None, ...]
    judges: tuple[Tensor | None, ...]
    logged: dict[str, float]


class Trainer:
    """Model, average, discriminators and optimisers; one :meth:`step` at a time.

    On a CPU a step's samples are split over ``threads``, each of which runs forward and backward on one core by
    itself: nano's layers are too small to be worth a barrier each, least of all on a machine with other work.

    Args:
        preset: model and training configuration.
        device: where to train.
        threads: how many ways to split a step; 1 leaves the parallelism to torch. With dropout (preset ``paper``)
            several threads draw in no fixed order, so only ``threads=1`` resumes bit for bit there.
        group: the processes that train together, each with its own part of a batch.
    """

    def __init__(self, preset: Preset, device: torch.device, *, threads: int = 1, group: Group | None = None) -> None:
        self.preset, self.device, self.group = preset, device, group or Group()
        torch.manual_seed(preset.train.seed)
        # channels_last is what oneDNN and cuDNN convolve in anyway; it saves the reorders. Instance normalisation
        # views the samples of a batch as channels of one, which only the contiguous layout allows without a copy.
        batch_norm = preset.model.norm == "batch"
        layout = torch.channels_last if batch_norm else torch.contiguous_format
        self.model = build(preset.model).to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.loss = CoLoss(preset.model, preset.train)
        self.optimizer = torch.optim.AdamW(
            decay_groups(self.model, preset.train.weight_decay), lr=preset.train.lr, betas=(0.9, 0.99)
        )
        self.judges: nn.ModuleDict | None = None
        self.judge_optimizer: torch.optim.Optimizer | None = None
        if preset.model.generator == "cgan" and preset.model.system == "gemmnet":
            self.judges = discriminators(preset.model).to(device)
            self.judge_optimizer = torch.optim.Adam(
                self.judges.parameters(), lr=preset.train.discriminator_lr, betas=(0.5, 0.999)
            )
        # bfloat16 has float32's range: no loss scaling. CPUs without AMX would only emulate it.
        self.mixed = device.type == "cuda" if preset.train.amp == "auto" else preset.train.amp == "bf16"
        if threads > 1:
            torch.set_num_threads(1)
        # A replica shares every parameter with the model and owns its batch statistics; the model's are kept.
        shared = {id(parameter): parameter for parameter in self.model.parameters()}
        self.replicas = [self.model, *(copy.deepcopy(self.model, dict(shared)) for _ in range(threads - 1))]
        self.map_parts = ThreadPoolExecutor(threads).map if threads > 1 else map
        self.done_steps = 0
        self.average_age = 0
        """Steps that the average counts as behind it already; of weights that are good, many."""
        self.best_score = -1.0

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One update of the network and, if there are any, one of the discriminators.

        Returns:
            Unweighted loss terms, ``total``, ``gradient_norm`` and ``lr``.

        Raises:
            TrainingDivergedError: the loss or the gradient is not finite; no weight has been changed by it.
        """
        config = self.preset.train
        lr = learning_rate(self.done_steps, config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        parts = len(self.replicas)
        columns = {name: tensor.chunk(parts) for name, tensor in batch.items()}
        chunks = [{name: column[i] for name, column in columns.items()} for i in range(len(columns["labels"]))]
        results = list(self.map_parts(self._gradients, self.replicas, chunks))
        shares = [len(chunk["labels"]) / len(batch["labels"]) for chunk in chunks]

        logged = {
            name: sum(result.logged.get(name, 0.0) * share for result, share in zip(results, shares, strict=True))
            for name in results[0].logged
        }
        logged = self.group.mean(logged)
        self._assign_mean(self.model, [result.model for result in results], shares)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        logged |= {"gradient_norm": float(norm), "lr": lr}
        if not (math.isfinite(logged["total"]) and math.isfinite(logged["gradient_norm"])):
            raise TrainingDivergedError(
                f"the loss must stay finite; at step {self.done_steps} received {logged}: "
                "lower --lr and train again, or go on from the last validation with --resume"
            )
        self.optimizer.step()
        if self.judges is not None and self.judge_optimizer is not None:
            self._assign_mean(self.judges, [result.judges for result in results], shares)
            self.judge_optimizer.step()
        update_average(self.average, self.model, config.ema_decay, self.average_age + self.done_steps)
        self.done_steps += 1
        return logged

    def _assign_mean(
        self, module: nn.Module, parts: Sequence[tuple[Tensor | None, ...]], shares: Sequence[float]
    ) -> None:
        """Give the parameters the mean gradient of this process's parts, and of all processes."""
        parameters = list(module.parameters())
        means: list[Tensor | None] = []
        for gradients in zip(*parts, strict=True):
            found = [g * share for g, share in zip(gradients, shares, strict=True) if g is not None]
            means.append(sum(found[1:], found[0]) if found else None)
        for parameter, mean in zip(parameters, self.group.mean_gradients(means, parameters), strict=True):
            parameter.grad = mean

    def _gradients(self, model: System, batch: Mapping[str, Tensor]) -> Gradients:
        item = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        valid = {sensor: item[f"{sensor}_valid"] for sensor in Sensor}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            output = model.train()(item["rgir"], item["ndsm"], item["available"])
            loss = self.loss(output, item["labels"], valid, self.judges)
        logged = {name: float(term.detach()) for name, term in loss.terms.items()}
        logged["total"] = float(loss.total.detach())
        # Asked for the network's parameters alone, so the adversarial term leaves the discriminators as they are.
        gradients = torch.autograd.grad(loss.total, list(model.parameters()), allow_unused=True)
        judge_gradients: tuple[Tensor | None, ...] = ()
        if self.judges is not None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                judge_loss = discriminator_loss(output, valid, self.judges)
            logged["discriminator"] = float(judge_loss.detach())
            judge_gradients = torch.autograd.grad(judge_loss, list(self.judges.parameters()), allow_unused=True)
        return Gradients(model=gradients, judges=judge_gradients, logged=logged)

    def start_from(self, weights: Mapping[str, Tensor], model: ModelConfig) -> list[str]:
        """Take weights and batch statistics of another run; the optimisers start anew.

        A model that differs in parts, say in its classes, takes those tensors whose name and shape it shares. A
        convolution that reads more channels than before takes what it knew of the first ones and hears nothing of the
        others yet: their weights start at zero. Where new channels come last, as ``relief`` does, the model answers as
        the old one did. Of pixels packed or standardised otherwise none is widened: its channels would mean something
        else.

        Args:
            weights: by name.
            model: what they are the weights of.

        Returns:
            The modules that keep a random tensor.

        Raises:
            ValueError: fewer than half of the model's numbers would come from ``weights``.
        """
        own = self.average.state_dict()
        known = {name: value for name, value in weights.items() if name in own}
        mine = self.preset.model
        if (model.packing, model.standardise) == (mine.packing, mine.standardise):
            known = {name: _widened(value, own[name].shape) for name, value in known.items()}
        fits = {name: value for name, value in known.items() if value.shape == own[name].shape}
        taken, total = (sum(value.numel() for value in part.values()) for part in (fits, own))
        if 2 * taken < total:
            raise ValueError(
                f"--init needs a checkpoint of much the same model: {taken} of {total} numbers fit; pass the preset "
                "and --model options that it was trained with"
            )
        for network in (*self.replicas, self.average):
            network.load_state_dict(fits, strict=False)
        return sorted({name.rpartition(".")[0] for name in own.keys() - fits.keys()})

    def state(self) -> dict[str, object]:
        """Everything a resumed run needs to go on exactly."""
        return {
            "done_steps": self.done_steps,
            "best_score": self.best_score,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "judges": self.judges.state_dict() if self.judges else None,
            "judge_optimizer": self.judge_optimizer.state_dict() if self.judge_optimizer else None,
            "rng": torch.get_rng_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        self.done_steps, self.best_score = state["done_steps"], state["best_score"]
        for replica in self.replicas:
            replica.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.judges is not None and self.judge_optimizer is not None:
            self.judges.load_state_dict(state["judges"])
            self.judge_optimizer.load_state_dict(state["judge_optimizer"])
        torch.set_rng_state(state["rng"])
