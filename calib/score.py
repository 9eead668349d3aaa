"""How well a graph segments, and how far it is from the floating graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from calib.runtimes import Infer, onnxruntime_infer, openvino_infer, versions
from calib.samples import digest_of
from calib.scenes import SceneTile
from calib.store import TensorStore, key_of
from engine.contract.bundle import ClassSpec
from engine.contract.sensors import Scenario

BACKGROUND = frozenset({"clutter", "clutter/background"})
"""Names of classes that no mean counts: the ISPRS benchmarks score their five others."""
CLASSES, PROBABILITIES = "classes", "probabilities"


@dataclass(frozen=True, kw_only=True)
class GraphScore:
    """One graph on one list of tiles."""

    confusion: tuple[tuple[int, ...], ...]
    """Pixels by true class (row) and mapped class (column)."""
    damage: float
    """Mean absolute difference of a probability from the reference graph's: what is compared where mF1 is noise."""
    agreement: float
    """Share of pixels with the reference graph's class."""

    def class_f1(self) -> tuple[float, ...]:
        """F1 of each class in 0..1; 0 for one that neither occurs nor is mapped."""
        matrix = np.array(self.confusion, np.float64)
        return tuple((2 * np.diag(matrix) / np.maximum(matrix.sum(0) + matrix.sum(1), 1)).tolist())

    def mean_f1(self, foreground: Sequence[int]) -> float:
        """mF1 in points (0..100) over the foreground classes that occur or are mapped."""
        matrix = np.array(self.confusion)
        present = [k for k in foreground if matrix[k].sum() + matrix[:, k].sum() > 0]
        f1 = self.class_f1()
        return 100 * float(np.mean([f1[k] for k in present])) if present else 0.0


def foreground_of(classes: Sequence[ClassSpec]) -> tuple[int, ...]:
    """Indices of the classes that mF1 is the mean over."""
    return tuple(k for k, spec in enumerate(classes) if spec.name not in BACKGROUND)


@dataclass(kw_only=True)
class Scorer:
    """Scores graphs of one scenario on fixed tiles, each graph once.

    Args:
        scenario: whose graphs.
        reference: the float32 graph.
        tiles: what to score on.
        classes: number of classes.
        store: where scores are kept.
    """

    scenario: Scenario
    reference: onnx.ModelProto
    tiles: Sequence[SceneTile]
    classes: int
    store: TensorStore
    _expected: list[tuple[NDArray[np.uint8], NDArray[np.uint16]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._digest = digest_of(self.tiles)
        self._versions = versions()

    def score(self, model: onnx.ModelProto, *, exact: bool = False) -> GraphScore:
        """Run a graph over the tiles.

        Args:
            model: of this scenario.
            exact: in ONNX Runtime with Q and DQ computed one by one as they are written, rather than in OpenVINO with
                the CPU's INT8 kernels.

        Raises:
            BackendError: the runtime refuses the graph.
        """
        runtime = "onnxruntime" if exact else "openvino"
        library = self._versions[runtime], self._versions["cpu"]
        graphs = (graph.SerializeToString(deterministic=True) for graph in (model, self.reference))
        key = key_of("score", self._digest, runtime, *library, *graphs)
        return self.store.value("score", key, GraphScore, lambda: self._run(model, exact=exact))

    def _run(self, model: onnx.ModelProto, *, exact: bool) -> GraphScore:
        wanted = (CLASSES, PROBABILITIES)
        infer = onnxruntime_infer(model, wanted) if exact else openvino_infer(model, wanted)
        self._expect()
        confusion = np.zeros((self.classes, self.classes), np.int64)
        damage = agreement = 0.0
        answers = tqdm(self._expected, desc="tiles", unit="tile", leave=False, disable=None)
        for tile, (classes, probabilities) in zip(self.tiles, answers, strict=True):
            sample = tile.read()
            answer = infer(sample.inputs(self.scenario))
            mapped = answer[CLASSES][0]
            damage += float(np.abs(answer[PROBABILITIES][0] - probabilities / np.float32(_STEPS)).mean())
            agreement += float((mapped == classes).mean())
            known = sample.known(self.classes)
            pairs = sample.labels[known].astype(np.int64) * self.classes + mapped[known]
            confusion += np.bincount(pairs, minlength=self.classes**2).reshape(confusion.shape)
        count = len(self.tiles)
        return GraphScore(confusion=_rows(confusion), damage=damage / count, agreement=agreement / count)

    def _expect(self) -> None:
        """Keep the reference's answers: 16 bits hold a probability to 1e-5."""
        if not self._expected:
            infer: Infer = openvino_infer(self.reference, (CLASSES, PROBABILITIES))
            for tile in tqdm(self.tiles, desc="reference", unit="tile", leave=False, disable=None):
                answer = infer(tile.read().inputs(self.scenario))
                probabilities = np.rint(answer[PROBABILITIES][0] * _STEPS).astype(np.uint16)
                self._expected.append((answer[CLASSES][0].copy(), probabilities))


_STEPS = 65535


def _rows(matrix: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(value) for value in row) for row in matrix)
