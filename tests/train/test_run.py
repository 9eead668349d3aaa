import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.contract.sensors import Scenario, Sensor
from tests.train.scenes import toy_scene
from train import checkpoint, evaluate, run
from train import predict as predict_module
from train.checkpoint import CheckpointInfo
from train.config import PRESETS, LossWeights, Preset, TrainConfig
from train.data.augment import augment_height
from train.data.procedural import FIRST_SEED
from train.distributed import Group
from train.system import availability
from train.trainer import Trainer, TrainingDivergedError, learning_rate, update_average

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    found = tmp_path_factory.mktemp("cache")
    for seed in (0, 1, FIRST_SEED["validation"], FIRST_SEED["test"]):
        toy_scene(found, seed)
    return found


def options(cache, out, *more) -> list[str]:
    fixed = "--preset nano --synthetic 2 --validation-scenes 1 --steps 4 --batch 2 --crop 64 --validate-every 2"
    return [*fixed.split(), "--workers", "0", "--threads", "1", "--cache", str(cache), "--out", str(out), *more]


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert run.main(options(cache, out)) == 0
    return out


def batch(n: int = 4, side: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (n, side // 8, side // 8), generator=generator, dtype=torch.uint8)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return {
        "rgir": torch.stack([labels * 40, labels * 20, 255 - labels * 30], 1),
        "ndsm": labels[:, None].float() * 2,
        "rgir_valid": torch.ones_like(labels, dtype=torch.bool),
        "ndsm_valid": torch.ones_like(labels, dtype=torch.bool),
        "labels": labels,
        "available": torch.tensor([availability(list(Scenario)[i % 3]) for i in range(n)]),
    }


def test_a_crop_of_flat_ground_does_not_take_the_step_for_itself():
    trainer = Trainer(PRESETS["paper"], CPU)

    def gradient_norm(height: np.ndarray) -> float:
        trainer.done_steps = 0
        return trainer.step(batch() | {"ndsm": torch.from_numpy(height)})["gradient_norm"]

    flat = np.zeros((64, 64), np.float32)
    usual = gradient_norm(batch()["ndsm"].numpy())
    augmented = [augment_height(flat, np.random.default_rng(seed)) for seed in range(4)]
    assert gradient_norm(np.stack(augmented)[:, None]) < 10 * usual
    with pytest.raises(TrainingDivergedError, match="must stay finite"):
        gradient_norm(np.stack([flat] * 4)[:, None])


def test_a_run_leaves_checkpoints_that_describe_themselves(finished):
    model, info = checkpoint.load(finished / "best.safetensors")
    assert not model.training
    assert info.model == PRESETS["nano"].model
    assert info.train.steps == 4
    assert info.step in (2, 4)
    assert set(info.metrics) == set(Scenario)
    assert [spec.sensor for spec in info.sensors] == list(Sensor)
    assert [len(info.statistics[sensor]) for sensor in Sensor] == [3, 1]
    assert info.command.startswith("python -m train.run --preset nano")
    readable = json.loads((finished / "best.json").read_text())
    assert readable["step"] == info.step
    assert readable["tools"]["torch"] == torch.__version__
    assert list(finished.glob(".*")) == []


INTERRUPTED = """
import os, signal, sys
import torch
from train import run
from train.trainer import Trainer

torch.set_num_threads(1)
step = Trainer.step

def interrupted_step(trainer, samples):
    if trainer.done_steps == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return step(trainer, samples)

Trainer.step = interrupted_step
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_stopped_by_ctrl_c_resumes_to_the_same_weights(cache, finished, tmp_path):
    """The signal goes to a process of its own: threads of other tests' libraries must not meet it."""
    out = tmp_path / "stopped"
    command = [sys.executable, "-c", INTERRUPTED, *options(cache, out)]
    stopped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert stopped.returncode == 130, stopped.stderr
    assert "--resume" in stopped.stderr
    assert checkpoint.load(out / "last.safetensors")[1].step == 3
    assert run.main(options(cache, out, "--resume")) == 0
    expected = safetensors.torch.load_file(finished / "last.safetensors")
    found = safetensors.torch.load_file(out / "last.safetensors")
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_a_finished_run_is_not_overwritten(cache, finished, capsys):
    assert run.main(options(cache, finished)) == 2
    assert "add --resume" in capsys.readouterr().err


def test_resuming_with_other_options_names_the_difference(cache, finished, capsys):
    assert run.main(options(cache, finished, "--resume", "--lr", "0.5")) == 2
    assert "lr: was 0.002, now 0.5" in capsys.readouterr().err


def test_resuming_with_other_data_names_the_difference(cache, finished, tmp_path, capsys):
    assert run.main(options(cache, finished, "--resume", "--synthetic", "1")) == 2
    assert "needs the data of the first run" in capsys.readouterr().err
    assert run.main(options(cache, finished, "--resume", "--zoom", "1-2")) == 2
    assert "zoom of" in capsys.readouterr().err
    other = Path(shutil.copytree(cache, tmp_path / "cache"))
    heights = sorted(other.rglob("ndsm.npy"))
    labels = sorted(other.rglob("labels.npy"))
    for path in labels:  # labels may change: those that came meanwhile are used
        np.save(path, np.load(path)[:, ::-1])
    assert run.main(options(other, finished, "--resume")) == 0
    np.save(heights[0], np.load(heights[0]) + np.float16(1))
    assert run.main(options(other, finished, "--resume")) == 2
    message = capsys.readouterr().err
    assert "has changed: bring it back" in message
    assert message.rstrip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_one_bit_of_a_saved_state_is_never_resumed_from(finished, tmp_path, place):
    """torch does not look at the checksums of its own archive."""
    content = bytearray((finished / "resume.pt").read_bytes())
    checkpoint.load_state(finished / "resume.pt", CPU)
    content[int(place * len(content))] ^= 1
    (tmp_path / "resume.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"resume\.pt is damaged .*not what was written"):
        checkpoint.load_state(tmp_path / "resume.pt", CPU)


def test_resuming_what_was_never_started_is_refused(cache, tmp_path, capsys):
    assert run.main(options(cache, tmp_path / "new", "--resume")) == 2
    assert "resume.pt" in capsys.readouterr().err


def test_a_new_run_starts_from_the_weights_of_another(cache, finished, tmp_path):
    initial, _ = checkpoint.load(finished / "best.safetensors")
    prepared = run.prepare(run.parse(options(cache, tmp_path, "--init", str(finished / "best.safetensors"))), "")
    for model in (prepared.trainer.model, prepared.trainer.average):
        torch.testing.assert_close(model.state_dict(), initial.state_dict(), atol=0, rtol=0)
    assert prepared.trainer.done_steps == 0


def test_a_model_that_differs_in_parts_takes_the_weights_that_fit(cache, finished, tmp_path, caplog):
    initial, _ = checkpoint.load(finished / "best.safetensors")
    arguments = options(cache, tmp_path, "--init", str(finished / "best.safetensors"), "--model", '{"token_mlp": 32}')
    with caplog.at_level("INFO"):
        prepared = run.prepare(run.parse(arguments), "")
    told = "\n".join(caplog.messages)
    assert "token_mlp: was 256, now 32" in told
    assert "fusion.mixer.layers.0.mlp.0" in told
    assert "head" not in told
    found, given = prepared.trainer.average.state_dict(), initial.state_dict()
    torch.testing.assert_close(found["head.weight"], given["head.weight"], atol=0, rtol=0)
    assert found["fusion.mixer.layers.0.mlp.0.weight"].shape[0] == 32


def test_a_model_that_reads_more_channels_first_answers_as_the_old_one():
    edge = PRESETS["edge"]
    known = replace(edge.model, relief=False)
    old = Trainer(replace(edge, model=known), CPU).average.eval()
    trainer = Trainer(edge, CPU)
    assert trainer.start_from(old.state_dict(), known) == []
    new, samples = trainer.average.eval(), batch(1)
    bands = samples["rgir"].float(), samples["ndsm"]
    with torch.no_grad():
        torch.testing.assert_close(new.forward_full(*bands), old.forward_full(*bands))


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"stem_stride": 2}, {"encoder.rgir.stages.0.enter.0", "encoder.ndsm.stages.0.enter.0", "head"}),
        ({"standardise": False}, {"encoder.rgir.stages.0.enter.0", "generator.ndsm.encoder.stages.0.enter.0"}),
    ],
)
def test_channels_that_meant_something_else_are_not_taken_for_the_first_of_more(change, anew):
    edge = PRESETS["edge"]
    other = replace(edge.model, **change)
    weights = Trainer(replace(edge, model=other), CPU).average.state_dict()
    assert anew <= set(Trainer(edge, CPU).start_from(weights, other))


