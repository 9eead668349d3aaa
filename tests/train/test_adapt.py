"""Adapting to images without labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.contract.sensors import Scenario
from tests.train.scenes import toy_scene
from tests.train.test_folder import SIDE, scene
from train import adapt, checkpoint, run
from train.data.dataset import CropDataset, Pool
from train.data.folder import FolderSource
from train.data.labels import IGNORE_INDEX, ISPRS_LABELS
from train.data.procedural import FIRST_SEED
from train.data.rasters import DataError
from train.selftraining import FirstMaps, PseudoLabels, Rules, Stability, class_mix, teach

NAMES = ISPRS_LABELS.names
UNIFORM = torch.full((6,), 1 / 6)


def certain(*classes: int, sure: float = 0.95) -> torch.Tensor:
    """Probabilities [1, 6, 1, n] of pixels that are surely these classes."""
    found = torch.full((1, 6, 1, len(classes)), (1 - sure) / 5)
    for column, index in enumerate(classes):
        found[0, index, 0, column] = sure
    return found


def pixels(*nir_red: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([[(nir, red, 90) for nir, red in nir_red]], dtype=torch.uint8).permute(0, 2, 1)[:, :, None]


def test_green_pixels_are_no_road_and_bare_ones_no_tree():
    image = pixels((200, 60), (200, 60), (60, 80), (60, 80))
    found = PseudoLabels(UNIFORM, ISPRS_LABELS, Rules()).label(certain(0, 3, 3, 1), image)
    assert found[0, 0].tolist() == [IGNORE_INDEX, 3, IGNORE_INDEX, 1]
    without = PseudoLabels(UNIFORM, ISPRS_LABELS, Rules(green=None)).label(certain(0, 3, 3, 1), image)
    assert without[0, 0].tolist() == [0, 3, 3, 1]


def test_what_is_not_sure_enough_is_not_believed():
    found = PseudoLabels(UNIFORM, ISPRS_LABELS, Rules(prior_strength=0.0)).label(
        torch.cat([certain(0), certain(1, sure=0.55)], dim=3), pixels((60, 80), (60, 80))
    )
    assert found[0, 0].tolist() == [0, IGNORE_INDEX]


def test_a_class_that_is_called_ever_more_often_is_held_to_the_prior():
    clutter = NAMES.index("clutter")
    prior = torch.tensor([0.4, 0.2, 0.2, 0.14, 0.03, 0.03])
    image = pixels(*[(60, 80)] * 4)
    # Half of the pavement is called clutter, by a small margin: what ran away before.
    torn = certain(0, 0, 0, 0)
    torn[0, 0], torn[0, clutter] = 0.42, 0.5
    torn = torn / torn.sum(1, keepdim=True)
    held = PseudoLabels(prior, ISPRS_LABELS, Rules(threshold=0.5, memory=0.9))
    free = PseudoLabels(prior, ISPRS_LABELS, Rules(threshold=0.5, memory=0.9, prior_strength=0.0))
    for _ in range(40):
        last, loose = held.label(torn, image), free.label(torn, image)
    assert not (last == clutter).any()
    assert (loose == clutter).all()


def test_a_seldom_sure_class_is_believed_earlier():
    rules = Rules(threshold=0.9, prior_strength=0.0, memory=0.5, green=None)
    pseudo = PseudoLabels(UNIFORM, ISPRS_LABELS, rules)
    both = torch.cat([certain(0, sure=0.99), certain(4, sure=0.7)], dim=3)
    for _ in range(10):
        pseudo.label(both, pixels((60, 80), (60, 80)))
    thresholds = pseudo.thresholds()
    assert thresholds[4] < 0.7 < thresholds[0]
    assert thresholds.min() >= 0.9 * rules.floor - 1e-6


def test_a_mixture_pastes_pixels_with_their_labels_and_no_height_where_there_was_none():
    source = {
        "rgir": torch.full((1, 3, 8, 8), 200, dtype=torch.uint8),
        "ndsm": torch.full((1, 1, 8, 8), 7.0),
        "rgir_valid": torch.ones(1, 8, 8, dtype=torch.bool),
        "ndsm_valid": torch.ones(1, 8, 8, dtype=torch.bool),
        "labels": torch.cat([torch.zeros(1, 4, 8), torch.ones(1, 4, 8)], dim=1).to(torch.uint8),
        "available": torch.tensor([[True, True]]),
    }
    target = {
        "rgir": torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        "ndsm": torch.zeros(1, 1, 8, 8),
        "rgir_valid": torch.ones(1, 8, 8, dtype=torch.bool),
        "ndsm_valid": torch.zeros(1, 8, 8, dtype=torch.bool),
        "labels": torch.full((1, 8, 8), 3, dtype=torch.uint8),
        "available": torch.tensor([[True, False]]),
    }
    mixed = class_mix(target, source, torch.Generator().manual_seed(0))
    pasted = mixed["labels"] != 3
    assert pasted.sum() == 32  # one of two classes
    assert torch.equal(mixed["rgir"][:, 0] == 200, pasted)
    assert not mixed["ndsm_valid"].any()
    assert mixed["available"].tolist() == [[True, False]]


def test_a_model_that_calls_everything_one_class_is_not_the_most_stable():
    assert Stability(agreement=1.0, drift=1.2).score < Stability(agreement=0.85, drift=0.05).score


def test_marked_crowns_become_labels_where_there_are_none(tmp_path):
    root = tmp_path / "mine"
    for name in "ab":
        scene(root, name, without="labels")
    (root / "a" / "trees.csv").write_text("x,y\n10,20\n500,1\n")
    found = FolderSource(root=root, cache=tmp_path / "cache", tree_points=True)._prepare("a")
    labels = np.asarray(found.labels())
    assert labels[20, 10] == NAMES.index("tree")
    assert set(np.unique(labels)) == {NAMES.index("tree"), IGNORE_INDEX}
    assert (labels != IGNORE_INDEX).sum() == 13  # a disc of radius 2
    assert not FolderSource(root=root, cache=tmp_path / "other")._prepare("a").labelled
    (root / "b" / "trees.csv").write_text("row,column\n1,1\n")
    with pytest.raises(DataError, match="columns x and y"):
        FolderSource(root=root, cache=tmp_path / "third", tree_points=True)._prepare("b")


def test_a_weak_view_is_the_crop_as_it_was_measured(tmp_path):
    found = toy_scene(tmp_path, 0)
    crops = CropDataset([Pool(scenes=(found,), zoom=(1.0, 1.0))], counted=(0,), length=3, crop_px=32, seed=0, weak=True)
    item = crops[0]
    assert torch.equal(item["rgir_weak"][0], item["labels"] * 40)
    assert not torch.equal(item["rgir_weak"], item["rgir"])


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A checkpoint, and the cache of its procedural scenes."""
    folder = tmp_path_factory.mktemp("known")
    for seed in (0, 1, FIRST_SEED["validation"]):
        toy_scene(folder / "cache", seed)
    words = "--preset nano --synthetic 2 --validation-scenes 1 --steps 1 --batch 2 --crop 64 --workers 0 --threads 1"
    assert run.main([*words.split(), "--cache", str(folder / "cache"), "--out", str(folder / "run")]) == 0
    return folder


