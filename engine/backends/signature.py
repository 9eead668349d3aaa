"""Does a graph take and give what the manifest says? Asked where a library has read the graph and knows its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from engine.backends.base import Output
from engine.contract.bundle import Bundle
from engine.contract.errors import ManifestError
from engine.contract.sensors import Scenario

Tensor = tuple[DTypeLike, tuple[int | None, ...]]
"""Element type and shape; None is a free axis."""


def check_signature(
    bundle: Bundle, scenario: Scenario, *, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> None:
    """See that a graph's tensors are those of :mod:`engine.contract.bundle`, of the manifest's tile and classes.

    Args:
        bundle: that the graph is from.
        scenario: of the graph.
        inputs: every input the graph has, by name.
        outputs: every output the graph has, by name.

    Raises:
        ManifestError: a tensor is missing, too many, or of another type or shape.
    """
    manifest = bundle.manifest
    side = (manifest.tile_px, manifest.tile_px)
    specs = [manifest.sensor(sensor) for sensor in scenario.sensors]
    wanted_inputs: dict[str, Tensor] = {
        spec.sensor.value: (spec.dtype, (None, len(spec.bands), *side)) for spec in specs
    }
    wanted_outputs: dict[str, Tensor] = {
        Output.CLASSES.value: (np.uint8, (None, *side)),
        Output.CONFIDENCE.value: (np.uint8, (None, *side)),
        Output.PROBABILITIES.value: (np.float32, (None, len(manifest.classes), *side)),
    }
    problems = [f"it also has the input {name}" for name in sorted(set(inputs) - set(wanted_inputs))]
    for wanted, found in ((wanted_inputs, inputs), (wanted_outputs, outputs)):
        for name, (dtype, shape) in wanted.items():
            if name not in found:
                problems.append(f"it lacks {name}")
            elif not _fits(found[name], np.dtype(dtype), shape):
                problems.append(f"{name} is {_told(*found[name])}")
    if problems:
        wanted_told = ", ".join(f"{name} {_told(*each)}" for name, each in {**wanted_inputs, **wanted_outputs}.items())
        raise ManifestError(
            f"the graph for {scenario} in {bundle.root} must fit the manifest ({wanted_told}); {'; '.join(problems)}: "
            "export the bundle again"
        )


def _fits(found: Tensor, dtype: np.dtype[Any], shape: tuple[int | None, ...]) -> bool:
    found_dtype, found_shape = found
    if np.dtype(found_dtype) != dtype or len(found_shape) != len(shape):
        return False
    # a free axis fits any length: a library may not have found out what the graph computes there
    return all(mine in (each, None) for mine, each in zip(found_shape[1:], shape[1:], strict=True))


def _told(dtype: DTypeLike, shape: tuple[int | None, ...]) -> str:
    return f"{np.dtype(dtype)} [{', '.join('N' if axis is None else str(axis) for axis in shape)}]"