def test_starting_from_quite_another_model_is_refused(cache, finished, tmp_path, capsys):
    arguments = options(cache, tmp_path, "--init", str(finished / "best.safetensors"), "--preset", "shaspec")
    assert run.main(arguments) == 2
    assert "much the same model" in capsys.readouterr().err


def test_a_crop_that_does_not_fit_the_model_is_refused(cache, tmp_path, capsys):
    assert run.main(options(cache, tmp_path / "new", "--crop", "40")) == 2
    assert "multiple of 32, received 40" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "changes", "named"),
    [
        ("--model", '{"token_dpeth": 2}', "ModelConfig: no such field: token_dpeth"),
        ("--model", '{"token_depth": "two"}', "Expected `int`"),
        ("--model", "{", "--model takes a JSON object"),
        ("--loss", '{"unimodel": 0}', "LossWeights: no such field: unimodel"),
        ("--loss", '{"unimodal": -1}', "loss weight unimodal must be at least 0, received -1"),
    ],
)
def test_a_model_or_loss_that_cannot_be_is_refused(cache, tmp_path, capsys, option, changes, named):
    assert run.main(options(cache, tmp_path / "new", option, changes)) == 2
    assert named in capsys.readouterr().err


def test_fields_of_model_and_loss_can_be_changed_by_hand(cache, tmp_path):
    words = ["--model", '{"token_depth": 2, "encoder_widths": [16, 24, 48, 96, 64]}', "--loss", '{"unimodal": 0}']
    given = run.parse(options(cache, tmp_path, *words))
    found, nano = run.settings(given, run.mix_of(given)), PRESETS["nano"]
    assert found.model == replace(nano.model, token_depth=2, encoder_widths=(16, 24, 48, 96, 64))
    assert found.train.weights == replace(nano.train.weights, unimodal=0.0)


