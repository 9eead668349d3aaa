"""One scenario from its floating graphs to an INT8 graph within the budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from calib.findings import Evaluation, MethodScore, Range, Settings, Study
from calib.qdq import (
    finish,
    inputs_of_layers,
    int8_share,
    layers_of,
    ranged_tensors,
)
from calib.quantize import TOOL, place
from calib.ranges import METHODS, Magnitudes, Method, collect, threshold
from calib.rewrites import prepare
from calib.runtimes import versions
from calib.samples import CalibrationList
from calib.scenes import SceneTile
from calib.score import GraphScore, Scorer, foreground_of
from calib.sensitivity import SearchStep, leave_one_out, search
from calib.store import TensorStore, key_of
from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import BundleError
from engine.contract.sensors import Scenario


def floating_graphs(bundle: Bundle, scenario: Scenario) -> dict[Precision, onnx.ModelProto]:
    """A scenario's graphs but the INT8 one, weights inside."""
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    return {
        precision: onnx.load(bundle.graph(scenario, precision))
        for precision in precisions
        if precision in bundle.manifest.graphs[scenario]
    }


def study(bundle: Bundle, scenario: Scenario, settings: Settings, store: TensorStore) -> tuple[onnx.ModelProto, Study]:
    """Quantise one scenario.

    Returns:
        The INT8 graph, weights inside, and what was found out.

    Raises:
        BundleError: the budget cannot be kept.
        BackendError: a library refuses a graph.
    """
    available = floating_graphs(bundle, scenario)
    floating: Precision = "fp16" if "fp16" in available else "fp32"
    classes = bundle.manifest.classes
    foreground = foreground_of(classes)

    def scorer(tiles: Sequence[SceneTile]) -> Scorer:
        return Scorer(scenario=scenario, reference=available["fp32"], tiles=tiles, classes=len(classes), store=store)

    candidates = _measure(prepare(available[floating]), scenario, settings.calibration, store)
    on_search, on_few = scorer(settings.search), scorer(settings.search[: settings.sensitivity_tiles])
    methods = tuple(
        _method_score(method, on_search.score(candidates.build(method)), foreground) for method in settings.methods
    )
    method = min(methods, key=lambda one: one.damage).method
    layers = inputs_of_layers(candidates.placed)
    ranking = leave_one_out(tuple(layers), lambda released: on_few.score(candidates.build(method, released)))
    fp32_f1 = on_search.score(available["fp32"]).mean_f1(foreground)

    def attempt(released: tuple[str, ...]) -> SearchStep:
        graph = candidates.build(method, released)
        mean_f1 = on_search.score(graph).mean_f1(foreground)
        return SearchStep(
            released=released, mean_f1=mean_f1, loss_points=fp32_f1 - mean_f1, int8_share=int8_share(graph)
        )

    steps = search(
        scenario,
        ranking,
        attempt,
        budget_points=settings.budget_points,
        min_int8_share=settings.min_int8_share,
    )
    graph = candidates.build(method, steps[-1].released)
    found = Study(
        scenario=scenario,
        floating=floating,
        layers=layers_of(graph),
        int8_share=int8_share(graph),
        methods=methods,
        method=method,
        ranges=tuple(
            Range(
                layer=layer, tensor=tensor, thresholds={name: by[tensor] for name, by in candidates.thresholds.items()}
            )
            for layer, tensor in layers.items()
        ),
        sensitivity=ranking,
        steps=steps,
        evaluations=_evaluate({**available, "int8": graph}, scorer(settings.evaluation), foreground),
    )
    if found.loss_points > settings.budget_points:
        raise BundleError(
            f"int8 may cost at most {settings.budget_points:g} points of mF1; for {scenario} it cost "
            f"{steps[-1].loss_points:.2f} on the tiles it was tuned on but {found.loss_points:.2f} on the evaluation "
            "tiles: search on more tiles (--search-tiles)"
        )
    return graph, found


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    """Everything that an INT8 graph of a scenario can be built from."""

    placed: onnx.ModelProto
    thresholds: Mapping[Method, Mapping[str, float]]
    """By activation, where each method clips it."""

    def build(self, method: Method, released: Collection[str] = ()) -> onnx.ModelProto:
        """INT8 but for the released layers."""
        return finish(self.placed, self.thresholds[method], released)


def _measure(
    prepared: onnx.ModelProto, scenario: Scenario, calibration: CalibrationList, store: TensorStore
) -> _Candidates:
    """Place the pairs and see how large their tensors get."""
    content = prepared.SerializeToString(deterministic=True)
    first = calibration.tiles[0].read().inputs(scenario)
    placed = onnx.load_from_string(
        store.blob(
            "placed",
            key_of("placed", content, TOOL),
            lambda: place(prepared, first).SerializeToString(deterministic=True),
        )
    )
    tensors = ranged_tensors(placed)
    magnitudes = store.value(
        "ranges",
        key_of("ranges", content, tensors, calibration.sha256, versions()["onnxruntime"]),
        dict[str, Magnitudes],
        lambda: collect(prepared, tensors, (tile.read().inputs(scenario) for tile in calibration.tiles)),
    )
    thresholds = {method: {name: threshold(found, method) for name, found in magnitudes.items()} for method in METHODS}
    return _Candidates(placed=placed, thresholds=thresholds)


def _method_score(method: Method, score: GraphScore, foreground: Sequence[int]) -> MethodScore:
    return MethodScore(method=method, mean_f1=score.mean_f1(foreground), damage=score.damage)


def _evaluate(
    graphs: Mapping[Precision, onnx.ModelProto], scorer: Scorer, foreground: Sequence[int]
) -> tuple[Evaluation, ...]:
    """Every graph in OpenVINO, and the INT8 one in ONNX Runtime as well."""
    scores = [(precision, "openvino", scorer.score(graph)) for precision, graph in graphs.items()]
    scores.append(("int8", "onnxruntime", scorer.score(graphs["int8"], exact=True)))
    return tuple(
        Evaluation(
            precision=precision,
            runtime=runtime,
            mean_f1=score.mean_f1(foreground),
            class_f1=score.class_f1(),
            agreement=score.agreement,
        )
        for precision, runtime, score in scores
    )
