"""The doctor finds what works and says why the rest does not, whatever the libraries do."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.contract.bundle import Bundle, FileRef, save_manifest
from engine.contract.sensors import Scenario
from engine.doctor.__main__ import build_parser, main, render
from engine.doctor.diagnosis import Diagnosis, Library, examine
from engine.doctor.host import examine_host
from engine.doctor.probe import Probe, ProbeOutcome, try_backend

ROOT = Path(__file__).parent.parent.parent


def broken_library(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ``onnxruntime`` that runs ``code`` when the backend's process imports it."""
    (folder / "onnxruntime.py").write_text(code)
    monkeypatch.syspath_prepend(folder)


def doctored(bundle: Bundle, root: Path) -> Bundle:
    """A copy whose golden tile expects other classes without nDSM than the graph gives."""
    shutil.copytree(bundle.root, root)
    with np.load(root / "golden.npz") as file:
        golden = dict(file)
    golden["missing_ndsm/classes"] = (golden["missing_ndsm/classes"] + 1) % 4
    np.savez_compressed(root / "golden.npz", **golden)
    changed = vars(bundle.manifest) | {"golden": FileRef.of(root / "golden.npz", root)}
    save_manifest(type(bundle.manifest)(**changed), root)
    return Bundle.load(root)


def text_of(diagnosis: Diagnosis, width: int = 100) -> str:
    return "\n".join(render(diagnosis, width=width))


def test_a_sound_machine_is_usable_and_every_latency_is_measured(toy_bundle) -> None:
    diagnosis = examine(toy_bundle.root, backends=["openvino", "onnxruntime"], precisions=["auto"], tiles=3)
    assert [(probe.backend, probe.scenario) for probe in diagnosis.probes] == [
        (backend, scenario) for backend in ("openvino", "onnxruntime") for scenario in Scenario
    ]
    for probe in diagnosis.probes:
        assert probe.works, probe.reason
        assert len(probe.latencies_ms) == 3
        assert 0 < min(probe.latencies_ms) <= probe.median_ms
        assert probe.library.startswith(probe.backend)
    assert diagnosis.exit_code == 0
    slowest_ms = max(statistics.median(probe.latencies_ms) for probe in diagnosis.probes[:3])
    assert diagnosis.verdict == (
        f"USABLE with --backend openvino: {slowest_ms:.0f} ms a tile of 64 px in the slowest scenario"
    )
    lines = text_of(diagnosis).splitlines()
    (row,) = [line for line in lines if line.startswith("  onnxruntime  auto")]
    assert row.split()[-6::2] == [f"{probe.median_ms:.0f}" for probe in diagnosis.probes[3:]]


def test_a_precision_that_auto_already_is_is_not_tried_twice(toy_bundle) -> None:
    probes = list(try_backend("onnxruntime", toy_bundle, ["auto", "fp32"], tiles=1, timeout_s=120))
    assert [(probe.precision, probe.graph, probe.computes_in) for probe in probes] == [("auto", "fp32", "f32")] * 3
    probes = list(try_backend("onnxruntime", toy_bundle, ["fp32"], tiles=1, timeout_s=120))
    assert [probe.precision for probe in probes] == ["fp32"] * 3


def test_a_backend_that_computes_something_else_is_found_and_its_scenario_named(toy_bundle, tmp_path) -> None:
    bundle = doctored(toy_bundle, tmp_path / "doctored")
    diagnosis = examine(bundle.root, backends=["openvino"], precisions=["fp32"], tiles=1)
    assert [probe.outcome for probe in diagnosis.probes] == [ProbeOutcome.WORKS, ProbeOutcome.WRONG, ProbeOutcome.WORKS]
    assert "scenario missing_ndsm, output classes differs by 1 of the pixels" in diagnosis.probes[1].reason
    assert diagnosis.exit_code == 6
    assert diagnosis.verdict == "NOT USABLE: no backend runs all three scenarios"
    assert "scenario missing_ndsm" in " ".join(text_of(diagnosis).split())  # wrapped where the folder's name lets it