def test_a_diverging_run_stops_with_what_to_do(cache, tmp_path, capsys):
    assert run.main(options(cache, tmp_path / "diverging", "--lr", "1e30")) == 1
    message = capsys.readouterr().err
    assert "must stay finite" in message
    assert "lower --lr" in message


def test_training_fits_a_batch_in_every_scenario():
    preset = replace(PRESETS["nano"], train=TrainConfig(steps=25, batch=3, crop_px=64, lr=5e-3))
    trainer, samples = Trainer(preset, CPU), batch(3)
    losses = [trainer.step(samples)["total"] for _ in range(25)]
    assert losses[-1] < losses[0] / 2
    with torch.no_grad():
        output = trainer.model.train()(samples["rgir"], samples["ndsm"], samples["available"])
    accuracy = (output.logits.argmax(1) == samples["labels"]).float().mean((1, 2))
    assert accuracy.min() > 0.8


def test_threads_give_the_mean_gradient_of_their_parts():
    trainer, samples = Trainer(PRESETS["nano"], CPU, threads=2), batch(4)
    halves = [{name: tensor[part] for name, tensor in samples.items()} for part in (slice(2), slice(2, 4))]
    alone = [trainer._gradients(trainer.replicas[0], half).model for half in halves]
    names = [name for name, _ in trainer.model.named_parameters()]
    expected = {name: sum(g for g in pair if g is not None) / 2 for name, *pair in zip(names, *alone, strict=True)}
    norm = torch.stack([g.square().sum() for g in expected.values()]).sum().sqrt()
    logged = trainer.step(samples)
    assert logged["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)
    shared = zip(trainer.replicas[0].parameters(), trainer.replicas[1].parameters(), strict=True)
    assert all(a is b for a, b in shared)


@pytest.mark.slow
def test_two_processes_train_as_two_threads_do(cache, tmp_path):
    alone, together = tmp_path / "threads", tmp_path / "processes"
    assert run.main([*options(cache, alone), "--threads", "2"]) == 0
    torch.set_num_threads(1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "train.run", *options(cache, together)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: ") == 1
    expected = safetensors.torch.load_file(alone / "last.safetensors")
    found = safetensors.torch.load_file(together / "last.safetensors")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_batch_that_processes_cannot_share_is_refused():
    assert Group(rank=1, size=2).part(4, 12, 4) == [6, 7, 10, 11]
    with pytest.raises(ValueError, match="multiple of the 2 processes, received 3"):
        Group(rank=0, size=2).part(0, 6, 3)


def test_mixed_precision_trains_close_to_float32():
    losses = {}
    for amp in ("off", "bf16"):
        preset = replace(PRESETS["nano"], train=TrainConfig(steps=8, batch=3, crop_px=64, amp=amp))
        trainer = Trainer(preset, CPU)
        assert trainer.mixed is (amp == "bf16")
        losses[amp] = [trainer.step(batch(3))["total"] for _ in range(8)]
    assert losses["bf16"] != losses["off"]
    assert losses["bf16"][-1] == pytest.approx(losses["off"][-1], rel=0.1)
    assert losses["bf16"][-1] < losses["bf16"][0]


def test_a_killed_run_resumes_from_its_last_checkpoint(cache, tmp_path, monkeypatch):
    step = Trainer.step

    def dying_step(trainer, samples):
        if trainer.done_steps == 3:
            raise SystemExit(9)  # what a kill leaves behind: nothing is saved on the way out
        return step(trainer, samples)

    monkeypatch.setattr(Trainer, "step", dying_step)
    monkeypatch.setitem(
        PRESETS, "nano", replace(PRESETS["nano"], train=replace(PRESETS["nano"].train, checkpoint_every=1))
    )
    arguments = [*options(cache, tmp_path), "--validate-every", "4"]
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert checkpoint.load(tmp_path / "last.safetensors")[1].step == 3
    monkeypatch.setattr(Trainer, "step", step)
    assert run.main([*arguments, "--resume"]) == 0


def test_tensorboard_gets_losses_scores_and_a_picture(finished):
    events = EventAccumulator(str(finished), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("validation/full/mF1")] == [2, 4]
    pictures = events.Images("validation/scene")
    assert [event.step for event in pictures] == [2, 4]
    assert (pictures[0].width, pictures[0].height) == (4 * 128, 2 * 128)  # 96 px, mirrored up to 128


@pytest.mark.parametrize("preset", ["ae", "cgan", "mmformer", "shaspec"])
def test_every_system_trains_a_step_and_loads_again(preset, tmp_path):
    chosen = PRESETS[preset]
    small = replace(chosen.model, token_width=32, token_heads=4, position_grid=4, discriminator_widths=(8, 8))
    trainer = Trainer(Preset(model=small, train=chosen.train), CPU)
    assert np.isfinite(trainer.step(batch(3))["total"])
    info = CheckpointInfo(
        model=small, train=chosen.train, sensors=small.sensor_specs, statistics={}, dataset="", step=1, metrics={},
        command="", tools={},
    )  # fmt: skip
    checkpoint.save(tmp_path / "x.safetensors", trainer.average.state_dict(), info)
    model, found = checkpoint.load(tmp_path / "x.safetensors")
    assert found == info
    samples = batch(1)
    with torch.no_grad():
        expected = trainer.average.forward_missing_ndsm(samples["rgir"])[0]
        # channels_last and contiguous weights add up in another order
        torch.testing.assert_close(model.forward_missing_ndsm(samples["rgir"])[0], expected, atol=1e-3, rtol=1e-3)


def test_cgan_updates_network_and_discriminators_and_restores_both():
    preset = replace(PRESETS["nano"], model=replace(PRESETS["nano"].model, generator="cgan"))
    trainer, samples = Trainer(preset, CPU), batch(3)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    judges_before = [p.detach().clone() for p in trainer.judges.parameters()]
    assert trainer.step(samples)["discriminator"] > 0
    same = [name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])]
    assert all(name.endswith("key.bias") for name in same)  # softmax does not see a shift of all keys
    assert not any(map(torch.equal, trainer.judges.parameters(), judges_before))
    fresh = Trainer(preset, CPU)
    fresh.restore(trainer.state())
    torch.testing.assert_close(fresh.judges.state_dict(), trainer.judges.state_dict(), atol=0, rtol=0)
    torch.testing.assert_close(fresh.model.state_dict(), trainer.model.state_dict(), atol=0, rtol=0)


