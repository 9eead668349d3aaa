"""What a model learns from images that nobody labelled: the parts of :mod:`train.adapt`.

A teacher, the average of the student's weights, labels an image; the student learns those labels on the same image
under other light, with objects of procedural scenes pasted in (mean teacher, https://arxiv.org/abs/1703.01780;
ClassMix, https://arxiv.org/abs/2007.07936; DACS, https://arxiv.org/abs/2007.08702). Left alone such a loop runs away:
a class that is called a little too often becomes surer of itself each round. Three rules hold it:

- *Prior*: probabilities are weighted so that over many images each class is called about as often as a prior says
  (distribution alignment, https://arxiv.org/abs/1911.09785).
- *Thresholds*: a class is believed from a confidence of its own on, lower for one that is seldom sure
  (https://arxiv.org/abs/2205.07246).
- *NDVI*: what is green is no road, house or car; what is not is no tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.contract.sensors import Scenario
from train.data.labels import IGNORE_INDEX, LabelSet
from train.predict import predictor
from train.system import System, availability

SEALED, PLANTS = ("impervious surface", "building", "car"), ("tree",)
"""Names of classes that are never green, and of those that always are."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a pseudo-label has to pass.

    Raises:
        ValueError: a value is out of its range.
    """

    threshold: float = 0.8
    """Confidence from which the surest class is believed; others from a share of it, at least ``floor`` of it."""
    floor: float = 0.6
    prior_strength: float = 0.5
    """Exponent of the weighting; 0 leaves probabilities as they are, 1 enforces the prior."""
    green: float | None = 0.25
    """NDVI from which nothing sealed grows; None to ask no such thing. Of tiles with labels, 98 % of roads, houses and
    cars lie below."""
    bare: float = 0.0
    """NDVI below which no tree stands."""
    memory: float = 0.99
    """Of the running means."""

    def __post_init__(self) -> None:
        for name in ("threshold", "floor", "prior_strength", "memory"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, received {getattr(self, name)}")


def ndvi(rgir: Tensor) -> Tensor:
    """(NIR - red) / (NIR + red) of raw RGIR [N, 3, H, W] -> [N, H, W], -1..1; 0 where both are 0."""
    nir, red = rgir[:, 0].float(), rgir[:, 1].float()
    return (nir - red) / (nir + red).clamp_min(1)


class PseudoLabels:
    """Turns a teacher's probabilities into labels, with a running memory of what it has called so far.

    Args:
        prior: share of each class, [C], sums to 1.
        labels: the classes.
        rules: what a label has to pass.
    """

    def __init__(self, prior: Tensor, labels: LabelSet, rules: Rules) -> None:
        self.prior, self.rules = prior, rules
        self.called = prior.clone()
        """Running share of each class in the teacher's probabilities, before they are weighted."""
        self.sureness = torch.full_like(prior, rules.threshold)
        """Running confidence of the pixels that are called a class."""
        self.sealed = torch.tensor([name in SEALED for name in labels.names])
        self.plants = torch.tensor([name in PLANTS for name in labels.names])

    def thresholds(self) -> Tensor:
        """[C]: confidence from which each class is believed."""
        share = (self.sureness / self.sureness.max()).clamp_min(self.rules.floor)
        return self.rules.threshold * share

    def label(self, probabilities: Tensor, rgir: Tensor) -> Tensor:
        """Labels of a batch; remembers it.

        Args:
            probabilities: [N, C, H, W] of the teacher.
            rgir: raw, [N, 3, H, W], as the teacher saw it; its NDVI is ignored where it is black.

        Returns:
            int64 [N, H, W], 255 where nothing is believed.
        """
        rules = self.rules
        self.called.lerp_(probabilities.mean((0, 2, 3)), 1 - rules.memory)
        weight = (self.prior / self.called.clamp_min(1e-4)) ** rules.prior_strength
        weighted = probabilities * weight.view(1, -1, 1, 1)
        weighted = weighted / weighted.sum(1, keepdim=True)
        confidence, classes = weighted.max(1)
        count = torch.bincount(classes.flatten(), minlength=len(self.prior)).float()
        total = torch.zeros_like(self.prior).index_add_(0, classes.flatten(), confidence.flatten())
        seen = count > 0
        mean = total / count.clamp_min(1)
        self.sureness[seen] = self.sureness[seen].lerp(mean[seen], 1 - rules.memory)
        believed = confidence >= self.thresholds()[classes]
        if rules.green is not None:
            index, lit = ndvi(rgir), rgir.amax(1) > 0
            believed &= ~(lit & (index > rules.green) & self.sealed[classes])
            believed &= ~(lit & (index < rules.bare) & self.plants[classes])
        return classes.masked_fill(~believed, IGNORE_INDEX)


def measured(batch: Mapping[str, Tensor]) -> Tensor:
    """Which sensors each sample of a batch has anything of, bool [N, 2] as ``available``; RGIR where it has neither."""
    ndsm = batch["ndsm_valid"].flatten(1).any(1)
    rgir = batch["rgir_valid"].flatten(1).any(1) | ~ndsm
    return torch.stack((rgir, ndsm), 1)