def test_a_bundle_that_was_tampered_with_is_not_tried_at_all(toy_bundle, tmp_path) -> None:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "tampered"))
    graph = bytearray((root / "full.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (root / "full.onnx").write_bytes(graph)
    diagnosis = examine(root)
    assert (diagnosis.exit_code, diagnosis.probes) == (5, ())
    assert diagnosis.verdict == "NOT USABLE: the bundle cannot be trusted"
    assert "full.onnx" in text_of(diagnosis)


def test_a_library_that_cannot_be_imported_is_unavailable_with_the_import_s_own_words(
    toy_bundle, tmp_path, monkeypatch
) -> None:
    broken_library(tmp_path, "raise ImportError('libonnxruntime.so.1: cannot open shared object file')", monkeypatch)
    diagnosis = examine(toy_bundle.root, backends=["onnxruntime"], precisions=["auto", "fp32"], tiles=1)
    assert {probe.outcome for probe in diagnosis.probes} == {ProbeOutcome.UNAVAILABLE}
    assert diagnosis.exit_code == 6
    text = text_of(diagnosis, width=300)
    assert text.count("libonnxruntime.so.1: cannot open shared object file") == 1, "said once, not per scenario"
    assert "pip install onnxruntime" in text


def test_a_library_that_kills_its_process_takes_nothing_with_it(toy_bundle, tmp_path, monkeypatch) -> None:
    code = "import os, signal, sys\nprint('no such instruction', file=sys.stderr, flush=True)\n"
    broken_library(tmp_path, code + "os.kill(os.getpid(), signal.SIGILL)\n", monkeypatch)
    diagnosis = examine(toy_bundle.root, backends=["onnxruntime", "openvino"], precisions=["auto"], tiles=1)
    crashed, working = diagnosis.probes[:3], diagnosis.probes[3:]
    assert [probe.outcome for probe in crashed] == [ProbeOutcome.CRASHED] * 3
    assert crashed[0].reason == "the process died of SIGILL: no such instruction"
    assert crashed[2].reason == "not tried: the process had died at auto full"
    assert all(probe.works for probe in working)
    assert diagnosis.exit_code == 0


def test_a_library_that_never_answers_is_given_up_on(toy_bundle, tmp_path, monkeypatch) -> None:
    broken_library(tmp_path, "import time\ntime.sleep(600)\n", monkeypatch)
    probes = list(try_backend("onnxruntime", toy_bundle, ["auto"], tiles=1, timeout_s=1))
    assert [probe.outcome for probe in probes] == [ProbeOutcome.CRASHED] * 3
    assert probes[0].reason == "no answer within 1 s"
    assert probes[0].exit_code == 6


def test_a_precision_that_the_bundle_lacks_is_said_so(toy_bundle) -> None:
    diagnosis = examine(toy_bundle.root, backends=["onnxruntime"], precisions=["int8"], tiles=1)
    assert {probe.outcome for probe in diagnosis.probes} == {ProbeOutcome.FAILED}
    assert "has no int8 graph for full; it has fp32" in diagnosis.probes[0].reason
    assert diagnosis.exit_code == 5


def test_the_command_prints_one_json_object_and_ends_with_the_verdict_s_code(toy_bundle) -> None:
    command = [sys.executable, "-m", "engine.doctor", "--bundle", str(toy_bundle.root), "--json", "--tiles", "1"]
    done = subprocess.run(
        [*command, "--backend", "onnxruntime"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["usable"], told["exit_code"], told["bundle"]["name"]) == (True, 0, "toy")
    assert told["bundle"]["sha256"] == toy_bundle.digest
    assert [probe["outcome"] for probe in told["probes"]] == ["works"] * 3
    assert {library["name"]: library["distributions"] for library in told["libraries"]}["numpy"] == {
        "numpy": np.__version__
    }
    assert told["host"]["cpu"]["cores"] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--backend", "tensorflow"], "tensorflow"),
        (["--precision", "fp8,fp32"], "auto, fp32"),
        (["--backend", ","], "comma-separated"),
        (["--tiles", "0"], "at least 1, received 0"),
    ],
)
def test_wrong_options_end_with_one_line(arguments, says, capsys) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert says in message


def test_every_option_has_help() -> None:
    parser = build_parser()
    assert [action.dest for action in parser._actions if not action.help] == []
    assert parser.format_help().count("python -m engine.doctor") >= 4


def a_diagnosis(toy_bundle: Bundle, **different: object) -> Diagnosis:
    finding = examine(toy_bundle.root, backends=()).bundle
    works = {"backend": "tensorrt", "precision": "fp16", "outcome": ProbeOutcome.WORKS, "graph": "fp16"}
    values = {
        "version": "1",
        "host": examine_host(),
        "libraries": (),
        "engine_error": "",
        "bundle": finding,
        "probes": tuple(
            Probe(**works, scenario=scenario, computes_in="f16", latencies_ms=(3.0, 4.0, 9.0)) for scenario in Scenario
        ),
    }
    return Diagnosis(**(values | different))


def test_the_verdict_names_the_options_that_work(toy_bundle) -> None:
    assert a_diagnosis(toy_bundle).verdict == (
        "USABLE with --backend tensorrt --precision fp16: 4 ms a tile of 64 px in the slowest scenario"
    )


def test_an_engine_that_cannot_be_imported_is_not_usable(toy_bundle) -> None:
    diagnosis = a_diagnosis(toy_bundle, engine_error="libgdal.so.36: cannot open shared object file")
    assert diagnosis.exit_code == 1
    assert diagnosis.verdict == ("NOT USABLE: engine.run cannot start: libgdal.so.36: cannot open shared object file")


def test_two_packages_in_one_folder_are_pointed_out(toy_bundle) -> None:
    both = {"onnxruntime": "1.20", "onnxruntime-gpu": "1.19"}
    library = Library(name="onnxruntime", needed_for="backend onnxruntime", install="", distributions=both)
    text = text_of(a_diagnosis(toy_bundle, libraries=(library,)), width=300)
    assert "1.20 and 1.19 (onnxruntime-gpu)" in text
    assert "onnxruntime and onnxruntime-gpu both install onnxruntime and have overwritten each other's files" in text


def test_long_reasons_are_wrapped_to_the_terminal(toy_bundle) -> None:
    probe = Probe(
        backend="tensorrt",
        precision="auto",
        scenario=Scenario.FULL,
        outcome=ProbeOutcome.UNAVAILABLE,
        reason="no plan for this device: " + "run python -m export.build " * 8,
    )
    lines = text_of(a_diagnosis(toy_bundle, probes=(probe,)), width=80).splitlines()
    assert max(len(line) for line in lines if "export.build" in line) <= 80


def test_the_resolutions_that_a_bundle_maps_best_at_are_told(toy_bundle, tmp_path) -> None:
    assert "each raster is mapped as it is" in text_of(examine(toy_bundle.root, backends=[]))
    shutil.copytree(toy_bundle.root, tmp_path / "best")
    save_manifest(replace(toy_bundle.manifest, best_gsd_m=(0.1, 0.6)), tmp_path / "best")
    assert "to 0.1 to 0.6 m a pixel, which it maps best at" in text_of(examine(tmp_path / "best", backends=[]))
