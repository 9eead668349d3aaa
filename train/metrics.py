"""Scores from one confusion matrix accumulated over all pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from train.data.labels import IGNORE_INDEX, ISPRS_LABELS, LabelSet


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Fractions in 0..1. The means are over the counted classes; ``class_f1`` and ``class_iou`` have all."""

    mean_f1: float
    mean_iou: float
    overall_accuracy: float
    class_f1: dict[str, float]
    class_iou: dict[str, float] = field(default_factory=dict)


class Confusion:
    """Confusion matrix, int64 [C, C]: rows are the truth, columns the prediction."""

    def __init__(self, labels: LabelSet = ISPRS_LABELS) -> None:
        self.labels = labels
        classes = len(labels.classes)
        self.matrix: NDArray[np.int64] = np.zeros((classes, classes), np.int64)

    def add(self, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
        """Count pixels of two equal shapes; truth 255 is ignored.

        Raises:
            ValueError: shapes differ, or a value is no class.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"truth and prediction must have one shape, received {truth.shape} and {predicted.shape}")
        classes = len(self.matrix)
        known = truth != IGNORE_INDEX
        t, p = truth[known].astype(np.int64), predicted[known].astype(np.int64)
        if t.size and max(t.max(), p.max()) >= classes:
            raise ValueError(f"classes lie in 0..{classes - 1} or {IGNORE_INDEX}, received {max(t.max(), p.max())}")
        self.matrix += np.bincount(t * classes + p, minlength=classes**2).reshape(classes, classes)

    @property
    def pixels(self) -> int:
        """Labelled pixels counted so far."""
        return int(self.matrix.sum())

    def scores(self) -> Scores:
        """F1 and IoU per class (0 for a class with neither truth nor prediction), their means, accuracy.

        A class that never occurs, neither in the truth nor in the prediction, is left out of the means.
        """
        hits = np.diag(self.matrix).astype(float)
        truth, predicted = self.matrix.sum(1), self.matrix.sum(0)
        f1 = 2 * hits / np.maximum(truth + predicted, 1)
        iou = hits / np.maximum(truth + predicted - hits, 1)
        counted = [index for index in self.labels.counted if truth[index] + predicted[index] > 0]

        def mean(values: NDArray[np.float64]) -> float:
            return float(values[counted].mean()) if counted else 0.0

        return Scores(
            mean_f1=mean(f1),
            mean_iou=mean(iou),
            overall_accuracy=float(hits.sum() / max(self.matrix.sum(), 1)),
            class_f1={name: float(value) for name, value in zip(self.labels.names, f1, strict=True)},
            class_iou={name: float(value) for name, value in zip(self.labels.names, iou, strict=True)},
        )
