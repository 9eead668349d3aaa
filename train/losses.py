"""CoLoss, one function per term (equation numbers: GEMMNet, DICTA 2025; see :mod:`train.model`).

Segmentation terms work from logits through log-softmax, never from a clamped probability. Labels are uint8 or
int64 [N, H, W]; 255 takes no part in any term.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.contract.sensors import Sensor
from train.config import ModelConfig, TrainConfig
from train.data.labels import IGNORE_INDEX
from train.system import SENSORS, SystemOutput


def segmentation_loss(logits: Tensor, labels: Tensor, balance: float = 0.0) -> Tensor:
    """L_seg = Dice + weighted soft cross-entropy (eq. 7).

    The class weights are ``1 - frequency`` within the batch, as in mmFormer (https://arxiv.org/abs/2206.02425).

    Args:
        logits: float [N, C, h, w]; may be coarser than the labels by a whole factor.
        labels: [N, H, W]; sampled at the logits' grid.
        balance: of :class:`train.config.LossWeights`; above 0 it gives the class weights.

    Returns:
        Scalar; 0 with zero gradient where no pixel is labelled.
    """
    logits = logits.float()  # under mixed precision the sums below need all their digits
    labels = labels_at(labels, logits.shape[-2:]).long()
    valid = labels != IGNORE_INDEX
    classes = logits.shape[1]
    target = F.one_hot(labels.masked_fill(~valid, 0), classes).movedim(-1, 1).to(logits.dtype)
    target = target * valid.unsqueeze(1)
    log_p = F.log_softmax(logits, dim=1)
    return dice_loss(log_p, target, valid) + weighted_cross_entropy(log_p, target, balance)


def labels_at(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Labels [N, H, W] at the centres of a coarser grid (h, w) that divides them."""
    factor = labels.shape[-2] // size[0]
    if (size[0] * factor, size[1] * factor) != tuple(labels.shape[-2:]):
        raise ValueError(f"logits {tuple(size)} must divide the labels {tuple(labels.shape[-2:])}")
    return labels[:, factor // 2 :: factor, factor // 2 :: factor]


def dice_loss(log_p: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - soft Dice over the batch, mean over the classes that occur in it (first term of eq. 7).

    Args:
        log_p: log-probabilities [N, C, H, W].
        target: one-hot [N, C, H, W], all zero where invalid.
        valid: bool [N, H, W].
    """
    p = log_p.exp() * valid.unsqueeze(1)
    sums = (0, 2, 3)
    count = target.sum(sums)
    dice = 2 * (p * target).sum(sums) / (p.sum(sums) + count).clamp_min(1)
    present = count > 0
    return ((1 - dice) * present).sum() / present.sum().clamp_min(1)


RAREST = 1e-3
"""Share below which a class gains no more weight: of a few pixels in a batch nothing should be made."""


def weighted_cross_entropy(log_p: Tensor, target: Tensor, balance: float = 0.0) -> Tensor:
    """Cross-entropy with class weights 1 - frequency, mean over valid pixels (second term of eq. 7).

    With ``balance`` b above 0 the weights go as frequency^-b instead, their mean over pixels as it was.
    """
    count = target.sum((0, 2, 3))
    total = count.sum().clamp_min(1)
    frequency = count / total
    weight = 1 - frequency
    if balance > 0:
        steep = frequency.clamp_min(RAREST) ** -balance
        weight = steep * (weight * frequency).sum() / (steep * frequency).sum().clamp_min(RAREST)
    return -((log_p * target).sum((0, 2, 3)) * weight).sum() / total


def reconstruction_l2(synthesised: Tensor, real: Tensor, valid: Tensor) -> Tensor:
    """L_rec of the autoencoder: mean squared L2 distance over valid pixels (eq. 8).

    Args:
        synthesised: [N, B, H, W], normalised units.
        real: [N, B, H, W].
        valid: bool [N, H, W]: where the real band was measured.
    """
    return _masked_mean((synthesised.float() - real).square(), valid)


def reconstruction_l1(synthesised: Tensor, real: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute distance over valid pixels: the L1 term of eq. 9. Shapes as :func:`reconstruction_l2`."""
    return _masked_mean((synthesised.float() - real).abs(), valid)


def adversarial_generator(fake_logits: Tensor) -> Tensor:
    """The generator's side of Pix2Pix (eq. 9): the discriminator should call its output real."""
    return F.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))


def adversarial_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's side of Pix2Pix (eq. 9), halved as in the paper's section 3.3."""
    real = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return (real + fake) / 2


def shared_distance(features: tuple[Tensor, Tensor], available: Tensor) -> Tensor:
    """Mean absolute distance of the shared features of samples that have both modalities (ShaSpec, section 3.2).

    Args:
        features: [N, C, h, w] of each modality.
        available: bool [N, 2].
    """
    both = available.all(dim=1)
    if not bool(both.any()):
        return features[0].new_zeros(())
    return (features[0][both] - features[1][both]).abs().mean()


def modality_classification(logits: tuple[Tensor, Tensor], available: Tensor) -> Tensor:
    """Cross-entropy of telling each specific feature's modality, absent ones left out (ShaSpec, section 3.2).

    Args:
        logits: [N, 2] of each modality.
        available: bool [N, 2].
    """
    flat = torch.cat(logits)
    target = torch.arange(len(logits), device=flat.device).repeat_interleave(len(available))
    return F.cross_entropy(flat[available.T.reshape(-1)], target[available.T.reshape(-1)])


def _masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    mask = valid.unsqueeze(1).to(values.dtype)
    return (values * mask).sum() / (mask.sum() * values.shape[1]).clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class CoLossTerms:
    """The weighted total that is minimised and the unweighted terms for the log."""

    total: Tensor
    terms: Mapping[str, Tensor]


class CoLoss(nn.Module):
    """L = L_seg(fused) + sum L_seg(u_1..u_4) + L_seg per modality + L_rec, weighted (eq. 6).

    A system that lacks an output lacks its term; the two terms of ShaSpec are added for a system that has theirs.
    """

    def __init__(self, model: ModelConfig, train: TrainConfig) -> None:
        super().__init__()
        self.weights = train.weights
        self.adversarial = model.generator == "cgan"

    def forward(
        self,
        output: SystemOutput,
        labels: Tensor,
        valid: Mapping[Sensor, Tensor],
        discriminators: nn.ModuleDict | None = None,
    ) -> CoLossTerms:
        """One step's loss of everything but the discriminators.

        Args:
            output: of a forward pass in training mode.
            labels: [N, H, W].
            valid: bool [N, H, W] by sensor: where it measured; false in holes that the data set filled, and
                everywhere in a scene without that sensor, which so has nothing to reconstruct.
            discriminators: for generator ``cgan``; the caller must not update them with this loss.
        """
        balance = self.weights.balance
        fused = segmentation_loss(output.logits, labels, balance)
        terms = {"fused": fused}
        total = self.weights.fused * fused
        unimodal = [
            (logits, labels.masked_fill(~output.available[:, i, None, None], IGNORE_INDEX))
            if output.unimodal_needs_sensor
            else (logits, labels)
            for i, logits in enumerate(output.unimodal_logits)
        ]
        for name, pairs, weight in (
            ("scales", [(logits, labels) for logits in output.scale_logits], self.weights.scales),
            ("unimodal", unimodal, self.weights.unimodal),
        ):
            if pairs and weight > 0:
                terms[name] = torch.stack([segmentation_loss(*pair, balance) for pair in pairs]).sum()
                total = total + weight * terms[name]
        weight = self.weights.adversarial if self.adversarial else self.weights.reconstruction
        if output.synthesised is not None and weight > 0:
            terms["reconstruction"] = self._reconstruction(output, valid, discriminators)
            total = total + weight * terms["reconstruction"]
        if output.shared_features is not None:
            terms["shared"] = shared_distance(output.shared_features, output.available)
            total = total + self.weights.shared * terms["shared"]
        if output.modality_logits is not None:
            terms["modality"] = modality_classification(output.modality_logits, output.available)
            total = total + self.weights.modality * terms["modality"]
        return CoLossTerms(total=total, terms=terms)

    def _reconstruction(
        self, output: SystemOutput, valid: Mapping[Sensor, Tensor], discriminators: nn.ModuleDict | None
    ) -> Tensor:
        loss = output.logits.new_zeros(())
        for pair in generated_pairs(output, valid):
            measured = valid[pair.sensor][pair.rows]
            if not self.adversarial:
                loss = loss + reconstruction_l2(pair.synthesised, pair.real, measured)
                continue
            if discriminators is None:
                raise ValueError("generator 'cgan' needs its discriminators, received None")
            fake = discriminators[pair.sensor](pair.condition, pair.synthesised)
            l1 = reconstruction_l1(pair.synthesised, pair.real, measured)
            loss = loss + adversarial_generator(fake) + self.weights.l1 * l1
        return loss


@dataclass(frozen=True, kw_only=True)
class GeneratedPair:
    """What one generator made, beside the truth, for the samples that have both."""

    sensor: Sensor
    rows: Tensor
    condition: Tensor
    real: Tensor
    synthesised: Tensor


def generated_pairs(output: SystemOutput, valid: Mapping[Sensor, Tensor]) -> list[GeneratedPair]:
    """The (rgir, ndsm) pairs of a batch: samples whose source is available and whose target was measured anywhere.

    A sensor without such a sample is left out.
    """
    assert output.synthesised is not None
    pairs = []
    for i, sensor in enumerate(SENSORS):
        rows = (output.available[:, 1 - i] & valid[sensor].flatten(1).any(dim=1)).nonzero().squeeze(1)
        if len(rows):
            pairs.append(
                GeneratedPair(
                    sensor=sensor,
                    rows=rows,
                    condition=output.normalised[1 - i][rows],
                    real=output.normalised[i][rows],
                    synthesised=output.synthesised[i][rows],
                )
            )
    return pairs


def discriminator_loss(output: SystemOutput, valid: Mapping[Sensor, Tensor], discriminators: nn.ModuleDict) -> Tensor:
    """Sum over both sensors of the discriminators' loss (eq. 9); the generators get no gradient from it."""
    loss = output.logits.new_zeros(())
    for pair in generated_pairs(output, valid):
        judge = discriminators[pair.sensor]
        fake = judge(pair.condition, pair.synthesised.detach())
        loss = loss + adversarial_discriminator(judge(pair.condition, pair.real), fake)
    return loss