def words(known, mine, out, *more) -> list[str]:
    fixed = f"--data folder:{mine} --source synthetic:2 --cache {known}/cache --init {known}/run/best.safetensors"
    fixed += " --steps 4 --warm-up 1 --check 2 --batch 4 --crop 64 --workers 0 --threshold 0.3"
    return [*fixed.split(), "--out", str(out), *more]


def test_a_model_adapts_at_the_resolutions_that_it_maps_best_at(known, tmp_path):
    info = checkpoint.load(known / "run" / "best.safetensors")[1]
    assert adapt._pool((toy_scene(tmp_path, 0),), info, zoom=(1.0, 2.0)).zoom == (1.0, 2.0)  # nobody knows its own
    again = tuple(toy_scene(tmp_path, seed, gsd_m=gsd_m) for seed, gsd_m in ((1, 0.2), (2, 0.6)))
    assert adapt._pool(again, replace(info, gsd_m=(0.15, 0.3)), zoom=(1.0, 2.0)).gsd_m == (0.15, 0.3)
    assert adapt._pool(again[1:], replace(info, gsd_m=(0.15, 0.5)), zoom=(1.0, 2.0)).gsd_m == (0.3, 0.5)


def test_a_teacher_looks_at_the_sensors_that_it_is_told_to(known):
    model, _ = checkpoint.load(known / "run" / "best.safetensors")
    rgir, ndsm = torch.randint(0, 255, (3, 3, 64, 64)), torch.rand(3, 1, 64, 64) * 9
    seen = torch.tensor([[True, True], [True, False], [False, True]])
    found = teach(model.eval(), rgir, ndsm, seen)
    assert torch.equal(found[1:2], teach(model, rgir[1:2], ndsm[1:2] + 5, seen[1:2]))
    assert torch.equal(found[2:], teach(model, rgir[2:] * 0, ndsm[2:], seen[2:]))
    assert not torch.equal(found[:1], teach(model, rgir[:1], ndsm[:1], seen[1:2]))


