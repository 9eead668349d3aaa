"""A bundle's graphs with their weights inside: one file each, which opens wherever it is copied to."""

from __future__ import annotations

import onnx

from engine.contract.bundle import Bundle, Precision
from engine.contract.sensors import Scenario


def whole_graph(bundle: Bundle, scenario: Scenario, precision: Precision) -> onnx.ModelProto:
    """The graph of a scenario; what it keeps in other files is taken in.

    Raises:
        BundleError: there is no such graph, or a file is not what the manifest says.
    """
    with bundle.opened([scenario], precision) as paths:
        return onnx.load(paths[scenario])
