"""Backends answer what the graph means, and are refused when they do not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine import demo
from engine.backends.base import Output
from engine.backends.golden import TOLERANCES, tolerance_of
from engine.backends.options import BackendName, BackendOptions
from engine.backends.words import said
from engine.contract.bundle import Bundle, ClassSpec, FileRef, Manifest, Precision, save_manifest
from engine.contract.errors import BackendError, BackendUnavailableError, GoldenMismatchError, ManifestError
from engine.contract.sensors import Scenario, Sensor
from engine.options import request_of
from engine.run import build_parser
from tests.conftest import toy_probabilities
from tests.engine.precision_graphs import quantised_probabilities, with_precisions

BACKENDS = ["openvino", "onnxruntime"]


def tile(seed: int = 3) -> dict[Sensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        Sensor.RGIR: rng.integers(0, 256, (3, 64, 64), np.uint8),
        Sensor.NDSM: rng.uniform(-1, 30, (1, 64, 64)).astype(np.float32),
    }


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("scenario", Scenario)
def test_all_outputs_equal_numpy(name, scenario, wide_bundle) -> None:
    inputs = {sensor: values for sensor, values in tile().items() if sensor in scenario.sensors}
    expected = toy_probabilities(scenario, inputs, radius=6)
    with BackendOptions(name=name, precision="fp32").open(
        wide_bundle, scenarios=[scenario], wanted=list(Output)
    ) as backend:
        answer = backend.infer(scenario, inputs)
    np.testing.assert_allclose(answer[Output.PROBABILITIES], expected, atol=1e-5)
    assert (answer[Output.CLASSES] == expected.argmax(axis=0)).mean() > 0.9995
    assert np.abs(answer[Output.CONFIDENCE].astype(int) - np.rint(expected.max(axis=0) * 255)).max() <= 1


@pytest.mark.parametrize("name", BACKENDS)
def test_tiles_in_flight_do_not_mix(name, toy_bundle) -> None:
    tiles = [tile(seed) for seed in range(24)]
    scenarios = [list(Scenario)[i % 3] for i in range(24)]
    with BackendOptions(name=name, precision="fp32").open(
        toy_bundle, scenarios=Scenario, wanted=[Output.CLASSES]
    ) as backend:
        futures = [
            backend.submit(scenario, {sensor: t[sensor] for sensor in scenario.sensors})
            for scenario, t in zip(scenarios, tiles, strict=True)
        ]
        for scenario, t, future in zip(scenarios, tiles, futures, strict=True):
            expected = toy_probabilities(scenario, t, radius=0).argmax(axis=0)
            assert (future.result()[Output.CLASSES] == expected).mean() > 0.9995


def test_the_latency_hint_computes_one_tile_at_a_time_with_the_same_answer(toy_bundle) -> None:
    answers = {}
    for hint in ("throughput", "latency"):
        with BackendOptions(name="openvino", precision="fp32", hint=hint).open(
            toy_bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]
        ) as backend:
            answers[hint] = backend.infer(Scenario.FULL, tile())[Output.CLASSES]
            if hint == "latency":
                assert backend.info.slots == 1
    assert (answers["latency"] == answers["throughput"]).mean() > 0.9995


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [((), "throughput"), (("--rate", "10"), "latency"), (("--rate", "10", "--hint", "throughput"), "throughput")],
)
def test_a_paced_flight_asks_for_latency(arguments, hint) -> None:
    assert request_of(build_parser().parse_args(arguments)).backend.hint == hint


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_that_answers_differently_is_refused(name, toy_bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "other"))
    with np.load(root / "golden.npz") as file:
        golden = dict(file)
    golden["missing_ndsm/classes"] = (golden["missing_ndsm/classes"] + 1) % 4
    np.savez_compressed(root / "golden.npz", **golden)
    manifest = toy_bundle.manifest
    save_manifest(
        type(manifest)(**{**vars(manifest), "golden": FileRef.of(root / "golden.npz", root)}),
        root,
    )
    bundle = Bundle.load(root)
    with BackendOptions(name=name, precision="fp32").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]):
        pass
    with pytest.raises(GoldenMismatchError, match=r"scenario missing_ndsm, output classes differs by 1 of the pixels"):
        BackendOptions(name=name, precision="fp32").open(bundle, scenarios=Scenario, wanted=[Output.CLASSES])


@pytest.mark.parametrize("name", BACKENDS)
def test_every_golden_tile_must_be_reproduced(name, toy_bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "two"))
    first = toy_bundle.golden()
    second = {f"1/{each}": values for each, values in first.items()}
    for wrong in (False, True):
        if wrong:
            second["1/full/classes"] = (first["full/classes"] + 1) % 4
        np.savez_compressed(root / "golden.npz", **first, **second)
        save_manifest(replace(toy_bundle.manifest, golden=FileRef.of(root / "golden.npz", root), golden_tiles=2), root)
        with (
            pytest.raises(GoldenMismatchError, match="the golden tile number 1 of") if wrong else nullcontext(),
            BackendOptions(name=name, precision="fp32").open(
                Bundle.load(root), scenarios=Scenario, wanted=[Output.CLASSES]
            ),
        ):
            pass


@pytest.mark.parametrize("name", BACKENDS)
def test_a_failure_of_the_library_reaches_the_caller(name, toy_bundle) -> None:
    with BackendOptions(name=name).open(toy_bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend:
        wrong = {Sensor.RGIR: np.zeros((3, 32, 32), np.uint8), Sensor.NDSM: np.zeros((1, 64, 64), np.float32)}
        with pytest.raises(BackendError, match="scenario full"):
            backend.infer(Scenario.FULL, wrong)
        right = tile()
        assert backend.infer(Scenario.FULL, right)[Output.CLASSES].shape == (64, 64)


def test_a_missing_library_names_its_install_command(toy_bundle, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "engine.backends.onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match="pip install onnxruntime"):
        BackendOptions(name="onnxruntime").open(toy_bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES])


def test_fp32_is_really_fp32(toy_bundle) -> None:
    with BackendOptions(name="openvino", precision="fp32", threads=1).open(
        toy_bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]
    ) as backend:
        assert backend.info.precision == "f32"
        assert backend.info.threads == 1


@pytest.fixture(scope="module")
def precisions(toy_bundle, tmp_path_factory) -> Bundle:
    return with_precisions(toy_bundle, tmp_path_factory.mktemp("precisions") / "bundle")


# What the floating-point part of a graph is computed in: at least so many pixels have the same class, and a probability
# is at most so far off. OpenVINO takes bf16 on a processor that has products of it.
ROUNDING = {"f32": (0.999, 1e-4), "bf16": (0.99, 0.03)}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("scenario", Scenario)
def test_the_int8_graph_means_the_same_in_every_backend(name, scenario, precisions) -> None:
    inputs = {sensor: values for sensor, values in tile().items() if sensor in scenario.sensors}
    expected = quantised_probabilities(scenario, inputs)
    with BackendOptions(name=name, precision="int8").open(
        precisions, scenarios=[scenario], wanted=list(Output)
    ) as backend:
        assert backend.info.graph == "int8"
        answer = backend.infer(scenario, inputs)
    least, most = ROUNDING[backend.info.precision]
    # A height half-way between two steps may take either.
    off = np.abs(answer[Output.PROBABILITIES] - expected).max(axis=0)
    assert np.quantile(off, 0.999) < most
    assert (answer[Output.CLASSES] == expected.argmax(axis=0)).mean() > least
    exact = toy_probabilities(scenario, inputs, radius=0)
    assert np.abs(expected - exact).max() > 0.003, "the test must be able to tell int8 from float32"


@pytest.mark.parametrize("name", BACKENDS)
def test_the_fp16_graph_answers_within_its_tolerance(name, precisions) -> None:
    expected = toy_probabilities(Scenario.FULL, tile(), radius=0)
    with BackendOptions(name=name, precision="fp16").open(
        precisions, scenarios=[Scenario.FULL], wanted=[Output.PROBABILITIES]
    ) as backend:
        assert backend.info.graph == "fp16"
        answer = backend.infer(Scenario.FULL, tile())[Output.PROBABILITIES]
    assert np.abs(answer - expected).max() < max(0.01, ROUNDING[backend.info.precision][1])


@pytest.mark.parametrize("name", BACKENDS)
def test_a_precision_that_the_bundle_lacks_is_refused(name, toy_bundle) -> None:
    with pytest.raises(ManifestError, match="has no int8 graph for full; it has fp32"):
        BackendOptions(name=name, precision="int8").open(toy_bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES])


@pytest.mark.parametrize(
    ("graph", "arithmetic", "as_wide_as"),
    [
        ("fp32", "f32", "f32"),
        ("fp32", "bf16", "bf16"),
        ("fp32", "tf32", "tf32"),
        ("fp16", "f32", "f16"),
        ("fp16", "f16", "f16"),
        ("fp16", "bf16", "bf16"),
        ("int8", "f32", "int8"),
        ("int8", "bf16", "int8"),
        ("fp32", "a type of tomorrow", "bf16"),
    ],
)
def test_the_golden_tolerance_is_of_the_coarser_of_graph_and_device(
    graph: Precision, arithmetic: str, as_wide_as: str
) -> None:
    assert tolerance_of(graph, arithmetic) == TOLERANCES[as_wide_as]


def answering(change: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make OpenVINO's answers, except the classes, go through ``change``."""
    from engine.backends.openvino import OpenVinoBackend

    honest = OpenVinoBackend.submit

    def changed(self, scenario, inputs):
        answer, answered = honest(self, scenario, inputs).result(), Future()
        answered.set_result(
            {name: values if name is Output.CLASSES else change(values) for name, values in answer.items()}
        )
        return answered

    monkeypatch.setattr(OpenVinoBackend, "submit", changed)


