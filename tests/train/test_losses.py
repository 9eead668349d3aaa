import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.contract.sensors import Sensor
from train.config import PRESETS, LossWeights
from train.losses import (
    CoLoss,
    dice_loss,
    discriminator_loss,
    generated_pairs,
    labels_at,
    modality_classification,
    reconstruction_l1,
    reconstruction_l2,
    segmentation_loss,
    shared_distance,
    weighted_cross_entropy,
)
from train.model import GEMMNet, discriminators
from train.systems import build

NANO = PRESETS["nano"]


def one_hot(labels: torch.Tensor, classes: int = 6) -> torch.Tensor:
    return F.one_hot(labels, classes).movedim(-1, 1).float()


def test_dice_equals_its_definition_summed_over_the_batch():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 6, 5, 7), torch.randint(0, 4, (2, 5, 7))  # classes 4 and 5 never occur
    p, t = logits.softmax(1).double().numpy(), one_hot(labels).double().numpy()
    dice = [2 * (p[:, c] * t[:, c]).sum() / (p[:, c].sum() + t[:, c].sum()) for c in range(4)]
    valid = torch.ones(2, 5, 7, dtype=torch.bool)
    assert float(dice_loss(logits.log_softmax(1), one_hot(labels), valid)) == pytest.approx(1 - np.mean(dice), abs=1e-6)


def test_cross_entropy_weights_each_class_by_one_minus_its_frequency():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 6, 5, 7), torch.randint(0, 6, (2, 5, 7))
    weight = 1 - torch.bincount(labels.flatten(), minlength=6) / labels.numel()
    expected = F.cross_entropy(logits, labels, weight=weight, reduction="none").mean()
    torch.testing.assert_close(weighted_cross_entropy(logits.log_softmax(1), one_hot(labels)), expected)


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_balanced_weights_go_as_a_power_of_the_frequency_and_weigh_as_much_in_all(balance):
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 3, 10, 10), torch.zeros(1, 10, 10, dtype=torch.long)
    labels[0, :3], labels[0, 3, :4] = 1, 2  # 66, 30 and 4 in a hundred
    share = torch.tensor([0.66, 0.30, 0.04])
    weight = share**-balance
    weight *= ((1 - share) * share).sum() / (weight * share).sum()
    expected = F.cross_entropy(logits, labels, weight=weight, reduction="none").mean()
    torch.testing.assert_close(
        weighted_cross_entropy(logits.log_softmax(1), one_hot(labels, 3), balance=balance), expected
    )


def test_balance_bounds_what_a_single_pixel_weighs():
    labels = torch.zeros(1, 100, 100, dtype=torch.long)
    labels[0, 0, 0] = 1
    logits = torch.zeros(1, 2, 100, 100).requires_grad_()
    weighted_cross_entropy(logits.log_softmax(1), one_hot(labels, 2), balance=1.0).backward()
    pull = logits.grad[0, 1].abs()
    assert pull[0, 0] / pull[1, 1] == pytest.approx(1000, rel=1e-2)  # not the 9999 of its frequency


def test_unknown_pixels_get_no_gradient():
    logits = torch.randn(1, 6, 4, 4, requires_grad=True)
    labels = torch.randint(0, 6, (1, 4, 4))
    labels[0, :2] = 255
    segmentation_loss(logits, labels).backward()
    assert float(logits.grad[0, :, :2].abs().max()) == 0
    assert float(logits.grad[0, :, 2:].abs().min()) > 0


def test_a_tile_without_any_label_costs_nothing():
    logits = torch.randn(1, 6, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(logits.grad.abs().max()) == 0


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_saturated_logits_give_a_finite_loss_and_gradient(size):
    logits = (one_hot(torch.zeros(1, 4, 4, dtype=torch.long)) * size).requires_grad_()
    loss = segmentation_loss(logits, torch.ones(1, 4, 4, dtype=torch.long))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_a_certain_right_answer_costs_nothing_and_a_wrong_one_more_than_a_guess():
    labels = torch.arange(4).view(1, 2, 2)
    right = one_hot(labels) * 50
    assert float(segmentation_loss(right, labels)) == pytest.approx(0, abs=1e-5)
    assert segmentation_loss(right.roll(1, 1), labels) > segmentation_loss(right * 0, labels)


def test_coarse_logits_meet_the_labels_at_their_pixel_centres():
    labels = torch.arange(64).view(1, 8, 8)
    assert labels_at(labels, (2, 2)).flatten().tolist() == [18, 22, 50, 54]
    with pytest.raises(ValueError, match="must divide"):
        labels_at(labels, (3, 3))


def test_reconstruction_leaves_unmeasured_pixels_out():
    real, made = torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2, 2), 3.0)
    made[0, :, 0, 0] = 1e6
    valid = torch.tensor([[[False, True], [True, True]]])
    assert float(reconstruction_l2(made, real, valid)) == pytest.approx(9)
    assert float(reconstruction_l1(made, real, valid)) == pytest.approx(3)
    assert float(reconstruction_l2(made, real, torch.zeros_like(valid))) == 0


@pytest.fixture(scope="module")
def forward():
    torch.manual_seed(0)
    model = GEMMNet(NANO.model).train()
    rgir, ndsm = torch.randint(0, 256, (3, 3, 64, 64)), torch.rand(3, 1, 64, 64) * 10
    output = model(rgir, ndsm, torch.tensor([[True, True], [True, False], [False, True]]))
    return (
        model,
        output,
        torch.randint(0, 6, (3, 64, 64)),
        dict.fromkeys(Sensor, torch.ones(3, 64, 64, dtype=torch.bool)),
    )


