"""Options that a run over rasters and a flight over a live folder share, as the fields of their requests."""

from __future__ import annotations

import argparse
from typing import Any

from engine.contract.errors import UsageError
from engine.health.faults import parse_faults


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of :class:`engine.request.Settings` that the command line names in the same way everywhere.

    Raises:
        UsageError: a text cannot be understood.
    """
    same = ("bundle", "backend", "precision", "threads", "plans", "when_behind", "overwrite", "resume")
    return {
        **{name: getattr(options, name) for name in same},
        # Tiles that come at a pace are mostly alone in flight.
        "hint": options.hint or ("throughput" if options.rate is None else "latency"),
        "health": tuple(options.health),
        "watchdog_s": options.watchdog,
        "halo_px": options.halo,
        "inject": () if options.inject is None else parse_faults(options.inject),
        "rgir_bands": _bands(options.rgir_bands),
        "ndsm_scale_m": options.ndsm_scale,
    }


def _bands(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    try:
        nir, red, green = (int(number) for number in text.split(","))
    except ValueError as error:
        raise UsageError(f"--rgir-bands takes three band numbers such as 4,1,2; received {text!r}") from error
    return nir, red, green
