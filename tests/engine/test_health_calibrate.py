"""Limits of audits: as sharp as clean tiles allow, and written into the manifest without touching anything else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import rasterio

from engine import demo
from engine.contract.bundle import Bundle
from engine.contract.health import AuditLimits, ColourLimits
from engine.health.audit import Evidence
from engine.health.calibrate import BOUNDS, COLOUR_BOUNDS, Examined, condemned, fit, fit_colours, main
from engine.health.colours import Colours
from engine.health.verdict import Fault
from tests.engine.made_tiles import NDSM
from tests.engine.test_health_audit import AUDITOR
from tests.engine.test_health_plausibility import village


def evidence(**values: object) -> Evidence:
    measured = AUDITOR.examine(village())
    assert measured is not None
    return replace(measured, **values)  # type: ignore[arg-type]


def clean(count: int = 40) -> list[Examined]:
    return [
        Examined(scene="s", tile=tile, evidence=evidence(with_and_without_heights=0.7 + 0.005 * tile), doubts={})
        for tile in range(count)
    ]


def test_limits_stay_sharp_where_clean_tiles_allow_it_and_agreement_follows_the_model() -> None:
    found = fit(clean(), AuditLimits(), 0.05)
    assert {name: getattr(found, name) for name in BOUNDS if name != "agreement"} == {
        name: high for name, (_, high) in BOUNDS.items() if name != "agreement"
    }
    assert found.agreement == pytest.approx(0.7 + 0.005 * 0.05 * 39, abs=0.002)


def test_limits_give_way_until_no_clean_tile_is_condemned() -> None:
    hard = evidence(with_and_without_heights=0.7, near=0.5)
    tiles = [*clean(), *(Examined(scene="h", tile=n, evidence=hard, doubts={NDSM: (Fault.GROUND,)}) for n in range(4))]
    assert condemned(tiles, AuditLimits())
    found = fit(tiles, AuditLimits(), 0.05)
    assert condemned(tiles, found) == []
    assert found.grounded <= 0.5


def colours(detail: tuple[float, float, float], coarse: tuple[float, float, float]) -> Colours:
    same = {"difference": (9.0, 9.0, 9.0), "structure": 3.0, "blur": 3.0, "jumps": 0.0, "crippled": ""}
    return Colours(detail=detail, coarse=coarse, **same)  # type: ignore[arg-type]


def test_limits_of_colours_lie_beyond_clean_tiles() -> None:
    tiles = [colours((0.4, 0.4, 0.3 + 0.001 * tile), (0.4, 0.4, 0.9)) for tile in range(1000)]
    found = fit_colours(tiles, ColourLimits(), 0.05)
    assert found.parted == pytest.approx(0.3 + 0.001 * 0.005 * 999, abs=0.002)
    assert found.reversed == COLOUR_BOUNDS["reversed"][1], "as sharp as it may be: no infrared is inverted"
    odd = colours((-0.1, -0.2, 0.9), (0.4, 0.3, 0.9))
    assert fit_colours([*tiles, odd], ColourLimits(), 0.05).reversed == pytest.approx(0.55)
    assert fit_colours([], ColourLimits(), 0.05) == ColourLimits()


@pytest.mark.slow
def test_the_command_writes_limits_and_nothing_else(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(demo.BUNDLE, bundle)
    for number in range(20):
        folder = tmp_path / f"scene{number}"
        folder.mkdir()
        for sensor, seen in village(number, 128).items():
            bands, height, width = seen.values.shape
            profile = {"count": bands, "height": height, "width": width, "dtype": seen.values.dtype}
            with rasterio.open(folder / f"{sensor}.tif", "w", driver="GTiff", **profile) as file:
                file.write(seen.values)
                if sensor is NDSM:
                    file.units = ("metre",)
    before = json.loads((bundle / "manifest.json").read_text())
    scenes = [str(tmp_path / f"scene{number}") for number in range(20)]
    code = main(["--bundle", str(bundle), "--scene", *scenes, "--write", "--csv", str(tmp_path / "c.csv")])
    assert code in (0, 1)
    after = json.loads((bundle / "manifest.json").read_text())
    audit = after.pop("audit")
    filled = {"audit", "health", "number"}  # what an older manifest leaves to defaults is written out
    assert all(after[name] == value for name, value in before.items() if name not in filled)
    assert BOUNDS["ranks"][0] <= audit["ranks"] <= BOUNDS["ranks"][1]
    assert Bundle.load(bundle).manifest.audit.ranks == audit["ranks"]
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 21
    assert main(["--bundle", str(bundle), "--scene", *scenes[:3]]) == 2
