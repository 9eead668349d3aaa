"""OpenVINO on lesser processors: which there are, that the demo bundle is right on each, and who is told if not."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engine import demo
from engine.backends import instruction_sets, openvino
from engine.backends.instruction_sets import NEEDED, VARIABLE, available
from engine.contract.bundle import Bundle, FileRef, save_manifest
from engine.contract.errors import BackendError, BundleError
from engine.contract.proof import prove
from engine.contract.sensors import Scenario
from engine.doctor.diagnosis import examine
from tests.engine.precision_graphs import with_precisions

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("fpu sse2", ()),
        ("avx2 fma", ("AVX2",)),
        ("avx2 fma avx_vnni", ("AVX2", "AVX2_VNNI")),
        ("avx2 fma avx512f avx512bw avx512vl avx512dq", ("AVX2", "AVX512_CORE")),
        (
            "avx2 fma avx512f avx512bw avx512vl avx512dq avx512_vnni avx512_bf16",
            ("AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16"),
        ),
        (" ".join(set().union(*NEEDED.values())), tuple(NEEDED)),
    ],
)
def test_a_processor_can_be_told_to_be_what_its_flags_hold(flags, names, monkeypatch) -> None:
    text = f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n"
    monkeypatch.setattr(Path, "read_text", lambda *_: text)
    assert available.__wrapped__() == names


def test_what_onednn_was_told_is_what_is_in_use(monkeypatch) -> None:
    monkeypatch.setattr(instruction_sets, "available", lambda: ("AVX2", "AVX512_CORE"))
    monkeypatch.delenv(VARIABLE, raising=False)
    assert instruction_sets.in_use() == "AVX512_CORE"
    monkeypatch.setenv(VARIABLE, "avx2")
    assert instruction_sets.in_use() == "AVX2"
    monkeypatch.setenv(VARIABLE, "AVX512_CORE_AMX")  # more than there is: oneDNN takes what it finds
    assert instruction_sets.in_use() == "AVX512_CORE"


def test_the_demo_bundle_in_int8_is_right_with_every_instruction_set() -> None:
    found = examine(demo.BUNDLE, backends=["openvino"], precisions=["int8"], tiles=1, instruction_sets=available()[:-1])
    assert [probe.reason for probe in found.probes if not probe.works] == []
    assert len(found.probes) == max(1, len(available())) * len(Scenario)
    assert found.exit_code == 0


def other_weights(bundle: Bundle, root: Path) -> Bundle:
    """A copy whose int8 graph of missing_rgir computes something else."""
    copy = with_precisions(bundle, root)
    path = root / "missing_rgir.int8.onnx"
    graph = onnx.load(path)
    weights = next(tensor for tensor in graph.graph.initializer if tensor.name == "ndsm_weights_int8")
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
    onnx.save(graph, path)
    graphs = {scenario: dict(refs) for scenario, refs in copy.manifest.graphs.items()}
    graphs[Scenario.MISSING_RGIR]["int8"] = FileRef.of(path, root)
    save_manifest(replace(copy.manifest, graphs=graphs), root)
    return Bundle.load(root)


def test_a_bundle_is_proved_with_every_set_and_a_wrong_graph_is_named(toy_bundle, tmp_path) -> None:
    assert prove(toy_bundle.root, ("fp32",)) == available()[:-1]
    wrong = other_weights(toy_bundle, tmp_path / "wrong")
    with pytest.raises(BundleError, match=r"missing_rgir int8 does not with the processor as it is: .* scenario"):
        prove(wrong.root, ("int8",))


def test_a_proof_that_cannot_be_asked_for_says_why(tmp_path) -> None:
    with pytest.raises(BackendError, match=r"engine.doctor could not prove the bundle"):
        prove(tmp_path, ("int9",))


def test_a_wrong_answer_names_the_instruction_set_and_ends_with_the_backend_s_code(toy_bundle, tmp_path) -> None:
    wrong = other_weights(toy_bundle, tmp_path / "wrong")
    name = available()[0] if available() else ""
    command = [sys.executable, "-m", "engine.run", "--precision", "int8", "--backend", "openvino"]
    command += ["--bundle", str(wrong.root), "--sensors", "ndsm", "--output", str(tmp_path / "map")]
    environment = os.environ | ({VARIABLE: name} if name else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 6
    assert "does not reproduce the golden tile" in done.stderr
    assert name in done.stderr


def test_a_layer_is_wrong_when_it_differs_from_what_its_pairs_say(monkeypatch) -> None:
    bundle = Bundle.load(demo.BUNDLE)
    with np.load(bundle.golden_path) as golden:
        inputs = {sensor: golden[sensor.value] for sensor in Scenario.FULL.sensors}
    assert openvino.first_wrong_layer(bundle, Scenario.FULL, inputs) == ""
    monkeypatch.setattr(openvino, "WRONG_ABOVE", 1e-6)  # any rounding counts
    layer = openvino.first_wrong_layer(bundle, Scenario.FULL, inputs)
    assert layer in {node.name for node in onnx.load(bundle.graph(Scenario.FULL, "int8")).graph.node}