@pytest.mark.parametrize("output", [Output.CONFIDENCE, Output.PROBABILITIES])
def test_an_answer_that_is_not_a_number_is_refused(output, toy_bundle, monkeypatch) -> None:
    def one_nan(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32)
        values[..., 0, 0] = np.nan
        return values

    answering(one_nan, monkeypatch)
    with pytest.raises(GoldenMismatchError, match=f"output {output} differs by inf"):
        BackendOptions(name="openvino").open(toy_bundle, scenarios=[Scenario.FULL], wanted=[output])


def test_a_small_error_everywhere_is_refused(toy_bundle, monkeypatch) -> None:
    answering(lambda values: values + np.float32(0.004), monkeypatch)
    with pytest.raises(
        GoldenMismatchError, match=r"output probabilities differs by 0\.00[34]\d* probability on average"
    ):
        BackendOptions(name="openvino", precision="fp32").open(
            toy_bundle, scenarios=[Scenario.FULL], wanted=[Output.PROBABILITIES]
        )


def _a_class_less(manifest: Manifest) -> Manifest:
    return replace(manifest, classes=manifest.classes[:-1])


def _a_class_more(manifest: Manifest) -> Manifest:
    return replace(manifest, classes=(*manifest.classes, ClassSpec(name="one more", rgb=(1, 2, 3))))