def test_later_models_are_held_to_what_the_first_saw_with_both_sensors(known):
    model, _ = checkpoint.load(known / "run" / "best.safetensors")
    batch = {
        "rgir_weak": torch.randint(0, 255, (3, 3, 64, 64), dtype=torch.uint8),
        "ndsm_weak": torch.rand(3, 1, 64, 64) * 9,
        "rgir_valid": torch.ones(3, 64, 64, dtype=torch.bool),
        "ndsm_valid": torch.ones(3, 64, 64, dtype=torch.bool),
    }
    batch["ndsm_valid"][0] = False  # a sample without heights
    batch["rgir_valid"][1, :, :32] = False
    first = FirstMaps(model.eval(), [batch])
    before = first.fidelity(model)
    assert before.agreement[Scenario.FULL] == 1
    alone = torch.tensor([[True, False]] * 2)
    maps = [teach(model, batch["rgir_weak"][1:], batch["ndsm_weak"][1:], s).argmax(1) for s in (alone | True, alone)]
    same, seen = maps[0] == maps[1], batch["rgir_valid"][1:]
    assert before.agreement[Scenario.MISSING_NDSM] == pytest.approx(float(same[seen].float().mean()))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(-1)
    later = first.fidelity(model)
    assert later.agreement[Scenario.FULL] < 1
    assert later.score == pytest.approx(sum(later.agreement.values()) / 3)
    assert not FirstMaps(model, [{name: values[:1] for name, values in batch.items()}])


@pytest.mark.parametrize("lacking", ["", "ndsm"])
def test_a_model_is_adapted_to_images_with_and_without_heights(known, tmp_path, capsys, lacking):
    mine = tmp_path / "mine"
    for number, name in enumerate("abcdef"):
        scene(mine, name, seed=number, without=lacking or "labels")
    out = tmp_path / "adapted"
    without = () if lacking else ("--without", "average", "--without", "mixing", "--without", "heights")
    assert adapt.main(words(known, mine, out, *without)) == 0
    printed = capsys.readouterr().out
    assert ("before: agrees with itself" if lacking else "before: agrees with the first map from both") in printed
    model, info = checkpoint.load(out / "best.safetensors")
    assert "adapted to 4 scenes of mine" in info.dataset
    assert not info.metrics
    assert info.gsd_m == checkpoint.load(known / "run" / "best.safetensors")[1].gsd_m
    assert checkpoint.load(out / "last.safetensors")[1].step == 4
    assert model.config == checkpoint.load(known / "run" / "best.safetensors")[1].model
    assert adapt.main(words(known, mine, out)) == 2
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--batch", "3"), "--batch must be even"),
        (("--warm-up", "4"), "--warm-up less than --steps"),
        (("--threshold", "2"), "threshold must lie in 0..1"),
        (("--crop", "40"), "multiple of 32, received 40"),
        (("--init", "nothing.safetensors"), "does not exist"),
    ],
)
def test_options_that_cannot_be_are_refused(known, tmp_path, capsys, more, named):
    for name in "ab":
        scene(tmp_path / "mine", name)
    assert adapt.main(words(known, tmp_path / "mine", tmp_path / "out", *more)) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert SIDE == 48
