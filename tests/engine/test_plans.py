"""Which plan may be loaded: everything that makes two plans differ, everything that can happen to their files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from engine.contract.bundle import Bundle, FileRef, save_manifest
from engine.contract.errors import BackendUnavailableError, IntegrityError, ManifestError, OutputError
from engine.contract.plan_cache import (
    StoredPlan,
    choose,
    default_cache,
    find_plan,
    load_hint,
    load_plan,
    save_hint,
    save_plan,
    stored_plans,
    usable_plans,
)
from engine.contract.plans import (
    BatchRange,
    Device,
    PlanAudit,
    PlanHost,
    PlanKey,
    Target,
    power_mode,
    refusal,
    source_sha256,
)
from engine.contract.sensors import Scenario

CONTENT = bytes(range(256)) * 40
ORIN = Device(name="Orin", compute_capability=87, multiprocessors=16)
ADA = Device(name="NVIDIA RTX 4090", compute_capability=89, multiprocessors=128)
HOST = PlanHost(library="tensorrt", library_version="10.3.0", device=ORIN)
ON_ORIN = Target.of(ORIN)
AUDIT = PlanAudit(macs=1000, mac_share={"fp16": 1.0}, layers=3, fallbacks=(), casts=0, weights_bytes=12)


@pytest.fixture
def bundle(toy_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A bundle of one's own, with a graph called fp16 and one called int8 for every scenario."""
    root = tmp_path / "bundle"
    shutil.copytree(toy_bundle.root, root)
    graphs = {}
    for scenario, by_precision in toy_bundle.manifest.graphs.items():
        graphs[scenario] = dict(by_precision)
        for precision in ("fp16", "int8"):
            path = root / f"{scenario}.{precision}.onnx"
            path.write_bytes((root / by_precision["fp32"].path).read_bytes())
            graphs[scenario][precision] = FileRef.of(path, root)
    save_manifest(replace(toy_bundle.manifest, graphs=graphs), root)
    return Bundle.load(root)


@pytest.fixture
def key(bundle: Bundle) -> PlanKey:
    return PlanKey(
        scenario=Scenario.FULL,
        precision="fp16",
        source_sha256=source_sha256(bundle, Scenario.FULL, "fp16"),
        library="tensorrt",
        library_version="10.3.0",
        target=ON_ORIN,
        batch=BatchRange(minimum=1, optimum=1, maximum=4),
    )


@pytest.fixture
def cache(bundle: Bundle) -> Path:
    return default_cache(bundle)


def save(cache: Path, key: PlanKey, content: bytes = CONTENT, *, now: float = 0.0) -> StoredPlan:
    return save_plan(cache, key, content, audit=AUDIT, build_s=1.5, now=now)


OTHER_VALUES = {
    "scenario": Scenario.MISSING_RGIR,
    "precision": "int8",
    "source_sha256": "0" * 64,
    "library": "tensorrt_rtx",
    "library_version": "10.3.1",
    "target": Target(scope="ampere_and_later"),
    "batch": BatchRange(minimum=1, optimum=2, maximum=4),
    "workspace_mib": 64,
    "probabilities": True,
    "platform": "linux-riscv64",
}


@pytest.mark.parametrize("field", [field.name for field in fields(PlanKey)])
def test_another_value_of_any_field_is_another_plan(key: PlanKey, field: str) -> None:
    other = replace(key, **{field: OTHER_VALUES[field]})
    assert other.digest != key.digest
    assert other.stem != key.stem


def test_a_saved_plan_is_found_again_and_reads_back_the_same_bytes(cache: Path, key: PlanKey) -> None:
    saved = save(cache, key)
    found = load_plan(cache, key)
    assert found == saved
    assert found.read() == CONTENT
    assert found.record.created_utc == "1970-01-01T00:00:00.000000+00:00"
    assert sorted(path.name for path in cache.iterdir()) == [f"{key.stem}.json", f"{key.stem}.plan"]
    assert load_plan(cache, replace(key, workspace_mib=64)) is None


