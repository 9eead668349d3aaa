"""The contract: what is refused, and that the message says which rule, what was received and what to do."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import external_data_helper, helper, numpy_helper

from engine import demo
from engine.contract import errors
from engine.contract.bands import Band, ndsm_spec, normalise, rgir_spec
from engine.contract.bundle import MANIFEST_NAME, Bundle, ClassSpec, FileRef, save_manifest
from engine.contract.errors import EngineError, IntegrityError, ManifestError, UsageError
from engine.contract.formats import MalformedError
from engine.contract.health import AuditLimits, HealthLimits, Limit, default_limits, parse_audit, parse_limits
from engine.contract.onnx_files import external_files
from engine.contract.sensors import Provenance, Scenario, Sensor, parse_sensors, scenario_for, scenarios_within


def all_errors() -> list[type[EngineError]]:
    found, todo = [], [EngineError]
    while todo:
        found.append(todo.pop())
        todo += found[-1].__subclasses__()
    return found


def test_the_documented_tree_names_every_exception_with_its_exit_code() -> None:
    lines = re.findall(r"[├└─│ ]*(\w+Error)\s+(\d+)?", errors.__doc__ or "")
    documented = {name: int(code) if code else None for name, code in lines}
    assert set(documented) == {error.__name__ for error in all_errors()}
    for error in all_errors():
        code = documented[error.__name__]
        assert error.exit_code == (code if code is not None else error.__base__.exit_code)


def test_the_command_line_documents_every_exit_code() -> None:
    from engine import run

    for error in all_errors():
        assert re.search(rf"\b{error.exit_code}\b", run.__doc__.split("Exit codes:")[1])


def test_every_alive_set_has_its_scenario() -> None:
    assert scenario_for([]) is None
    for size in (1, 2):
        for alive in itertools.combinations(Sensor, size):
            assert scenario_for(alive).sensors == set(alive)
    assert {scenario.provenance for scenario in Scenario} == set(Provenance) - {Provenance.NONE}


def test_scenarios_within_one_sensor() -> None:
    assert scenarios_within([Sensor.RGIR]) == (Scenario.MISSING_NDSM,)
    assert scenarios_within(Sensor) == tuple(Scenario)


@pytest.mark.parametrize("text", ["", ",", "lidar", "rgir;ndsm"])
def test_sensor_lists_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="rgir, ndsm"):
        parse_sensors(text)


def test_normalise_maps_rgir_to_plus_minus_one_and_clips_heights() -> None:
    rgir = np.array([0, 127.5, 255]).reshape(1, 1, 3).repeat(3, axis=0)
    np.testing.assert_allclose(normalise(rgir, rgir_spec().bands)[1, 0], [-1, 0, 1], atol=1e-6)
    heights = np.array([[[-50.0, -2.0, 0.0, 60.0, 500.0]]])
    out = normalise(heights, ndsm_spec().bands)[0, 0]
    assert out[0] == out[1] == pytest.approx((np.arcsinh(-2) - 1.6) * 0.4, abs=1e-6)
    assert out[3] == out[4] == pytest.approx((np.arcsinh(60) - 1.6) * 0.4, abs=1e-6)
    np.testing.assert_allclose(normalise(heights, ndsm_spec("linear").bands)[0, 0], [-1, -1, -0.9, 1, 1], atol=1e-6)


def test_normalise_refuses_another_band_count() -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., 3, H, W\], received shape \(4, 8, 8\)"):
        normalise(np.zeros((4, 8, 8)), rgir_spec().bands)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"clip_min": 9.0, "clip_max": 9.0}, "below clip_max"),
        ({"scale": 0.0}, "positive"),
        ({"offset": np.nan}, "finite"),
    ],
)
def test_impossible_bands_are_refused(change: dict[str, float], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        dataclasses.replace(ndsm_spec().bands[0], **change)
    assert isinstance(ndsm_spec().bands[0], Band)


def test_a_bundle_reads_back_as_it_was_saved(toy_bundle: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "copy"))
    save_manifest(toy_bundle.manifest, root)
    again = Bundle.load(root)
    assert again.manifest == toy_bundle.manifest
    assert again.digest == toy_bundle.digest


def test_every_file_of_a_bundle_is_verified(toy_bundle: Bundle, tmp_path: Path) -> None:
    for number, ref in enumerate(toy_bundle.manifest.files()):
        root = Path(shutil.copytree(toy_bundle.root, tmp_path / str(number)))
        file = root / ref.path
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(IntegrityError, match=rf"{ref.path}: the manifest says sha256 {ref.sha256[:12]}"):
            Bundle.load(root)
        file.write_bytes(content[:-1])
        with pytest.raises(IntegrityError, match=rf"{ref.size_bytes} bytes, found {ref.size_bytes - 1}"):
            Bundle.load(root)
        file.unlink()
        with pytest.raises(IntegrityError, match="cannot be read"):
            Bundle.load(root)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"schema_version": 99}, "schema_version must be 1, received 99"),
        ({"tile_px": 100}, "multiple of 32 up to 8192, received 100"),
        ({"tile_px": 2**62}, "multiple of 32 up to 8192, received 46"),
        ({"tile_px": 10**400}, "tile_px|number"),
        ({"name": ""}, "name must be 1 to 200"),
        ({"name": "x" * 1_000_000}, "name must be 1 to 200"),
        ({"name": "x" * 5_000_000}, "longer than 4194304 bytes"),
        ({"name": "two\nlines"}, "printable"),
        ({"classes": [{"name": "a", "rgb": [0, 0, 0]}, {"name": "b", "rgb": [0, 0, 0]}]}, "a rgb of its own"),
        ({"classes": [{"name": "a", "rgb": [0, 0, 0]}, {"name": "a", "rgb": [0, 0, 1]}]}, "a name of its own"),
        ({"sensors": []}, "sensors must be rgir uint8 with 3"),
        ({"weights": [{"path": "a\0b", "size_bytes": 1, "sha256": "0" * 64}]}, "printable"),
        ({"weights": [{"path": "a" * 256, "size_bytes": 1, "sha256": "0" * 64}]}, "255 bytes"),
        ({"weights": [{"path": "golden.npz", "size_bytes": 1, "sha256": "0" * 64}]}, "received two for 'golden.npz'"),
        ({"weights": [{"path": "manifest.json", "size_bytes": 1, "sha256": "0" * 64}]}, "received two for"),
        ({"weights": [{"path": "w", "size_bytes": -1, "sha256": "0" * 64}]}, "not be negative"),
        ({"halo_px": 32}, "received 32 for tile 64"),
        ({"gsd_m": [0.5, 0.1]}, "finest, coarsest"),
        ({"graphs": {}}, "graph is needed"),
        ({"tile_px": "64"}, r"Expected `int`, got `str` - at `\$.tile_px`"),
        ({"weights": [{"path": "../evil", "size_bytes": 1, "sha256": "0" * 64}]}, "inside the bundle"),
        ({"weights": [{"path": "w", "size_bytes": 1, "sha256": "xyz"}]}, "64 lower-case hexadecimal"),
    ],
)
def test_manifests_that_cannot_be_true_are_refused(change, rule, toy_bundle: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "bad"))
    manifest = msgspec.json.decode((root / MANIFEST_NAME).read_bytes())
    (root / MANIFEST_NAME).write_bytes(msgspec.json.encode({**manifest, **change}))
    with pytest.raises(ManifestError, match=rule):
        Bundle.load(root)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"name": "\xff\xfe"}',
        "{}".encode("utf-16"),
        b"\0" * 100,
        b"\xef\xbb\xbf{}",
        b'{"schema_version": 1e400}',
    ],
)
def test_a_manifest_that_is_no_json_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ManifestError, match="not a valid manifest") as caught:
        Bundle.load(tmp_path)
    assert str(caught.value).isprintable()


def test_neither_a_pipe_nor_a_device_is_waited_for(toy_bundle: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "pipes"))
    (root / "golden.npz").unlink()
    os.mkfifo(root / "golden.npz")
    with pytest.raises(IntegrityError, match="not a regular file"):
        Bundle.load(root)
    (root / MANIFEST_NAME).unlink()
    (root / MANIFEST_NAME).symlink_to("/dev/zero")
    with pytest.raises(ManifestError, match="not a regular file"):
        Bundle.load(root)


def test_a_file_that_is_swapped_after_the_check_is_not_used(toy_bundle: Bundle, tmp_path: Path) -> None:
    """As large as before and with the old time: only what is read can tell."""
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "swapped"))
    bundle = Bundle.load(root)
    graph = root / "full.onnx"
    graph.write_bytes((root / "missing_ndsm.onnx").read_bytes().ljust(graph.stat().st_size, b"\0"))
    with pytest.raises(IntegrityError, match=r"full.onnx: the manifest says"), bundle.opened([Scenario.FULL], "fp32"):
        pass
    golden = root / "golden.npz"
    golden.write_bytes(bytes(golden.stat().st_size))
    with pytest.raises(IntegrityError, match=r"golden.npz: the manifest says sha256"):
        bundle.golden()


def with_golden(toy_bundle: Bundle, root: Path, write: Callable[[Path, dict[str, np.ndarray]], None]) -> Bundle:
    """A bundle whose golden file is another one, with a manifest that says so."""
    shutil.copytree(toy_bundle.root, root)
    write(root / "golden.npz", toy_bundle.golden())
    golden = FileRef.of(root / "golden.npz", root)
    save_manifest(dataclasses.replace(toy_bundle.manifest, golden=golden), root)
    return Bundle.load(root)


def _no_archive(path: Path, _arrays: dict[str, np.ndarray]) -> None:
    path.write_bytes(b"PK\3\4 this is no archive")


def _lacks_one(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **{name: array for name, array in arrays.items() if name != "full/classes"})


def _pickled(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **{**arrays, "rgir": np.array([{}], dtype=object)})


def _another_shape(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **{**arrays, "ndsm": arrays["ndsm"][:, 1:]})


def _claims_300_gb(path: Path, arrays: dict[str, np.ndarray]) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (3, 10**5, 10**6)})
    np.savez(path, **{name: array for name, array in arrays.items() if name != "rgir"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("rgir.npy", head.getvalue())


def _cut_short(path: Path, arrays: dict[str, np.ndarray]) -> None:
    whole = io.BytesIO()
    np.lib.format.write_array(whole, arrays["rgir"])
    np.savez(path, **{name: array for name, array in arrays.items() if name != "rgir"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("rgir.npy", whole.getvalue()[:-1])


def _not_finite(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **{**arrays, "ndsm": np.full_like(arrays["ndsm"], np.nan)})


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (_no_archive, "no numpy archive"),
        (_lacks_one, "lacks the array full/classes"),
        (_pickled, "array rgir must be uint8"),
        (_another_shape, r"array ndsm must be float32 \[1, 64, 64\], found float32 \[1, 63, 64\]"),
        (_claims_300_gb, r"must be uint8 \[3, 64, 64\], found uint8 \[3, 100000, 1000000\]"),
        (_cut_short, "ends after 12287 of 12288 bytes"),
        (_not_finite, "ndsm must be finite"),
    ],
)
def test_a_golden_file_that_is_none_is_one_line(
    write: Callable[[Path, dict[str, np.ndarray]], None], why: str, toy_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = with_golden(toy_bundle, tmp_path / "bad", write)
    with pytest.raises(IntegrityError, match=why):
        bundle.golden()


def test_a_golden_tile_that_the_manifest_promises_is_there(toy_bundle: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "two"))
    save_manifest(dataclasses.replace(toy_bundle.manifest, golden_tiles=2), root)
    with pytest.raises(IntegrityError, match="lacks the array 1/rgir"):
        Bundle.load(root).golden(1)
    for number in (0, 17):
        with pytest.raises(ValueError, match=f"golden_tiles must lie in 1..16, received {number}"):
            dataclasses.replace(toy_bundle.manifest, golden_tiles=number)


@pytest.mark.parametrize("precision", ["", ".fp16", ".int8"])
def test_weights_of_which_one_in_a_thousand_is_altered_are_never_used(precision: str, tmp_path: Path) -> None:
    """By the least that a number can differ: the last bit."""
    name = f"weights{precision}.bin"
    ref = next(ref for ref in Bundle.load(demo.BUNDLE).manifest.weights if ref.path == name)
    content = (demo.BUNDLE / name).read_bytes()
    ref.verify(demo.BUNDLE)
    for seed in range(5):
        altered = np.frombuffer(content, np.uint8).copy()
        width = {"": 4, ".fp16": 2, ".int8": 1}[precision]
        places = np.random.default_rng(seed).choice(altered.size // width, altered.size // width // 1000, replace=False)
        altered[places * width] ^= 1
        (tmp_path / name).write_bytes(altered.tobytes())
        with pytest.raises(IntegrityError, match=f"{name}: the manifest says sha256"):
            ref.verify(tmp_path)


# Private copies of graphs


def with_external_weights(toy_bundle: Bundle, root: Path, location: str, *, listed: bool) -> Bundle:
    """The graph for both sensors keeps its weights in another file."""
    shutil.copytree(toy_bundle.root, root)
    model = onnx.load(root / "full.onnx")
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "rgir_weights")
    content = numpy_helper.to_array(weights).tobytes()
    (root / "weights.bin").write_bytes(content)
    weights.ClearField("raw_data")
    weights.raw_data = content
    external_data_helper.set_external_data(weights, location, 0, len(content))
    weights.ClearField("raw_data")
    (root / "full.onnx").write_bytes(model.SerializeToString())
    graphs = {scenario: dict(by_precision) for scenario, by_precision in toy_bundle.manifest.graphs.items()}
    graphs[Scenario.FULL]["fp32"] = FileRef.of(root / "full.onnx", root)
    files = (FileRef.of(root / "weights.bin", root),) if listed else ()
    save_manifest(dataclasses.replace(toy_bundle.manifest, graphs=graphs, weights=files), root)
    return Bundle.load(root)


def test_a_graph_finds_the_weights_of_the_manifest_and_nothing_else(toy_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_external_weights(toy_bundle, tmp_path / "good", "weights.bin", listed=True)
    (bundle.root / "beside.bin").write_bytes(b"x")
    with bundle.opened(Scenario, "fp32") as paths:
        folder = paths[Scenario.FULL].parent
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            ["full.onnx", "missing_ndsm.onnx", "missing_rgir.onnx", "weights.bin"]
        )
        assert folder.stat().st_mode & 0o077 == 0
        assert all((folder / name.name).read_bytes() == name.read_bytes() for name in bundle.root.glob("*.onnx"))
    assert not folder.exists()


@pytest.mark.parametrize("location", ["weights.bin", "/etc/passwd", "../../etc/passwd", "weights.bin/../other.bin"])
def test_weights_that_the_manifest_does_not_list_are_refused(location: str, toy_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_external_weights(toy_bundle, tmp_path / "bad", location, listed=location != "weights.bin")
    with pytest.raises(IntegrityError, match="does not list"), bundle.opened([Scenario.FULL], "fp32"):
        pass


def test_external_files_are_found_wherever_a_graph_may_hide_them() -> None:
    def tensor(name: str) -> onnx.TensorProto:
        made = onnx.TensorProto(name=name, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        made.external_data.add(key="offset", value="0")
        made.external_data.add(key="location", value=name)
        return made

    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "inner", [], [], [tensor("inner.bin")])
    loop = helper.make_node("Loop", [], [], body=inner)
    constant = helper.make_node("Constant", [], ["c"], value=tensor("constant.bin"))
    listed = helper.make_node("Custom", [], [])
    listed.attribute.add(name="many", type=onnx.AttributeProto.TENSORS).tensors.append(tensor("many.bin"))
    graph = helper.make_graph([loop, constant, listed], "outer", [], [], [tensor("outer.bin")])
    graph.sparse_initializer.add(values=tensor("sparse.bin"))
    function = helper.make_function("", "f", [], [], [constant], [helper.make_opsetid("", 18)])
    function.node[0].attribute[0].t.CopyFrom(tensor("function.bin"))
    model = helper.make_model(graph, functions=[function])
    names = ["inner", "constant", "many", "outer", "sparse", "function"]
    assert external_files(model.SerializeToString()) == {f"{name}.bin" for name in names}


@pytest.mark.parametrize("path", sorted((Path(demo.BUNDLE)).glob("*.onnx")), ids=lambda path: path.name)
def test_external_files_are_those_that_onnx_finds(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    expected = {
        entry.value
        for tensor in external_data_helper._get_all_tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert external_files(path.read_bytes()) == expected != set()


def test_what_is_no_graph_is_malformed_or_names_no_file() -> None:
    rng = np.random.default_rng(0)
    whole = (Path(demo.BUNDLE) / "full.onnx").read_bytes()
    contents = [whole[:size] for size in (1, 7, 1000, len(whole) - 1)]
    contents += [rng.integers(0, 256, 200, np.uint8).tobytes() for _ in range(200)]
    contents += [b"\x3a\xff\xff\xff\xff\x0f" * 3, b"\xff" * 50, (b"\x3a\x7f" * 60).ljust(10_000, b"\0")]
    for content in contents:
        with contextlib.suppress(MalformedError):
            external_files(content)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="export.run"):
        Bundle.load(tmp_path)


def test_a_graph_of_a_precision_that_is_not_there_is_named(toy_bundle: Bundle) -> None:
    with pytest.raises(ManifestError, match="no int8 graph for full; it has fp32"):
        toy_bundle.graph(Scenario.FULL, "int8")


def test_colours_and_paths_are_checked_on_construction() -> None:
    with pytest.raises(ValueError, match=r"0\.\.255, received"):
        ClassSpec(name="x", rgb=(0, 0, 256))
    with pytest.raises(ValueError, match="inside the bundle"):
        FileRef(path="/etc/passwd", size_bytes=1, sha256="0" * 64)


# Health limits


def test_a_manifest_without_health_has_the_default_limits(toy_bundle: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "old"))
    manifest = msgspec.json.decode((root / MANIFEST_NAME).read_bytes())
    manifest.pop("health", None)
    (root / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))
    assert Bundle.load(root).manifest.health == default_limits()


def test_a_bundle_keeps_its_own_limits(toy_bundle: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "own"))
    health = parse_limits(["ndsm.max_height_m=80", "rgir.noise=off"], default_limits())
    save_manifest(dataclasses.replace(toy_bundle.manifest, health=health), root)
    assert Bundle.load(root).manifest.health == health


@pytest.mark.parametrize(
    ("health", "rule"),
    [
        ({}, "limits for each of"),
        ({"ndsm": {"max_height_m": 80}}, r"missing required field.*\$.health"),
        ({"lidar": {}}, "lidar"),
    ],
)
def test_limits_in_a_manifest_are_whole(health: dict, rule: str, toy_bundle: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "part"))
    manifest = msgspec.json.decode((root / MANIFEST_NAME).read_bytes())
    (root / MANIFEST_NAME).write_bytes(msgspec.json.encode({**manifest, "health": health}))
    with pytest.raises(ManifestError, match=rule):
        Bundle.load(root)


def changed(sensor: Sensor, **fields: object) -> dict[Sensor, HealthLimits]:
    limits = default_limits()
    limits[sensor] = dataclasses.replace(limits[sensor], **fields)
    return limits


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ndsm.max_height_m=80", changed(Sensor.NDSM, max_height_m=80)),
        ("ndsm.min_height_m = -2.5", changed(Sensor.NDSM, min_height_m=-2.5)),
        ("rgir.noise.soft=12", changed(Sensor.RGIR, noise=Limit(soft=12, hard=25))),
        ("rgir.noise=off", changed(Sensor.RGIR, noise=None)),
        ("ndsm.dead_after_tiles=5", changed(Sensor.NDSM, dead_after_tiles=5)),
    ],
)
def test_a_limit_is_changed_by_name(text: str, expected: dict[Sensor, HealthLimits]) -> None:
    assert parse_limits([text], default_limits()) == expected
    assert parse_limits([], default_limits()) == default_limits()


def test_limits_come_from_files_and_later_texts_win(tmp_path: Path) -> None:
    toml, json = tmp_path / "limits.toml", tmp_path / "limits.json"
    toml.write_text('[ndsm]\nmax_height_m = 80\nstuck = "off"\n[rgir.noise]\nhard = 60\n')
    json.write_text('{"ndsm": {"stuck": {"soft": 0.1, "hard": 0.2}}}')
    found = parse_limits([str(toml), str(json), "ndsm.max_height_m=90"], default_limits())
    assert found == {
        **changed(Sensor.RGIR, noise=Limit(soft=default_limits()[Sensor.RGIR].noise.soft, hard=60)),
        Sensor.NDSM: changed(Sensor.NDSM, max_height_m=90, stuck=Limit(soft=0.1, hard=0.2))[Sensor.NDSM],
    }


def test_limits_of_audits_are_changed_alike_and_apart_from_those_of_sensors(tmp_path: Path) -> None:
    toml = tmp_path / "limits.toml"
    toml.write_text("[audit]\nagreement = 0.5\n[ndsm]\nmax_height_m = 80\n")
    texts = [str(toml), "audit.every_tiles=9"]
    assert parse_audit(texts, AuditLimits()) == AuditLimits(agreement=0.5, every_tiles=9)
    assert parse_limits(texts, default_limits()) == changed(Sensor.NDSM, max_height_m=80)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("audit.zeal=3", "audit has the limits every_tiles, .*; received 'zeal'"),
        ("audit.agreement=off", "Expected `float`"),
        ("audit.every_tiles=-1", "at least 0, received -1"),
        ("audit.ranks=nan", "ranks must be finite"),
        ("ndsm", r"SENSOR\.LIMIT=VALUE"),
        ("lidar.noise=off", "begin with one of rgir, ndsm, audit, received 'lidar'"),
        ("ndsm=3", "begin with one of"),
        ("ndsm.dark=off", "ndsm has the limits .*max_height_m.*; received 'dark'"),
        ("rgir.max_height_m=3", "rgir has the limits"),
        ("rgir.noise.mild=3", "soft and hard, received mild"),
        ("rgir.noise.soft=much", "a number or off is needed, received 'much'"),
        ("rgir.noise.soft=nan", "finite number of at least 0, received nan"),
        ("rgir.noise.soft=-1", "at least 0, received -1"),
        ("rgir.noise.soft=99", "hard must not be below soft, received soft 99"),
        ("rgir.dark.hard=99", "hard must not be above soft"),
        ("rgir.noise=3", r"Expected `object \| null`, got `int`"),
        ("rgir.dead_after_tiles=0", "at least 1, received 0"),
        ("rgir.dead_after_tiles=2.5", "Expected `int`"),
        ("ndsm.max_height_m=-20", "min_height_m below max_height_m, received"),
        ("ndsm.max_height_m=off", "min_height_m below max_height_m, received"),
        ("nowhere.toml", "cannot be read"),
    ],
)
def test_limits_that_make_no_sense_are_refused(text: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        parse_audit([text], AuditLimits()) if text.startswith("audit") else parse_limits([text], default_limits())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.toml", b"ndsm = ["),
        ("b.toml", "[ndsm]".encode("utf-16")),
        ("c.toml", b"a = " + b"[" * 10_000),
        ("a.json", b"{"),
        ("b.json", b"[1]"),
        ("c.json", b"\xff"),
        ("d.json", b"[" * 100_000),
    ],
)
def test_files_of_limits_that_cannot_be_read_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        parse_limits([str(tmp_path / name)], default_limits())
