"""``--dry-run`` of a list: what would be mapped, and what it would cost. Nothing is written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.contract.bundle import Bundle
from engine.contract.errors import EngineError
from engine.contract.trust import installed_policy
from engine.fleet.units import Unit
from engine.plan import plan_for

MOST_OPENED = 200
"""Of a longer list so many units are opened, evenly spread, and the others are taken to be like them."""


def forecast(options: argparse.Namespace, units: Sequence[Unit]) -> dict[str, Any]:
    """Units, megapixels, tiles and faults; worker hours and price where speed and price are given.

    Args:
        options: of the command.
        units: to be mapped.
    """
    bundle = Bundle.load(options.bundle, installed_policy(options.require_signature))
    usable = [unit for unit in units if not unit.broken]
    opened = usable[:: -(-len(usable) // MOST_OPENED)] if usable else []
    faults = {unit.name: unit.broken for unit in units if unit.broken}
    mpx, tiles, read = 0.0, 0, 0
    for unit in opened:
        try:
            with ExitStack() as stack:
                request = unit.request(options, Path())
                plan = plan_for(replace(request, overwrite=False, resume=False), bundle, stack)
                stitcher = plan.stitcher()
                assert stitcher is not None
                grid = plan.describe().grid
                assert grid is not None
                mpx, tiles, read = mpx + grid.width * grid.height / 1e6, tiles + len(stitcher), read + 1
        except EngineError as error:
            faults[unit.name] = str(error)
    scale = len(usable) / read if read and len(opened) < len(usable) else 1.0
    told: dict[str, Any] = {
        "units": len(units),
        "opened": len(opened),
        "faults": faults,
        "mpx": round(mpx * scale, 3),
        "tiles": round(tiles * scale),
        "bundle": bundle.digest,
    }
    if options.speed is not None:
        told["worker_hours"] = round(mpx * scale / options.speed / 3600, 3)
        if options.price is not None:
            told["price"] = round(told["worker_hours"] * options.price, 2)
    return told


def print_forecast(options: argparse.Namespace, units: Sequence[Unit]) -> None:
    """As JSON; see :func:`forecast`."""
    told = forecast(options, units)
    print(json.dumps({"event": "plan", **told}) if options.json else json.dumps(told, indent=2))