def damage_truncated(path: Path) -> None:
    path.write_bytes(CONTENT[:-1])


def damage_one_bit(path: Path) -> None:
    path.write_bytes(CONTENT[:500] + bytes([CONTENT[500] ^ 1]) + CONTENT[501:])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_truncated, "10240 bytes were built, found 10239"),
        (damage_one_bit, "is not the plan that was built for full in fp16"),
        (Path.unlink, "cannot be read (No such file"),
    ],
)
def test_a_damaged_plan_is_refused(cache: Path, key: PlanKey, damage: Callable[[Path], None], says: str) -> None:
    plan = save(cache, key)
    damage(plan.path)
    with pytest.raises(IntegrityError) as refused:
        plan.read()
    assert says in str(refused.value)
    assert "run `python -m export.build`" in str(refused.value)


def test_another_scenarios_plan_under_this_name_is_refused(cache: Path, key: PlanKey) -> None:
    mine = save(cache, key)
    other = save(cache, replace(key, scenario=Scenario.MISSING_NDSM), CONTENT[::-1])
    mine.path.write_bytes(other.path.read_bytes())
    with pytest.raises(IntegrityError, match="is not the plan that was built for full"):
        mine.read()


def test_another_scenarios_record_under_this_name_is_refused(cache: Path, key: PlanKey) -> None:
    save(cache, key)
    other = replace(key, scenario=Scenario.MISSING_NDSM)
    save(cache, other)
    (cache / f"{other.stem}.json").replace(cache / f"{key.stem}.json")
    with pytest.raises(IntegrityError, match="this one describes missing_ndsm-fp16-"):
        load_plan(cache, key)


@pytest.mark.parametrize(
    ("find", "put", "says"),
    [
        ('"record_version": 2', '"record_version": 99', "record_version must be 2, found 99"),
        ('"build_s"', '"built_in"', "is not a plan's record"),
        ('"workspace_mib": null', '"workspace_mib": 12', "bears the name of its plan"),
        ("-fp16-", "-int8-", "bears the name of its plan"),
    ],
)
def test_a_record_that_was_changed_by_hand_is_refused(
    cache: Path, key: PlanKey, find: str, put: str, says: str
) -> None:
    save(cache, key)
    path = cache / f"{key.stem}.json"
    text = path.read_text()
    assert find in text
    path.write_text(text.replace(find, put))
    with pytest.raises(IntegrityError, match=says):
        load_plan(cache, key)
    with pytest.raises(IntegrityError, match=says):
        list(stored_plans(cache))


def test_a_plan_of_this_graph_library_and_device_is_accepted(bundle: Bundle, cache: Path, key: PlanKey) -> None:
    record = save(cache, key).record
    assert refusal(record, bundle, HOST) is None
    assert refusal(record, bundle, HOST, batch=4) is None


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"source_sha256": "0" * 64}, "was built from another graph or other weights"),
        ({"library": "tensorrt_rtx"}, "was built by tensorrt_rtx on linux"),
        ({"platform": "linux-riscv64"}, "on linux-riscv64, this is tensorrt on"),
        ({"library_version": "10.16.1"}, "was built by tensorrt 10.16.1, found 10.3.0"),
        ({"library_version": "11.4.0"}, "was built by tensorrt 11.4.0, found 10.3.0"),
        (
            {"target": Target.of(ADA)},
            r"was built for NVIDIA RTX 4090 \(sm_89, 128 multiprocessors\), this is Orin \(sm_87, 16 multiprocessors\)",
        ),
        (
            {"target": replace(ON_ORIN, multiprocessors=8)},
            r"was built for Orin \(sm_87, 8 multiprocessors\), this is Orin \(sm_87, 16 multiprocessors\)",
        ),
        (
            {"target": Target(scope="capabilities", compute_capabilities=(86, 89))},
            "was built for sm_86, sm_89, this is",
        ),
        ({"batch": BatchRange(minimum=2, optimum=2, maximum=4)}, "takes 2 to 4 tiles at a time, 1 are wanted"),
    ],
)
def test_a_stale_or_foreign_plan_is_never_loaded(
    bundle: Bundle, cache: Path, key: PlanKey, changed: dict[str, object], says: str
) -> None:
    save(cache, replace(key, **changed))
    with pytest.raises(BackendUnavailableError, match=says) as refused:
        find_plan(bundle, Scenario.FULL, "fp16", HOST, batch=1)
    assert f"run `python -m export.build --bundle {bundle.root} --precision fp16`" in str(refused.value)