def _a_smaller_tile(manifest: Manifest) -> Manifest:
    return replace(manifest, tile_px=32)


def _graphs_swapped(manifest: Manifest) -> Manifest:
    graphs = dict(manifest.graphs)
    graphs[Scenario.FULL], graphs[Scenario.MISSING_NDSM] = graphs[Scenario.MISSING_NDSM], graphs[Scenario.FULL]
    return replace(manifest, graphs=graphs)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_a_class_less, r"probabilities is float32 \[N, 4, 64, 64\]"),
        (_a_class_more, r"probabilities is float32 \[N, 4, 64, 64\]"),
        (_a_smaller_tile, r"rgir is uint8 \[N, 3, 64, 64\]"),
        (_graphs_swapped, r"full .* it lacks ndsm"),
    ],
)
def test_a_graph_that_does_not_fit_the_manifest_is_refused_where_it_is_opened(
    name: BackendName, change: Callable[[Manifest], Manifest], why: str, toy_bundle: Bundle, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "lying"))
    save_manifest(change(toy_bundle.manifest), root)
    with pytest.raises(ManifestError, match=why):
        BackendOptions(name=name).open(Bundle.load(root), scenarios=[Scenario.FULL], wanted=[Output.CLASSES])


@pytest.mark.parametrize("name", BACKENDS)
def test_weights_behind_a_link_into_a_content_store_are_read(name: BackendName, tmp_path: Path) -> None:
    """OpenVINO refuses weights that lie elsewhere; what it sees is a copy that does not."""
    root = tmp_path / "linked"
    root.mkdir()
    for file in demo.BUNDLE.iterdir():
        (root / file.name).symlink_to(file)
    with BackendOptions(name=name).open(
        Bundle.load(root), scenarios=[Scenario.MISSING_NDSM], wanted=[Output.CLASSES]
    ) as backend:
        assert backend.info.graph == "fp32"


