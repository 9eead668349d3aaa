"""Every reason names what is wrong and the next step: an option that there is, or something to do."""

from __future__ import annotations

import re

import pytest

from engine.contract.health import default_limits
from engine.contract.sensors import Sensor
from engine.health import mends
from engine.health.faults import LATER, Injection, Injector, Kind, degradations_of, kinds_of, strengths_of
from engine.health.monitor import Fault, Monitor
from engine.health.verdict import Finding
from engine.run import build_parser
from tests.engine.test_health_audit import AUDITOR
from tests.engine.test_health_plausibility import village

STEPS = {name: value for name, value in vars(mends).items() if name.isupper()}
ORDERS = set(re.findall(r"\w+", "check clean expose find focus if interpolate invert lower name pass register restart"))


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_is_an_order_and_its_options_exist(step: str) -> None:
    assert step.split()[0] in ORDERS
    known = build_parser()._option_string_actions
    assert set(re.findall(r"--[a-z-]+", step)) <= set(known)


def test_a_finding_cannot_do_without_a_step() -> None:
    with pytest.raises(TypeError, match="mend"):
        Finding(fault=Fault.DARK, hard=True, detail="dark")  # type: ignore[call-arg]


@pytest.mark.parametrize("sensor", Sensor)
def test_whatever_is_done_to_a_sensor_the_reason_names_a_step(sensor: Sensor) -> None:
    told = set()
    for kind in (*kinds_of(sensor), *degradations_of(sensor)):
        for strength in strengths_of(kind).get(sensor, (None,))[-1:]:
            first = int(kind in LATER)
            injector = Injector([Injection(sensor=sensor, kind=kind, first=first, last=None, strength=strength)])
            monitor = Monitor(default_limits(), AUDITOR)
            for tile in range(3):
                verdict = monitor.assess(injector.apply(tile, village(tile)))[sensor]
                if verdict.fault not in (None, Fault.NO_DATA) and not verdict.recovering:
                    assert any(step in verdict.detail for step in STEPS.values()), f"{kind} {strength}: {verdict}"
                    told.add(verdict.fault)
    assert told >= {Fault.CONSTANT, Fault.FROZEN, Fault.HOLES, Fault.NOISE, Fault.LATE, Fault.READ_ERROR}
    assert told >= ({Fault.BANDS, Fault.DARK} if sensor is Sensor.RGIR else {Fault.GROUND, Fault.OUT_OF_RANGE})
    assert Kind.DEAD in kinds_of(sensor)