def test_no_plan_at_all_names_the_command_with_the_cache_that_was_looked_in(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError) as refused:
        find_plan(bundle, Scenario.MISSING_NDSM, "int8", HOST, cache=tmp_path / "elsewhere")
    assert str(refused.value).startswith("missing_ndsm in int8 needs a plan for tensorrt 10.3.0")
    assert f"--bundle {bundle.root} --cache {tmp_path / 'elsewhere'} --precision int8`" in str(refused.value)


def test_a_precision_that_the_bundle_lacks_is_not_a_missing_plan(toy_bundle: Bundle) -> None:
    with pytest.raises(ManifestError, match="has no int8 graph"):
        find_plan(toy_bundle, Scenario.FULL, "int8", HOST)


def test_a_plan_without_probabilities_is_taken_where_nobody_wants_them(
    bundle: Bundle, cache: Path, key: PlanKey
) -> None:
    lean = save(cache, key, now=1.0)
    with pytest.raises(BackendUnavailableError, match="without the output probabilities") as refused:
        find_plan(bundle, Scenario.FULL, "fp16", HOST, probabilities=True)
    assert str(refused.value).endswith("--precision fp16 --probabilities`")
    whole = save(cache, replace(key, probabilities=True), now=2.0)
    for wanted, expected in ((False, lean), (True, whole)):
        assert find_plan(bundle, Scenario.FULL, "fp16", HOST, probabilities=wanted) == expected
        assert usable_plans(bundle, HOST, probabilities=wanted) == {Scenario.FULL: {"fp16": expected}}
    lean.path.with_suffix(".json").unlink()
    assert find_plan(bundle, Scenario.FULL, "fp16", HOST) == whole


def test_records_of_an_earlier_version_are_passed_over_and_named(
    bundle: Bundle, cache: Path, key: PlanKey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    old = cache / "full-fp16-0123456789ab.json"
    cache.mkdir()
    old.write_text('{"record_version": 1, "key": {"version_compatible": false}}')
    assert list(stored_plans(cache)) == []
    assert f"{old} was written by an earlier version" in caplog.text
    plan = save(cache, key)
    assert find_plan(bundle, Scenario.FULL, "fp16", HOST) == plan


def test_the_newest_of_several_plans_is_taken(bundle: Bundle, cache: Path, key: PlanKey) -> None:
    newest = save(cache, replace(key, workspace_mib=1), now=3.0)
    save(cache, key, now=1.0)
    save(cache, replace(key, workspace_mib=2), now=2.0)
    save(cache, replace(key, library_version="10.4.0"), now=4.0)
    assert find_plan(bundle, Scenario.FULL, "fp16", HOST) == newest
    assert usable_plans(bundle, HOST) == {Scenario.FULL: {"fp16": newest}}


@pytest.mark.parametrize(
    ("target", "accepts"),
    [
        (ON_ORIN, [ORIN]),
        (Target(scope="capabilities", compute_capabilities=(86, 89)), [ADA]),
        (Target(scope="ampere_and_later"), [ORIN, ADA]),
    ],
)
def test_a_target_accepts_its_devices_alone(target: Target, accepts: list[Device]) -> None:
    turing = Device(name="T4", compute_capability=75, multiprocessors=40)
    namesake = replace(ORIN, compute_capability=101)
    smaller = replace(ORIN, multiprocessors=8)  # Orin NX and Orin Nano call themselves Orin too
    assert target.accepts(smaller) is (target.scope == "ampere_and_later")
    assert target.accepts(replace(ORIN, power_mode="2")) is target.accepts(ORIN), "a mode changes clocks, no engine"
    assert [device for device in (ORIN, ADA, turing) if target.accepts(device)] == accepts
    assert target.accepts(namesake) is (target.scope == "ampere_and_later")


@pytest.mark.parametrize(
    "wrong",
    [
        {"scope": "device", "multiprocessors": 16, "compute_capabilities": (87,)},
        {"scope": "device", "device_name": "Orin", "compute_capabilities": (87,)},
        {"scope": "device", "device_name": "Orin", "multiprocessors": 16},
        {"scope": "capabilities"},
        {"scope": "capabilities", "device_name": "Orin", "compute_capabilities": (87,)},
        {"scope": "ampere_and_later", "compute_capabilities": (87,)},
    ],
)
def test_a_target_that_contradicts_itself_cannot_be_made(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="scope"):
        Target(**wrong)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 4, 3)])
