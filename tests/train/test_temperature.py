"""Confidence: the temperature that is fitted, what it does to graphs, and the checkpoint that ships."""

from dataclasses import replace

import pytest
import torch

from engine.contract.sensors import Scenario
from export.pack import training_of
from export.scenarios import scenario_module
from tests.train.scenes import toy_scene
from train import checkpoint, temperature
from train.checkpoint import BandStatistics, CheckpointInfo
from train.config import PRESETS
from train.data.procedural import FIRST_SEED
from train.systems import build
from train.temperature import PixelSample, calibration_error, confidences, fitted


def drawn(scale: float, seed: int, source: str = "a", pixels: int = 20_000) -> PixelSample:
    """Labels drawn from softmax(logits), then logits made ``scale`` times as sure as they should be."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(pixels, 6, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return PixelSample(source=source, logits=scale * logits, labels=labels)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_is_what_logits_were_multiplied_with(scale):
    assert fitted([drawn(scale, seed) for seed in range(2)]) == pytest.approx(scale, rel=0.03)


def test_calibration_error_is_the_distance_of_confidence_and_accuracy():
    logits = torch.tensor([[2.0, 0.0]] * 4)
    sure = float(torch.tensor([2.0, 0.0]).softmax(0)[0])
    assert calibration_error(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(abs(sure - 0.75), abs=1e-6)


def test_calibration_is_measured_on_scenes_that_it_was_not_fitted_on():
    (found,) = confidences(Scenario.FULL, [drawn(3.0, 0), drawn(3.0, 1)], 3.0)
    assert found.error_before > 0.15
    assert found.error_after < 0.02
    # fitted on the second scene alone, the first gets a temperature that is wrong for it
    (other,) = confidences(Scenario.FULL, [drawn(3.0, 0), drawn(1.0, 1)], 2.0)
    assert other.error_after > 0.1


def model_and_info():
    config = PRESETS["edge"].model
    torch.manual_seed(0)
    statistics = {"rgir": (BandStatistics(mean=100.0, std=40.0),) * 3, "ndsm": (BandStatistics(mean=2.0, std=3.0),)}
    info = CheckpointInfo(
        model=config, train=PRESETS["edge"].train, sensors=config.sensor_specs, statistics=statistics, dataset="",
        step=1, metrics={}, command="", tools={},
    )  # fmt: skip
    return build(config).eval(), info


def test_a_graph_divides_its_scenarios_logits_by_its_temperature():
    model, _ = model_and_info()
    rgir = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        logits, _ = model.forward_missing_ndsm(rgir)
        before = scenario_module(model, Scenario.MISSING_NDSM)(rgir)
        model.temperatures = {Scenario.MISSING_NDSM: 2.0}
        classes, _, probabilities = scenario_module(model, Scenario.MISSING_NDSM)(rgir)
        again, _ = model.forward_missing_ndsm(rgir)
    torch.testing.assert_close(probabilities, (logits / 2).softmax(1), atol=1e-6, rtol=1e-5)
    assert torch.equal(classes, before[0])
    assert torch.equal(again, logits)  # the model itself is as it was


def test_the_command_keeps_temperatures_with_half_the_bytes(tmp_path, capsys):
    model, info = model_and_info()
    path, out = tmp_path / "whole.safetensors", tmp_path / "shipped.safetensors"
    checkpoint.save(path, model.state_dict(), info)
    for seed in range(2):
        toy_scene(tmp_path / "cache", FIRST_SEED["validation"] + seed)
    words = [str(path), "--data", "synthetic:2", "--cache", str(tmp_path / "cache"), "--out", str(out), "--half"]
    assert temperature.main(words) == 0
    assert capsys.readouterr().out.count("calibration error") == 3
    found, known = checkpoint.load(out)
    assert set(known.temperatures) == set(Scenario)
    assert found.temperatures == known.temperatures
    assert [each.scenario for each in known.confidence] == [*Scenario]
    assert {each.temperature for each in known.confidence} == {*known.temperatures.values()}
    assert training_of(out, known, None).confidence == known.confidence, "what the manifest of an exported bundle holds"
    for seed in range(2):
        toy_scene(tmp_path / "cache", FIRST_SEED["test"] + seed)
    again = [str(out), *words[1:5], "--out", str(tmp_path / "judged.safetensors"), "--measure"]
    assert temperature.main(again) == 0
    _, judged = checkpoint.load(tmp_path / "judged.safetensors")
    assert judged.temperatures == known.temperatures, "nothing is fitted on what judges"
    assert {each.data for each in judged.confidence} == {"synthetic, test"}
    assert out.stat().st_size < 0.6 * path.stat().st_size
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-6)
        assert tensor.dtype == model.state_dict()[name].dtype


def test_a_system_without_a_last_layer_of_its_own_is_refused(tmp_path, capsys):
    _, info = model_and_info()
    config = replace(PRESETS["mmformer"].model, encoder_widths=(8, 8, 8, 8, 8), token_width=16, token_mlp=16)
    path = tmp_path / "other.safetensors"
    checkpoint.save(path, build(config).state_dict(), replace(info, model=config))
    assert temperature.main([str(path), "--data", "synthetic:1"]) == 2
    assert "needs system gemmnet" in capsys.readouterr().err