@torch.no_grad()
def teach(model: System, rgir: Tensor, ndsm: Tensor, seen: Tensor) -> Tensor:
    """A model's probabilities, each sample by the graph for its sensors: [N, C, H, W].

    Args:
        model: in eval mode.
        rgir: raw [N, 3, H, W].
        ndsm: metres [N, 1, H, W].
        seen: bool [N, 2]: the sensors to look at, in the order of :func:`train.system.availability`.
    """
    device = next(model.parameters()).device
    found: Tensor | None = None
    for scenario in Scenario:
        at = (seen == torch.tensor(availability(scenario))).all(1).nonzero().squeeze(1)
        if len(at):
            logits, _ = predictor(model, scenario)(rgir[at].float().to(device), ndsm[at].to(device))
            if found is None:
                found = torch.zeros(len(seen), *logits.shape[1:])
            found[at] = logits.float().softmax(1).cpu()
    assert found is not None
    return found


def class_mix(
    target: Mapping[str, Tensor], source: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Paste half of the classes of each source sample into the target sample beside it, pixels and labels together.

    Heights are pasted where both have them; where the target has none, the mixture has none.

    Args:
        target: an item of :class:`train.data.dataset.CropDataset`, batched, its labels pseudo-labels.
        source: of the same size.
        generator: draws the classes.
    """
    masks = []
    for labels in source["labels"].long():
        present = labels.unique()
        present = present[present != IGNORE_INDEX]
        chosen = present[torch.randperm(len(present), generator=generator)[: (len(present) + 1) // 2]]
        masks.append(torch.isin(labels, chosen))
    mask = torch.stack(masks)
    mixed = dict(target)
    for name in ("rgir", "ndsm"):
        mixed[name] = torch.where(mask[:, None], source[name], target[name])
    for name in ("rgir_valid", "ndsm_valid", "labels"):
        mixed[name] = torch.where(mask, source[name].to(target[name].dtype), target[name])
    without = ~target["ndsm_valid"].flatten(1).any(1)
    mixed["ndsm_valid"] = mixed["ndsm_valid"] & ~without[:, None, None]
    return mixed


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How much a model agrees with itself on images without labels: a score that needs none."""

    agreement: float
    """Share of pixels whose class stays when the image is turned and lit otherwise, 0..1."""
    drift: float
    """Kullback-Leibler divergence of the classes called from the prior, in nats; at least 0."""

    @property
    def score(self) -> float:
        """Higher is better. A model that calls everything road agrees with itself as well: hence the drift."""
        return self.agreement - self.drift

    def __str__(self) -> str:
        return f"agrees with itself on {self.agreement:.1%}, drift {self.drift:.3f}, together {self.score:.3f}"


@torch.no_grad()
def stability(model: System, batches: list[dict[str, Tensor]], prior: Tensor) -> Stability:
    """Of a model in eval mode, over items with ``rgir_weak``: as measured, against turned by 180 degrees and relit."""
    same = pixels = 0
    called = torch.zeros_like(prior)
    for batch in batches:
        seen = measured(batch)
        plain = teach(model, batch["rgir_weak"], batch["ndsm_weak"], seen)
        turned = teach(model, batch["rgir"].flip(-1, -2), batch["ndsm_weak"].flip(-1, -2), seen).flip(-1, -2)
        same += int((plain.argmax(1) == turned.argmax(1)).sum())
        pixels += plain[:, 0].numel()
        called += plain.mean((0, 2, 3)) * len(plain)
    called = (called / called.sum()).clamp_min(1e-6)
    return Stability(agreement=same / pixels, drift=float((called * (called / prior.clamp_min(1e-6)).log()).sum()))


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How much maps resemble those that the first model made from both sensors: a score that needs no labels."""

    agreement: Mapping[Scenario, float]
    """Share of pixels with the same class, 0..1."""

    @property
    def score(self) -> float:
        """Higher is better: what one sensor gains on the best map there is, less what both lose of it."""
        return sum(self.agreement.values()) / len(self.agreement)

    def __str__(self) -> str:
        shares = ", ".join(f"{scenario} {share:.1%}" for scenario, share in self.agreement.items())
        return f"agrees with the first map from both sensors: {shares}; mean {self.score:.3f}"


class FirstMaps:
    """What a model maps from both sensors, to hold later models to.

    Args:
        model: the first, in eval mode.
        batches: items with ``rgir_weak``; samples that lack a sensor are left out.
    """

    def __init__(self, model: System, batches: Sequence[Mapping[str, Tensor]]) -> None:
        names = ("rgir_weak", "ndsm_weak", "rgir_valid", "ndsm_valid")
        chosen = [(batch, measured(batch).all(1)) for batch in batches]
        self._samples = [{name: batch[name][both] for name in names} for batch, both in chosen if both.any()]
        self._maps = [self._map(model, sample, Scenario.FULL) for sample in self._samples]

    def __bool__(self) -> bool:
        return bool(self._samples)

    def fidelity(self, model: System) -> Fidelity:
        """Of a model in eval mode."""
        same, pixels = dict.fromkeys(Scenario, 0), 0
        for sample, first in zip(self._samples, self._maps, strict=True):
            seen = sample["rgir_valid"] & sample["ndsm_valid"]
            pixels += int(seen.sum())
            for scenario in Scenario:
                same[scenario] += int((seen & (self._map(model, sample, scenario) == first)).sum())
        return Fidelity(agreement={scenario: count / max(pixels, 1) for scenario, count in same.items()})

    @staticmethod
    def _map(model: System, sample: Mapping[str, Tensor], scenario: Scenario) -> Tensor:
        sensors = torch.tensor(availability(scenario)).expand(len(sample["rgir_weak"]), 2)
        return teach(model, sample["rgir_weak"], sample["ndsm_weak"], sensors).argmax(1)
