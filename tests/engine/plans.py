"""What ``python -m export.build`` would leave for the toy bundle on an emulated device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.contract.bundle import Bundle, Precision, save_manifest
from engine.contract.plan_cache import StoredPlan, default_cache, save_plan
from engine.contract.plans import BatchRange, PlanAudit, PlanKey, Target, source_sha256
from engine.contract.sensors import Scenario
from tests.conftest import write_toy_bundle
from tests.engine.emulated_gpu import Plan

TILE_PX = 64
LIBRARIES = {"tensorrt": "10.3.0"}
ORIN = Target(scope="capabilities", compute_capabilities=(87,))


def under_three_names(root: Path) -> Bundle:
    """The toy bundle, each graph listed as fp32, fp16 and int8."""
    toy = write_toy_bundle(root, tile_px=TILE_PX)
    graphs = {
        scenario: dict.fromkeys(("fp32", "fp16", "int8"), refs["fp32"])
        for scenario, refs in toy.manifest.graphs.items()
    }
    save_manifest(replace(toy.manifest, graphs=graphs), toy.root)
    return Bundle.load(toy.root)


def build(
    bundle: Bundle,
    precision: Precision = "fp16",
    *,
    change: Callable[[PlanKey], PlanKey] = lambda key: key,
    content: Callable[[Plan], bytes] = Plan.encode,
    folder: Path | None = None,
) -> dict[Scenario, StoredPlan]:
    """One plan per scenario."""
    share = {"fp32": {"fp32": 1.0}, "fp16": {"fp16": 1.0}, "int8": {"int8": 0.9, "fp16": 0.1}}[precision]
    audit = PlanAudit(macs=1000, mac_share=share, layers=1, fallbacks=(), casts=0, weights_bytes=0)
    stored = {}
    for scenario in Scenario:
        key = change(
            PlanKey(
                scenario=scenario,
                precision=precision,
                source_sha256=source_sha256(bundle, scenario, precision),
                library="tensorrt",
                library_version=LIBRARIES["tensorrt"],
                target=ORIN,
                batch=BatchRange(minimum=1, optimum=1, maximum=1),
                probabilities=True,
            )
        )
        plan = Plan(name=key.stem, scenario=scenario, tile_px=TILE_PX, probabilities=key.probabilities)
        stored[scenario] = save_plan(folder or default_cache(bundle), key, content(plan), audit=audit, build_s=1.0)
    return stored
