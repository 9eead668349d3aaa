"""Edge inference for land-cover segmentation that survives a dead sensor.

::

    import engine

    with engine.load() as model:                          # the demo bundle, or engine.load("bundle", precision="int8")
        result = model.segment(rgir=rgir, ndsm=ndsm)      # arrays, paths, open rasterio datasets
        result.classes, result.confidence                 # uint8 [H, W]
        result.save("map")                                # what python -m engine.run writes
        for result in model.stream(frames):               # sensors watched, order kept
            ...

Errors are :class:`EngineError` and its children in :mod:`engine.contract.errors`. Nothing heavy is imported before a
name of this module is used, and no inference library before a model is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.contract.errors import (
        BackendError,
        BundleError,
        EngineError,
        InputError,
        OutputError,
        UsageError,
    )
    from engine.contract.sensors import Provenance, Scenario, Sensor
    from engine.model import Model, load
    from engine.result import Result

__all__ = [
    "BackendError",
    "BundleError",
    "EngineError",
    "InputError",
    "Model",
    "OutputError",
    "Provenance",
    "Result",
    "Scenario",
    "Sensor",
    "UsageError",
    "load",
]

_HOMES = {
    **dict.fromkeys(("Model", "load"), "engine.model"),
    "Result": "engine.result",
    **dict.fromkeys(("Provenance", "Scenario", "Sensor"), "engine.contract.sensors"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and nothing before."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "engine.contract.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
