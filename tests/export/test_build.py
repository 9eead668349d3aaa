"""``python -m export.build`` with TensorRT-RTX, which really builds every engine here without a GPU."""

from __future__ import annotations

import signal
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError, BackendUnavailableError, InterruptedRunError
from engine.contract.plan_cache import StoredPlan, default_cache, find_plan, save_plan, stored_plans
from engine.contract.plans import BatchRange, Device, PlanHost, Target
from engine.contract.sensors import Scenario
from export import build
from export.cuda_device import current_device
from export.trt_library import TrtLibrary, open_library, use_timing_cache
from tests.engine.test_backends import links_to
from tests.export.toy_engines import quantised, replace_graph, requires_rtx, with_engines

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "engine" / "demo" / "bundle"
RTX = ["--library", "tensorrt_rtx"]
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "modelopt", "train")

pytestmark = requires_rtx


@pytest.fixture(scope="module")
def built(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle in three precisions with the plans of one command."""
    bundle = with_engines(toy_bundle, tmp_path_factory.mktemp("built") / "bundle")
    assert build.main(["--bundle", str(bundle.root), *RTX]) == 0
    return bundle


@pytest.fixture
def bundle(toy_bundle: Bundle, tmp_path: Path) -> Bundle:
    """The same without plans, to spoil."""
    return with_engines(toy_bundle, tmp_path / "bundle")


@pytest.fixture(scope="module")
def library() -> TrtLibrary:
    return open_library("tensorrt_rtx")


@pytest.fixture
def no_gpu() -> None:
    try:
        current_device()
    except BackendUnavailableError:
        return
    pytest.skip("there is a CUDA device")


def run(bundle: Bundle, *options: str) -> int:
    return build.main(["--bundle", str(bundle.root), *RTX, *options])


def one(bundle: Bundle, *options: str) -> StoredPlan:
    """The plan of one build of the scenario ``full`` in fp32."""
    assert run(bundle, "--precision", "fp32", *options) == 0
    host = PlanHost(library="tensorrt_rtx", library_version=open_library("tensorrt_rtx").version, device=None)
    return find_plan(bundle, Scenario.FULL, "fp32", host)


@pytest.mark.slow
def test_the_demo_bundle_builds_in_every_precision_that_it_ships(tmp_path: Path) -> None:
    demo = Bundle.load(DEMO)
    assert build.main(["--bundle", str(DEMO), "--cache", str(tmp_path), *RTX]) == 0
    plans = {(plan.record.key.scenario, plan.record.key.precision): plan for plan in stored_plans(tmp_path)}
    assert set(plans) == {
        (scenario, precision) for scenario in Scenario for precision in demo.manifest.graphs[scenario]
    }
    for plan in plans.values():
        content = plan.read()
        assert plan.record.key.stem.encode() in content, "an engine bears the name of its plan"
        made = plan.record.audit.engine
        assert made is not None
        assert made.mac_share == pytest.approx(plan.record.audit.mac_share)
        assert plan.record.audit.weights_bytes < len(content)


def test_all_scenarios_and_precisions_are_built_and_recorded(built: Bundle, library: TrtLibrary) -> None:
    plans = list(stored_plans(default_cache(built)))
    assert {(plan.record.key.scenario, plan.record.key.precision) for plan in plans} == {
        (scenario, precision) for scenario in Scenario for precision in ("fp32", "fp16", "int8")
    }
    for plan in plans:
        record = plan.record
        assert record.key.stem.encode() in plan.read()
        assert (record.key.library, record.key.library_version) == ("tensorrt_rtx", library.version)
        assert record.key.target == Target(scope="capabilities", compute_capabilities=(80, 86, 89, 120, 121))
        assert record.audit.mac_share == {record.key.precision: 1.0}
        assert record.build_s > 0
        assert record.latency_ms is None


def test_the_runtime_finds_what_was_built_by_this_version_and_refuses_it_to_another(
    built: Bundle, library: TrtLibrary
) -> None:
    ada = Device(name="NVIDIA RTX 4090", compute_capability=89, multiprocessors=128)
    here = PlanHost(library="tensorrt_rtx", library_version=library.version, device=ada)
    assert find_plan(built, Scenario.MISSING_RGIR, "int8", here, batch=1).read()
    with pytest.raises(BackendUnavailableError, match=f"was built by tensorrt_rtx {library.version}, found 1.8.0"):
        find_plan(built, Scenario.MISSING_RGIR, "int8", replace(here, library_version="1.8.0"))
    with pytest.raises(BackendUnavailableError, match=r"was built for sm_80, .*, this is T4 \(sm_75"):
        find_plan(
            built,
            Scenario.FULL,
            "fp16",
            replace(here, device=Device(name="T4", compute_capability=75, multiprocessors=40)),
        )


def test_a_second_build_leaves_everything_as_it_is(built: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in default_cache(built).iterdir()}
    assert run(built) == 0
    assert {path: path.stat().st_mtime_ns for path in default_cache(built).iterdir()} == before
    out = capsys.readouterr().out
    assert out.count("up to date") == 9
    assert "built in" not in out


def test_force_builds_again(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    plan = one(bundle)
    written = plan.path.stat().st_mtime_ns
    assert one(bundle, "--force").path == plan.path
    assert plan.path.stat().st_mtime_ns > written
    assert capsys.readouterr().out.count("built in") == 2 * len(Scenario)


@pytest.mark.parametrize("keep_bytes", [None, 100, 0], ids=["one bit", "truncated", "empty"])
def test_a_damaged_plan_is_shown_and_built_anew(
    bundle: Bundle,
    keep_bytes: int | None,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = one(bundle)
    content = bytearray(plan.read())
    if keep_bytes is None:
        content[len(content) // 2] ^= 1
    plan.path.write_bytes(content[:keep_bytes])
    capsys.readouterr()
    assert run(bundle, "--list") == 0
    assert capsys.readouterr().out.count("damaged:") == 1
    again = one(bundle)
    assert again.read()
    assert "building again: " in caplog.text
    assert capsys.readouterr().out.count("up to date") == len(Scenario) - 1


def test_a_changed_graph_is_built_anew_and_its_old_plan_is_refused(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    old = one(bundle)
    model = onnx.load(bundle.graph(Scenario.FULL, "fp32"))
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    changed = replace_graph(bundle, Scenario.FULL, "fp32", model.SerializeToString())
    new = one(changed)
    assert new.path != old.path
    capsys.readouterr()
    assert run(changed, "--list") == 0
    out = capsys.readouterr().out
    assert out.count("refused: it was built from another graph or other weights") == 1
    assert out.count("usable") == len(Scenario)


def test_a_plan_of_another_version_is_listed_as_refused(
    built: Bundle, library: TrtLibrary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = next(stored_plans(default_cache(built)))
    foreign = replace(mine.record.key, library_version="1.6.0")
    save_plan(tmp_path, foreign, mine.read(), audit=mine.record.audit, build_s=1.0)
    assert run(built, "--list", "--cache", str(tmp_path)) == 0
    assert f"refused: it was built by tensorrt_rtx 1.6.0, found {library.version}" in capsys.readouterr().out


def test_a_float_graph_called_int8_is_refused_before_it_is_built(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    liar = replace_graph(bundle, Scenario.FULL, "int8", bundle.graph(Scenario.FULL, "fp32").read_bytes())
    assert run(liar, "--precision", "int8") == 5
    error = capsys.readouterr().err
    assert "an engine named int8 must do 50% of its multiply-accumulates in int8; the graph of full does 0.0%" in error
    assert "2 layers are wider" in error
    assert not default_cache(liar).exists()
    assert run(liar, "--precision", "int8", "--min-int8-share", "0") == 0


def test_half_quantised_convolutions_do_not_pass_for_int8(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    weights_only = quantised(bundle.graph(Scenario.FULL, "fp32"), ["weights"])
    liar = replace_graph(bundle, Scenario.FULL, "int8", weights_only.SerializeToString())
    assert run(liar, "--precision", "int8") == 5
    assert "the graph of full does 0.0%" in capsys.readouterr().err


def test_the_share_is_also_asked_of_a_plan_that_is_up_to_date(bundle: Bundle) -> None:
    mixed = replace_graph(bundle, Scenario.FULL, "fp16", bundle.graph(Scenario.FULL, "fp32").read_bytes())
    assert run(mixed, "--precision", "fp16", "--min-fp16-share", "0") == 0
    assert run(mixed, "--precision", "fp16") == 5


def test_a_bundle_of_symbolic_links_is_read_like_any_other(library: TrtLibrary, tmp_path: Path) -> None:
    linked = Bundle.load(links_to(DEMO, tmp_path))
    found, expected = (
        sum(layer.macs for layer in library.parse(bundle.graph(Scenario.FULL, "int8")).layers())
        for bundle in (linked, Bundle.load(DEMO))
    )
    assert found == expected > 0


def test_targets_and_options_are_part_of_the_plan(bundle: Bundle) -> None:
    plans = [
        one(bundle),
        one(bundle, "--target", "89,86"),
        one(bundle, "--batch", "1,2,4"),
        one(bundle, "--workspace", "256"),
    ]
    assert len({plan.path for plan in plans}) == len(plans)
    keys = [plan.record.key for plan in plans]
    assert keys[1].target == Target(scope="capabilities", compute_capabilities=(86, 89))
    assert keys[2].batch == BatchRange(minimum=1, optimum=2, maximum=4)
    assert keys[3].workspace_mib == 256


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--precision", "fp8"], "--precision takes a list of fp32, fp16, int8, received 'fp8'"),
        (["--batch", "2,1,4"], "1 <= minimum <= optimum <= maximum"),
        (["--batch", "4"], "--batch takes three numbers such as 1,1,4"),
        (["--target", "orin"], "--target takes device, ampere+ or compute capabilities"),
        (["--target", "90"], "builds for the compute capabilities 75, 80, 86"),
        (["--workspace", "0"], "--workspace takes a positive number"),
        (["--min-int8-share", "50"], r"a share lies in [0, 1], received 50.0"),
    ],
)
def test_wrong_options_are_said_and_leave_nothing(
    bundle: Bundle, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, *options) == 2
    assert says in capsys.readouterr().err
    assert not default_cache(bundle).exists()


def test_a_precision_that_the_bundle_lacks_is_an_error_of_the_bundle(
    toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(toy_bundle, "--precision", "fp16", "--cache", str(tmp_path)) == 5
    assert "has no fp16 graph for full; it has fp32" in capsys.readouterr().err


def test_building_for_this_device_needs_one(bundle: Bundle, no_gpu: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle, "--target", "device") == 6
    assert "no CUDA driver" in capsys.readouterr().err


def test_what_the_library_cannot_build_carries_its_own_words(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(bundle.graph(Scenario.FULL, "fp32"))
    next(node for node in model.graph.node if node.op_type == "Round").op_type = "NoSuchOperator"
    strange = replace_graph(bundle, Scenario.FULL, "fp32", model.SerializeToString())
    assert run(strange, "--precision", "fp32") == 6
    error = capsys.readouterr().err
    assert "cannot parse" in error
    assert "NoSuchOperator" in error


def test_a_cache_that_cannot_be_written_is_an_output_error(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert run(bundle, "--cache", str(tmp_path / "file" / "plans")) == 4
    assert "choose another folder" in capsys.readouterr().err


def test_a_driver_that_does_not_start_is_told_in_the_librarys_own_words(
    bundle: Bundle, library: TrtLibrary, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tensorrt_rtx

    def null(logger: tensorrt_rtx.ILogger) -> None:
        logger.log(tensorrt_rtx.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(tensorrt_rtx, "Builder", null)
    assert run(bundle) == 6
    error = capsys.readouterr().err
    assert f"tensorrt_rtx {library.version} does not start (pybind11::init()" in error
    assert "CUDA initialization failure with error: 35: check the driver" in error


@pytest.mark.parametrize(
    ("version", "numpy", "refused"),
    [
        ("10.3.0", "2.4.6", True),
        ("10.3.0", "1.26.4", False),
        ("10.16.1.11", "2.4.6", False),
        ("11.4.0", "2.4.6", False),
    ],
)
def test_bindings_that_need_numpy_1_say_so(
    monkeypatch: pytest.MonkeyPatch, version: str, numpy: str, refused: bool
) -> None:
    module = types.ModuleType("tensorrt")
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr("export.trt_library.np.__version__", numpy)
    if not refused:
        assert TrtLibrary("tensorrt").compute_capabilities == ()
        return
    with pytest.raises(BackendUnavailableError, match=r"tensorrt 10\.3\.0 need NumPy 1 .* found NumPy 2\.4\.6: pip"):
        TrtLibrary("tensorrt")


@pytest.mark.parametrize(("content", "kept"), [(b"", b""), (b"times", b"times"), (b"foreign", b""), (b"rubbish", b"")])
def test_a_timing_cache_that_does_not_fit_stops_no_build(
    content: bytes, kept: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    class Config:
        """TensorRT's, as far as timing caches go: None for what is none, False for another device's."""

        used: bytes | None = None

        def create_timing_cache(self, serialised: bytes) -> bytes | None:
            return None if serialised == b"rubbish" else serialised

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            if cache == b"foreign":
                return False
            self.used = cache
            return True

    config = Config()
    use_timing_cache(config, content)
    assert config.used == kept
    assert ("every kernel is timed again" in caplog.text) is (content != kept)


class Refuse:
    """Watches a build and stops it at the third step."""

    def __init__(self) -> None:
        self.phases: dict[str, int] = {}
        self.steps = 0

    def began(self, phase: str, steps: int) -> None:
        self.phases[phase] = steps

    def step(self, phase: str) -> bool:
        assert phase in self.phases
        self.steps += 1
        return self.steps < 3


def test_a_build_tells_its_phases_and_stops_when_it_is_told(bundle: Bundle, library: TrtLibrary) -> None:
    watcher = Refuse()
    key = one(bundle).record.key
    network = library.parse(bundle.graph(Scenario.FULL, "fp32"))
    with pytest.raises(InterruptedRunError, match="was stopped"):
        library.build(network, key, progress=watcher)
    assert watcher.steps >= 3
    assert all(steps > 0 for steps in watcher.phases.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_leaves_whole_plans_alone(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "export.build", "--bundle", str(DEMO), "--cache", str(tmp_path), *RTX]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "plans in" in process.stdout.readline()
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert not list(tmp_path.glob(".*"))
    assert not list(tmp_path.glob("*")), "the signal came before the first plan could be finished"


@pytest.mark.parametrize("module", ["export.build", "export.audit"])
def test_the_commands_explain_themselves_without_any_heavy_library(module: str) -> None:
    script = (
        "import sys, runpy\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {HEAVY!r}: raise ImportError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "sys.argv[1:] = ARGUMENTS\n"
        f"runpy.run_module({module!r}, run_name='__main__')\n"
    )

    def blocked(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = script.replace("ARGUMENTS", repr(list(arguments)))
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    helped = blocked("--help")
    assert helped.returncode == 0, helped.stderr
    assert f"python -m {module} --bundle" in helped.stdout
    missing = blocked("--bundle", str(DEMO))
    assert missing.returncode == 6, missing.stderr
    assert "pip install tensorrt-rtx-cu13" in missing.stderr


def test_all_networks_of_a_process_share_one_logger_and_no_message_of_an_earlier_one(
    bundle: Bundle, library: TrtLibrary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="export.trt_callbacks")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(BackendError, match="cannot parse"):
        library.parse(broken)
    kept = library.parse(bundle.graph(Scenario.FULL, "fp32"))
    assert library.parse(bundle.graph(Scenario.MISSING_NDSM, "fp32")).logger is kept.logger
    assert kept.logger.reasons() == "it gives no reason"
    # TensorRT's own complaint about loggers that come and go
    assert "cannot parse" not in caplog.text
    assert "differs from one already registered" not in caplog.text