def test_coloss_is_the_weighted_sum_of_its_terms(forward):
    _, output, labels, valid = forward
    weights = LossWeights(fused=0.7, scales=0.3, unimodal=0.2, reconstruction=1.9)
    found = CoLoss(NANO.model, replace(NANO.train, weights=weights))(output, labels, valid)
    assert set(found.terms) == {"fused", "scales", "unimodal", "reconstruction"}
    torch.testing.assert_close(found.total, sum(getattr(weights, name) * term for name, term in found.terms.items()))
    scales = sum(segmentation_loss(logits, labels) for logits in output.scale_logits)
    torch.testing.assert_close(found.terms["scales"], scales)


@pytest.mark.parametrize("name", ["scales", "unimodal", "reconstruction"])
def test_a_weight_of_zero_removes_its_term(forward, name):
    _, output, labels, valid = forward
    weights = replace(LossWeights(), **{name: 0.0})
    found = CoLoss(NANO.model, replace(NANO.train, weights=weights))(output, labels, valid)
    assert name not in found.terms


def test_every_training_parameter_learns_from_coloss(forward):
    model, output, labels, valid = forward
    loss = CoLoss(NANO.model, NANO.train)(output, labels, valid).total
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    assert [name for name, gradient in zip(names, gradients, strict=True) if gradient is None] == []


def test_a_generator_is_judged_on_samples_whose_source_is_alive_given_that_source(forward):
    _, output, _, valid = forward
    rgir, ndsm = generated_pairs(output, valid)
    assert (rgir.sensor, ndsm.sensor) == (Sensor.RGIR, Sensor.NDSM)
    assert (rgir.rows.tolist(), ndsm.rows.tolist()) == ([0, 2], [0, 1])
    torch.testing.assert_close(rgir.condition, output.normalised[1][[0, 2]])  # nDSM, the available one
    torch.testing.assert_close(ndsm.condition, output.normalised[0][[0, 1]])
    torch.testing.assert_close(ndsm.real, output.normalised[1][[0, 1]])


def test_a_sample_that_never_had_the_target_is_no_example_of_it(forward):
    _, output, _, valid = forward
    rgir_valid = valid[Sensor.RGIR].clone()
    rgir_valid[0] = False
    rgir, ndsm = generated_pairs(output, {**valid, Sensor.RGIR: rgir_valid})
    assert (rgir.rows.tolist(), ndsm.rows.tolist()) == ([2], [0, 1])


def test_discriminator_loss_does_not_reach_the_generators(forward):
    model, output, _, valid = forward
    judges = discriminators(NANO.model)
    loss = discriminator_loss(output, valid, judges)
    into_model = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in into_model)
    assert all(gradient is not None for gradient in torch.autograd.grad(loss, list(judges.parameters())))


def test_shared_features_are_drawn_together_only_where_both_sensors_are():
    a, b = torch.zeros(3, 2, 4, 4), torch.ones(3, 2, 4, 4)
    b[1], b[2] = 100.0, 3.0
    available = torch.tensor([[True, True], [True, False], [True, True]])
    assert float(shared_distance((a, b), available)) == pytest.approx(2.0)
    assert float(shared_distance((a, b), torch.tensor([[True, False]] * 3))) == 0


def test_modality_classification_leaves_absent_modalities_out():
    logits = torch.tensor([[2.0, 0.0], [50.0, -50.0]]), torch.tensor([[0.0, 1.0], [9.0, 0.0]])
    available = torch.tensor([[True, True], [False, True]])
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(9))]
    assert float(modality_classification(logits, available)) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("preset", "terms"),
    [
        ("ae", {"fused", "reconstruction"}),
        ("mmformer", {"fused", "scales", "unimodal"}),
        ("shaspec", {"fused", "shared", "modality"}),
    ],
)
def test_each_system_is_trained_by_its_own_terms_and_they_reach_all_its_parameters(preset, terms):
    chosen = PRESETS[preset]
    torch.manual_seed(0)
    model = build(replace(chosen.model, token_width=32, token_heads=4, position_grid=4)).train()
    rgir, ndsm = torch.randint(0, 256, (3, 3, 64, 64)), torch.rand(3, 1, 64, 64) * 10
    output = model(rgir, ndsm, torch.tensor([[True, True], [True, False], [False, True]]))
    valid = dict.fromkeys(Sensor, torch.ones(3, 64, 64, dtype=torch.bool))
    found = CoLoss(chosen.model, chosen.train)(output, torch.randint(0, 6, (3, 64, 64)), valid)
    assert set(found.terms) == terms
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(found.total, list(named.values()), allow_unused=True)
    idle = {name.split(".")[0] for name, g in zip(named, gradients, strict=True) if g is None}
    assert idle == ({"scale_heads", "unimodal_heads"} if preset == "ae" else set())


def test_a_missing_sensor_gets_no_unimodal_loss_where_nothing_is_synthesised():
    torch.manual_seed(0)
    model = build(replace(PRESETS["mmformer"].model, token_width=32, token_heads=4, position_grid=4)).train()
    rgir, ndsm = torch.randint(0, 256, (2, 3, 64, 64)), torch.rand(2, 1, 64, 64) * 10
    output = model(rgir, ndsm, torch.tensor([[True, False], [True, False]]))
    labels = torch.randint(0, 6, (2, 64, 64))
    valid = dict.fromkeys(Sensor, torch.ones(2, 64, 64, dtype=torch.bool))
    found = CoLoss(PRESETS["mmformer"].model, PRESETS["mmformer"].train)(output, labels, valid)
    torch.testing.assert_close(found.terms["unimodal"], segmentation_loss(output.unimodal_logits[0], labels))


def test_cgan_without_discriminators_is_refused(forward):
    _, output, labels, valid = forward
    with pytest.raises(ValueError, match="needs its discriminators"):
        CoLoss(replace(NANO.model, generator="cgan"), NANO.train)(output, labels, valid)
