import numpy as np
import pytest

from train.metrics import Confusion


def brute_force_f1_iou(truth, predicted, label):
    a, b = {i for i, t in enumerate(truth) if t == label}, {i for i, p in enumerate(predicted) if p == label}
    return 2 * len(a & b) / (len(a) + len(b)), len(a & b) / len(a | b)


def test_scores_equal_set_arithmetic_over_all_pixels_of_all_tiles():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, (4, 9, 11)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 6, truth.shape)).astype(np.uint8)
    confusion = Confusion()
    for t, p in zip(truth, predicted, strict=True):
        confusion.add(t, p)
    scores = confusion.scores()
    expected = [brute_force_f1_iou(truth.ravel(), predicted.ravel(), label) for label in range(5)]
    assert scores.mean_f1 == pytest.approx(np.mean([f1 for f1, _ in expected]))
    assert scores.mean_iou == pytest.approx(np.mean([iou for _, iou in expected]))
    assert scores.overall_accuracy == pytest.approx((truth == predicted).mean())
    assert scores.class_f1["clutter"] == pytest.approx(brute_force_f1_iou(truth.ravel(), predicted.ravel(), 5)[0])


def test_unknown_pixels_do_not_count():
    confusion = Confusion()
    confusion.add(np.array([0, 1, 255, 255], np.uint8), np.array([0, 1, 4, 5], np.uint8))
    assert confusion.matrix.sum() == 2
    assert confusion.scores().mean_f1 == 1.0


def test_clutter_is_not_in_the_means():
    confusion = Confusion()
    confusion.add(np.array([0, 5, 5], np.uint8), np.array([0, 5, 5], np.uint8))
    wrong = Confusion()
    wrong.add(np.array([0, 5, 5], np.uint8), np.array([0, 5, 5], np.uint8))
    wrong.matrix[5] = [0, 0, 0, 0, 0, 0]
    assert confusion.scores().mean_f1 == wrong.scores().mean_f1 == 1.0


def test_a_class_that_is_predicted_but_never_true_scores_zero():
    confusion = Confusion()
    confusion.add(np.array([0, 0], np.uint8), np.array([0, 4], np.uint8))
    scores = confusion.scores()
    assert scores.class_f1["car"] == 0
    assert scores.mean_f1 == pytest.approx((2 / 3 + 0) / 2)


def test_a_value_that_is_no_class_is_refused():
    with pytest.raises(ValueError, match="received 6"):
        Confusion().add(np.array([6], np.uint8), np.array([0], np.uint8))
    with pytest.raises(ValueError, match="one shape"):
        Confusion().add(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
