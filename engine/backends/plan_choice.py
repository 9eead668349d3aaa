"""Which device plans a backend loads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.backends.base import ExecutionPrecision, Output
from engine.contract.bundle import Bundle, Precision
from engine.contract.plan_cache import StoredPlan, choose, find_plan, usable_plans
from engine.contract.plans import PlanHost
from engine.contract.sensors import Scenario

BATCH = 1
"""Tiles of a raster are independent and several are in flight, so none waits for others to fill a batch."""
ORDER: tuple[Precision, ...] = ("fp16", "int8", "fp32")
"""Of the graphs that have no plan, the first is the one to ask for."""

_FLOATS = {"f32": "fp32", "tf32": "tf32", "f16": "fp16", "bf16": "bf16"}


@dataclass(frozen=True, kw_only=True)
class PlanChoice:
    """One plan per scenario, all of one precision, so that a map does not change its accuracy with the sensors."""

    precision: Precision
    plans: Mapping[Scenario, StoredPlan]
    reason: str

    @property
    def arithmetic(self) -> str:
        """The floating type of most multiply-accumulates, as :class:`~engine.backends.base.BackendInfo` names types."""
        audits = [plan.record.audit for plan in self.plans.values()]
        return max(_FLOATS, key=lambda short: sum(a.macs * a.mac_share.get(_FLOATS[short], 0.0) for a in audits))


def choose_plans(
    bundle: Bundle,
    scenarios: Sequence[Scenario],
    wanted: Iterable[Output],
    precision: ExecutionPrecision,
    host: PlanHost,
    *,
    cache: Path | None,
) -> PlanChoice:
    """Find the newest plans that ``host`` may load; nothing of them has been verified or read yet.

    ``auto`` takes what :func:`~engine.contract.plan_cache.choose` says of the first scenario. Where ``wanted`` has no
    probabilities, plans that do not compute them come first.

    Raises:
        ManifestError: the bundle has no graph of that precision.
        BackendUnavailableError: a plan is missing or was built for something else; the message names the command.
        IntegrityError: a plan's record is malformed.
    """

    need: dict[str, Any] = {"cache": cache, "batch": BATCH, "probabilities": Output.PROBABILITIES in wanted}

    def find(asked: Precision) -> dict[Scenario, StoredPlan]:
        return {scenario: find_plan(bundle, scenario, asked, host, **need) for scenario in scenarios}

    if precision != "auto":
        return PlanChoice(precision=precision, plans=find(precision), reason=f"{precision}: asked for")
    usable = usable_plans(bundle, host, **need)
    first = usable.get(scenarios[0], {})
    candidates = [
        plan for name, plan in first.items() if all(name in usable.get(scenario, {}) for scenario in scenarios)
    ]
    if not candidates:
        graphs = bundle.manifest.graphs[scenarios[0]]
        find(next(name for name in ORDER if name in graphs))  # says what is missing
    assert host.device is not None
    chosen, reason = choose(candidates, host.device)
    name = chosen.record.key.precision
    return PlanChoice(precision=name, plans={scenario: usable[scenario][name] for scenario in scenarios}, reason=reason)