def test_the_adversarial_term_reaches_the_generators_and_its_judges_only_through_their_own_loss():
    cgan = replace(PRESETS["nano"].model, generator="cgan")
    only_adversarial = LossWeights(fused=0, scales=0, unimodal=0, adversarial=1, l1=0)
    trainer = Trainer(Preset(model=cgan, train=TrainConfig(weights=only_adversarial)), CPU)
    found = trainer._gradients(trainer.model, batch(3))
    names = [name for name, _ in trainer.model.named_parameters()]
    reached = {name.split(".")[0] for name, g in zip(names, found.model, strict=True) if g is not None and g.any()}
    assert reached == {"generator"}
    assert all(p.grad is None for p in trainer.judges.parameters())
    assert all(g is not None for g in found.judges)


def test_paper_preset_trains_a_step():
    small = replace(PRESETS["paper"].model, position_grid=4)
    trainer = Trainer(Preset(model=small, train=PRESETS["paper"].train), CPU)
    assert np.isfinite(trainer.step(batch(3))["total"])


def test_learning_rate_warms_up_then_falls_to_its_floor():
    config = TrainConfig(steps=1000, warmup_steps=50, lr=1.0, lr_final_fraction=0.1)
    rates = [learning_rate(step, config) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / 50)
    assert np.argmax(rates) in (49, 50)
    assert np.all(np.diff(rates[50:]) <= 0)
    assert rates[525] == pytest.approx(0.55, abs=1e-3)  # half-way down the cosine
    assert rates[1000] == pytest.approx(0.1)