def test_batch_sizes_must_be_in_order(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="1 <= minimum <= optimum <= maximum"):
        BatchRange(minimum=sizes[0], optimum=sizes[1], maximum=sizes[2])


def test_the_source_hash_covers_the_weights_that_the_graph_names_and_no_others(bundle: Bundle) -> None:
    root, manifest = bundle.root, bundle.manifest
    graph = root / "full.onnx"
    graph.write_bytes(graph.read_bytes() + b"mine.bin")  # external data is named in plain text
    hashes = {}
    for mine, other in ((b"a", b"a"), (b"a", b"b"), (b"b", b"b")):
        (root / "mine.bin").write_bytes(mine)
        (root / "other.bin").write_bytes(other)
        graphs = {**manifest.graphs, Scenario.FULL: {"fp32": FileRef.of(graph, root)}}
        weights = tuple(FileRef.of(root / name, root) for name in ("mine.bin", "other.bin"))
        save_manifest(replace(manifest, graphs=graphs, weights=weights), root)
        hashes[mine, other] = source_sha256(Bundle.load(root), Scenario.FULL, "fp32")
    assert hashes[b"a", b"a"] == hashes[b"a", b"b"] != hashes[b"b", b"b"]


def test_a_changed_graph_makes_its_plan_stale(bundle: Bundle, cache: Path, key: PlanKey) -> None:
    save(cache, key)
    path = bundle.graph(Scenario.FULL, "fp16")
    path.write_bytes(path.read_bytes() + b"\0")
    ref = FileRef.of(path, bundle.root)
    graphs = {**bundle.manifest.graphs, Scenario.FULL: {**bundle.manifest.graphs[Scenario.FULL], "fp16": ref}}
    save_manifest(replace(bundle.manifest, graphs=graphs), bundle.root)
    with pytest.raises(BackendUnavailableError, match="was built from another graph"):
        find_plan(Bundle.load(bundle.root), Scenario.FULL, "fp16", HOST)


def plans_of(cache: Path, key: PlanKey, **latency_ms: float | None) -> list[StoredPlan]:
    plans = []
    for precision, latency in latency_ms.items():
        plan = save(cache, replace(key, precision=precision))
        plans.append(plan if latency is None else plan.with_latency(latency, ORIN))
    return plans