# --- what auto does when a backend refuses ---------------------------------------------------------------------------


def links_to(bundle: Path, folder: Path) -> Path:
    """A bundle whose files are links into a store that knows no names."""
    store, linked = folder / "blobs", folder / "snapshot"
    store.mkdir()
    for number, file in enumerate(sorted(path for path in bundle.rglob("*") if path.is_file())):
        blob = Path(shutil.copy(file, store / f"{number:040x}"))
        link = linked / file.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return linked


class _Refuses:
    """In OpenVINO's place, in its manner: places in its sources first, then what is wrong, over several lines."""

    def __init__(self, bundle, scenarios, wanted, **_options) -> None:
        from engine.backends.words import said

        words = RuntimeError("Exception from src/core.cpp:93:\nException from src/frontend.cpp:7:\nno such\noperator\n")
        raise BackendError(f"OpenVINO could not prepare the bundle {bundle.root}: {said(words)}")


@pytest.fixture
def openvino_refuses(monkeypatch) -> None:
    monkeypatch.setattr("engine.backends.openvino.OpenVinoBackend", _Refuses)


def test_auto_goes_on_to_onnxruntime_where_openvino_refuses_the_bundle(toy_bundle, openvino_refuses, caplog) -> None:
    with BackendOptions().open(toy_bundle, scenarios=Scenario, wanted=[Output.CLASSES]) as backend:
        assert backend.info.name == "onnxruntime"
        assert backend.infer(Scenario.FULL, tile())[Output.CLASSES].shape == (64, 64)
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert warning.message.startswith("ONNX Runtime runs, not OpenVINO: OpenVINO could not prepare the bundle")


def test_auto_passes_on_what_openvino_said_where_onnxruntime_is_not_installed(
    toy_bundle, openvino_refuses, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "engine.backends.onnxruntime", None)
    with pytest.raises(BackendError, match="OpenVINO could not prepare the bundle .*: no such operator"):
        BackendOptions().open(toy_bundle, scenarios=Scenario, wanted=[Output.CLASSES])


def test_a_named_backend_is_never_replaced(toy_bundle, openvino_refuses) -> None:
    with pytest.raises(BackendError, match="OpenVINO could not prepare"):
        BackendOptions(name="openvino").open(toy_bundle, scenarios=Scenario, wanted=[Output.CLASSES])


def test_a_librarys_many_lines_become_one_and_all_of_them_are_in_the_debug_log(caplog) -> None:
    caplog.set_level("DEBUG", logger="engine.backends.words")
    words = "Exception from src/core.cpp:93:\nCheck 'a == b' failed\n  what a pity\n"
    assert said(RuntimeError(words)) == "Check 'a == b' failed what a pity"
    assert words in caplog.text
    caplog.clear()
    assert said(RuntimeError("one line")) == "one line"
    assert caplog.text == ""
    assert len(said(RuntimeError("word " * 1000))) < 310
    assert said(ValueError()) == "ValueError"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_bundle_of_symbolic_links_opens(name, tmp_path: Path) -> None:
    """As the caches of Hugging Face and DVC hold them: a link for every file, named by its content elsewhere."""
    linked = links_to(demo.BUNDLE, tmp_path)
    with BackendOptions(name=name).open(
        Bundle.load(linked), scenarios=[Scenario.FULL], wanted=[Output.CLASSES]
    ) as backend:
        assert backend.info.name == name  # and the golden tile has been reproduced