def test_average_follows_weights_and_batch_statistics():
    model, average = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    model.weight.data.fill_(3.0)
    model.running_mean.fill_(5.0)
    model.num_batches_tracked.fill_(7)
    update_average(average, model, decay=0.9, step=10**6)
    assert average.weight.tolist() == pytest.approx([1.2, 1.2])
    assert average.running_mean.tolist() == pytest.approx([0.5, 0.5])
    assert int(average.num_batches_tracked) == 7


def test_evaluation_scores_every_scenario_and_both_imputations(cache, finished, capsys):
    out = finished / "metrics.json"
    assert evaluate.main([str(finished / "best.safetensors"), "--synthetic", "1", "--cache", str(cache)]) == 0
    report = json.loads(out.read_text())
    ways = [(result["scenario"], result["input"]) for result in report["results"]]
    assert ways == [
        ("full", "generator"),
        ("missing_ndsm", "generator"),
        ("missing_rgir", "generator"),
        ("missing_ndsm", "zeros"),
        ("missing_ndsm", "mean"),
        ("missing_rgir", "zeros"),
        ("missing_rgir", "mean"),
    ]
    assert "seeds 2000000..2000000" in report["held_out"]
    assert "synthesised" in capsys.readouterr().out
    made = {result["scenario"]: result["synthesis"] for result in report["results"][1:3]}
    assert made["missing_ndsm"]["sensor"] == "ndsm"
    assert 0 < made["missing_ndsm"]["mean_absolute_error"] < 60
    assert 0 < made["missing_rgir"]["mean_absolute_error"] < 255
    assert -1 < made["missing_rgir"]["ssim"] < 1
    rows = list(csv.DictReader((finished / "metrics.csv").open()))
    assert [(row["scenario"], row["input"]) for row in rows] == ways
    assert float(rows[0]["mean_f1"]) == report["results"][0]["scores"]["mean_f1"]
    assert "| GEMMNet_AE (ours) |" in (finished / "table.md").read_text()
    for name in ("charts.png", "panel.png"):
        with Image.open(finished / name) as picture:
            assert min(picture.size) > 300


def test_imputation_feeds_the_constant_in_raw_units(finished):
    model, _ = checkpoint.load(finished / "best.safetensors")
    samples = batch(2)
    constant = {Sensor.RGIR: torch.tensor([10.0, 20.0, 30.0]), Sensor.NDSM: torch.tensor([3.5])}
    predict = predict_module.imputer(model, Scenario.MISSING_NDSM, constant)
    with torch.no_grad():
        expected = model.forward_full(samples["rgir"], torch.full_like(samples["ndsm"], 3.5))
        torch.testing.assert_close(predict(samples["rgir"], samples["ndsm"] * float("nan"))[0], expected)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, capsys):
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"not safetensors at all")
    assert evaluate.main([str(wrong)]) == 2
    assert "is no checkpoint" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def write_half() -> None:
        with checkpoint.replacing(target) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_missing_checkpoint_is_named_with_the_command_that_makes_one(tmp_path, capsys):
    missing = tmp_path / "gone.safetensors"
    assert evaluate.main([str(missing)]) == 2
    assert f"{missing} does not exist: pass the best.safetensors of `python -m train.run`" in capsys.readouterr().err