@pytest.mark.parametrize(
    ("latency_ms", "chosen", "says"),
    [
        ({"int8": 1.0, "fp16": 1.5}, "int8", "fastest on Orin (fp16 1.50 ms, int8 1.00 ms)"),
        ({"int8": 1.5, "fp16": 1.0}, "fp16", "fastest on Orin (fp16 1.00 ms, int8 1.50 ms)"),
        ({"int8": 1.0, "fp16": 1.0}, "fp16", "fastest on Orin"),
        ({"int8": None, "fp16": None}, "fp16", "has not been measured on Orin"),
        ({"int8": 1.0, "fp16": None}, "fp16", "has not been measured on Orin"),
        ({"fp32": None, "int8": None}, "fp32", "has not been measured on Orin"),
        ({"int8": None}, "int8", "the only plan"),
    ],
)
def test_int8_runs_by_default_only_where_it_was_measured_to_be_faster(
    cache: Path, key: PlanKey, latency_ms: dict[str, float | None], chosen: str, says: str
) -> None:
    plan, reason = choose(plans_of(cache, key, **latency_ms), ORIN)
    assert plan.record.key.precision == chosen
    assert reason.startswith(f"{chosen}: ")
    assert says in reason


def test_a_latency_of_another_device_does_not_count(cache: Path, key: PlanKey) -> None:
    plan, reason = choose(plans_of(cache, key, int8=1.0, fp16=2.0), ADA)
    assert plan.record.key.precision == "fp16"
    assert "has not been measured on NVIDIA RTX 4090" in reason


def test_a_latency_in_another_power_mode_or_on_another_orin_does_not_count(cache: Path, key: PlanKey) -> None:
    plans = [
        save(cache, replace(key, precision=precision)).with_latency(latency_ms, replace(ORIN, power_mode="0"))
        for precision, latency_ms in (("int8", 1.0), ("fp16", 2.0))
    ]
    chosen, reason = choose(plans, replace(ORIN, power_mode="0"))
    assert (chosen.record.key.precision, reason) == (
        "int8",
        "int8: fastest on Orin in power mode 0 (fp16 2.00 ms, int8 1.00 ms)",
    )
    for other in (replace(ORIN, power_mode="2"), ORIN, replace(ORIN, power_mode="0", multiprocessors=8)):
        chosen, reason = choose(plans, other)
        assert chosen.record.key.precision == "fp16"
        assert "has not been measured on Orin" in reason


@pytest.mark.parametrize(("status", "mode"), [("pmode:0002", "2"), ("pmode:0000\n", "0"), ("", None), (None, None)])
def test_the_power_mode_is_read_as_nvpmodel_keeps_it(tmp_path: Path, status: str | None, mode: str | None) -> None:
    if status is not None:
        (tmp_path / "status").write_text(status)
    assert power_mode(tmp_path / "status") == mode


@pytest.mark.parametrize("spoil", ["damaged", "unreadable", "truncated", "gone"])
def test_what_only_saves_time_is_never_trusted_and_never_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    path = tmp_path / "timing.cache"
    save_hint(path, CONTENT, "slow again")
    assert load_hint(path, "slow again") == CONTENT
    match spoil:
        case "damaged":
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        case "truncated":
            path.write_bytes(path.read_bytes()[:7])
        case "unreadable":
            path.unlink()
            path.mkdir()
        case "gone":
            path.unlink()
    assert load_hint(path, "slow again") == b""
    assert ("slow again" in caplog.text) is (spoil != "gone")
    save_hint(tmp_path / "timing.cache" / "below", CONTENT, "not kept")
    assert ("not kept" in caplog.text) is (spoil in ("damaged", "truncated")), "a file stands where a folder must"


def test_a_measured_latency_is_kept_with_the_plan(cache: Path, key: PlanKey) -> None:
    save(cache, key).with_latency(1.25, ORIN)
    found = load_plan(cache, key)
    assert found is not None
    assert (found.record.latency_ms, found.record.latency_device) == (1.25, "Orin, 16 multiprocessors")
    assert found.read() == CONTENT


def test_a_cache_that_cannot_be_written_is_an_output_error(tmp_path: Path, key: PlanKey) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="choose another folder"):
        save(tmp_path / "file", key)
