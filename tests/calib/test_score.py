"""Scores against the training room's confusion matrix; distance from the floating graph; nothing runs twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calib.scenes import find_scenes, tiles_of
from calib.score import GraphScore, Scorer, foreground_of
from calib.store import TensorStore
from engine.contract.bundle import ClassSpec
from engine.contract.sensors import Scenario
from tests.calib.conftest import CLASSES, TILE_PX, network, run, write_npy
from train.metrics import Confusion


@pytest.fixture
def scorer(data: Path, store: TensorStore) -> Scorer:
    tiles = tiles_of(find_scenes(data), TILE_PX)[:3]
    return Scorer(
        scenario=Scenario.FULL, reference=network(Scenario.FULL), tiles=tiles, classes=len(CLASSES), store=store
    )


def disturbed(amount: float) -> onnx.ModelProto:
    """The full network with its head's weights changed."""
    model = network(Scenario.FULL)
    (head,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    noise = np.random.default_rng(0).normal(0, amount, tuple(head.dims)).astype(np.float32)
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) + noise, head.name))
    return model


def test_mf1_is_that_of_the_training_room() -> None:
    rng = np.random.default_rng(0)
    theirs = Confusion()
    truth, mapped = rng.integers(0, 6, (2, 5000)).astype(np.uint8)
    theirs.add(truth, np.where(rng.random(5000) < 0.6, truth, mapped))
    ours = GraphScore(confusion=tuple(map(tuple, theirs.matrix.tolist())), damage=0, agreement=1)
    assert ours.mean_f1(range(5)) / 100 == pytest.approx(theirs.scores().mean_f1)
    assert ours.class_f1() == pytest.approx(tuple(theirs.scores().class_f1.values()))


def test_a_class_that_never_occurs_is_left_out_of_the_mean() -> None:
    score = GraphScore(confusion=((5, 0, 0), (0, 5, 0), (0, 0, 0)), damage=0, agreement=1)
    assert score.mean_f1((0, 1, 2)) == 100


def test_clutter_is_no_foreground() -> None:
    assert foreground_of([ClassSpec(name=name, rgb=(0, 0, 0)) for name in CLASSES]) == (0, 1, 2)


def test_the_reference_does_itself_no_damage(scorer: Scorer) -> None:
    score = scorer.score(scorer.reference)
    assert score.damage < 1e-5
    assert score.agreement == 1
    assert score.mean_f1((0, 1, 2)) == 100, "the labels are its own classes"


def test_damage_and_agreement_are_numpys(scorer: Scorer) -> None:
    model = disturbed(0.05)
    damage, same = [], []
    for tile in scorer.tiles:
        inputs = tile.read().inputs(Scenario.FULL)
        (a, p), (b, q) = (run(graph, inputs, "classes", "probabilities") for graph in (scorer.reference, model))
        damage.append(np.abs(p - q).mean())
        same.append((a == b).mean())
    for exact in (False, True):
        score = scorer.score(model, exact=exact)
        assert score.damage == pytest.approx(np.mean(damage), rel=1e-2)
        assert score.agreement == pytest.approx(np.mean(same), abs=1e-3)
        assert score.mean_f1((0, 1, 2)) < 100


def test_a_graph_is_scored_once(scorer: Scorer, store: TensorStore) -> None:
    first = scorer.score(disturbed(0.1))
    kept = {path: path.stat().st_mtime_ns for path in store.root.iterdir()}
    assert scorer.score(disturbed(0.1)) == first
    assert {path: path.stat().st_mtime_ns for path in store.root.iterdir()} == kept
    scorer.score(disturbed(0.2))
    assert len(list(store.root.iterdir())) == len(kept) + 1


def test_other_tiles_are_another_score(scorer: Scorer, store: TensorStore, tmp_path: Path) -> None:
    before = scorer.score(scorer.reference)
    changed = scorer.tiles[0].read()
    labels = np.zeros_like(changed.labels)
    write_npy(tmp_path / "other" / "a", {"rgir": changed.rgir, "ndsm": changed.ndsm, "labels": labels})
    tiles = tiles_of(find_scenes(tmp_path / "other"), TILE_PX)
    other = Scorer(scenario=Scenario.FULL, reference=scorer.reference, tiles=tiles, classes=4, store=store)
    assert other.score(scorer.reference).confusion != before.confusion
