"""The contract: what is refused, and that the message says which rule, what was received and what to do."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.contract import errors
from engine.contract.bands import Band, ndsm_spec, normalise, rgir_spec
from engine.contract.bundle import MANIFEST_NAME, Bundle, ClassSpec, FileRef, save_manifest
from engine.contract.errors import EngineError, IntegrityError, ManifestError, UsageError
from engine.contract.health import HealthLimits, Limit, default_limits, parse_limits
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
        ({"tile_px": 100}, "multiple of 32, received 100"),
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


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("ndsm", r"SENSOR\.LIMIT=VALUE"),
        ("lidar.noise=off", "begin with one of rgir, ndsm, received 'lidar'"),
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
        parse_limits([text], default_limits())


@pytest.mark.parametrize(("name", "content"), [("a.toml", "ndsm = ["), ("a.json", "{"), ("b.json", "[1]")])
def test_files_of_limits_that_cannot_be_read_are_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=name):
        parse_limits([str(tmp_path / name)], default_limits())
