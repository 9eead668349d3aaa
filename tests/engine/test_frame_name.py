"""What names and sidecars tell of a frame's file."""

from __future__ import annotations

import msgspec
import pytest

from engine.contract.errors import UsageError
from engine.contract.sensors import Sensor
from engine.live.frame_name import Pattern, Sidecar, stamp_order


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("{sensor}_{stamp}.tif", "rgir_0001.tif", (Sensor.RGIR, "0001")),
        ("{sensor}_{stamp}.tif", "NDSM_2026-05-01T12:00:00.5.tif", (Sensor.NDSM, "2026-05-01T12:00:00.5")),
        ("{sensor}_{stamp}.tif", "rgir_a_b.tif", (Sensor.RGIR, "a_b")),
        ("{stamp}-{sensor}.tiff", "17-04-ndsm.tiff", (Sensor.NDSM, "17-04")),
        ("cam+{stamp}({sensor}).tif", "cam+7(rgir).tif", (Sensor.RGIR, "7")),
        ("{sensor}_{stamp}.tif", "rgir_0001.tif.part", None),
        ("{sensor}_{stamp}.tif", ".rgir_0001.tif.x7", None),
        ("{stamp}_{sensor}.tif", ".0001_rgir.tif", None),
        ("{sensor}_{stamp}.tif", "lidar_0001.tif", None),
        ("{sensor}_{stamp}.tif", "rgir_.tif", None),
        ("{sensor}_{stamp}.tif", "rgir_...tif", None),
        ("{sensor}_{stamp}.tif", "rgir_0001xtif", None),
    ],
)
def test_a_name_tells_sensor_and_stamp(pattern: str, name: str, expected: tuple[Sensor, str] | None) -> None:
    assert Pattern(text=pattern).match(name) == expected


@pytest.mark.parametrize(
    "text",
    ["", "{sensor}.tif", "{stamp}.tif", "{sensor}/{stamp}.tif", "{sensor}{sensor}{stamp}", "{sensor}_{time}", "{s"],
)
def test_a_pattern_without_both_fields_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="`pattern`"):
        Pattern(text=text)


@pytest.mark.parametrize(
    "stamps",
    [
        ["9", "10", "100"],
        ["0009", "0010"],
        ["12.5", "12.75", "13"],
        ["f9_a", "f10", "f10_a", "f10_b"],
        ["2026-05-01T11:59:59.9Z", "2026-05-01T12:00:00Z", "2026-05-01T12:00:00.25Z"],
        ["1714560000000000001", "1714560000000000002"],
        ["07", "7"],
    ],
)
def test_stamps_sort_as_people_sort_them(stamps: list[str]) -> None:
    assert sorted(sorted(stamps, reverse=True), key=stamp_order) == stamps


@pytest.mark.parametrize("file", ["", "..", "/etc/a.tif", "../a.tif", "sub/a.tif"])
def test_a_sidecar_points_to_nothing_but_its_neighbour(file: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="beside its file"):
        msgspec.json.decode(msgspec.json.encode({"sensor": "rgir", "stamp": "1", "file": file}), type=Sidecar)


@pytest.mark.parametrize("stamp", ["", ".", "..", "a/b", "../1", ".hidden", "x" * 201, "a\0b"])
def test_a_stamp_that_cannot_name_a_folder_is_refused(stamp: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="stamp"):
        msgspec.json.decode(msgspec.json.encode({"sensor": "rgir", "stamp": stamp, "file": "a.tif"}), type=Sidecar)
