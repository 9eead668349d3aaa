"""A backend that answers at once, so that everything around it can be measured.

It infers one tile once, by OpenVINO, and gives those maps for every tile: what they compress to is real. The tile is
the golden one, repeated at the distance of two tiles. So neighbours show the same ground where they overlap, and
disagree there as much as tiles do: cross-fading costs what it costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from engine.backends.base import Backend, BackendInfo, Inputs, Output, Outputs
from engine.backends.openvino import OpenVinoBackend
from engine.backends.options import BackendOptions
from engine.backends.remembered import Remembered
from engine.contract.bundle import Bundle
from engine.contract.sensors import Scenario

SLOTS = 2


class NullBackend(Backend):
    """Answers with the maps of the golden tile; arguments as :class:`OpenVinoBackend` takes them."""

    def __init__(self, bundle: Bundle, scenarios: Iterable[Scenario], wanted: Iterable[Output]) -> None:
        scenarios, golden = tuple(scenarios), bundle.golden()
        side, halo_px = bundle.manifest.tile_px, bundle.manifest.halo_px
        again = np.arange(side) % (side - 2 * halo_px)
        self._answers: dict[Scenario, Future[Outputs]] = {scenario: Future() for scenario in scenarios}
        with OpenVinoBackend(bundle, scenarios, wanted) as backend:
            for scenario, answer in self._answers.items():
                tile = {s: np.ascontiguousarray(golden[s.value][:, again[:, None], again]) for s in scenario.sensors}
                answer.set_result(backend.infer(scenario, tile))
            real = backend.info
        self.info = BackendInfo(
            name="null",
            library="none",
            device=real.device,
            precision=real.precision,
            threads=0,
            slots=SLOTS,
            graph=real.graph,
        )

    def submit(self, scenario: Scenario, inputs: Inputs) -> Future[Outputs]:
        """The answer, which is there."""
        return self._answers[scenario]

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True, kw_only=True)
class NullOptions(BackendOptions):
    """Chooses it, in place of a backend that has a name."""

    def open(
        self,
        bundle: Bundle,
        *,
        scenarios: Iterable[Scenario],
        wanted: Iterable[Output],
        remembered: Remembered | None = None,
    ) -> Backend:
        """Open it."""
        return NullBackend(bundle, scenarios, wanted)
