"""What every segmentation system looks like from outside: masks in, logits, synthesised bands and auxiliaries out.

Implementations: :class:`train.model.GEMMNet` (with its ablations, among them the plain AE and cGAN baselines),
:class:`train.baselines.mmformer.MmFormer` and :class:`train.baselines.shaspec.ShaSpec`; :func:`train.systems.build`
makes one by name.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.contract.sensors import Scenario, Sensor
from train.blocks import Normalise
from train.config import ModelConfig

SENSORS = (Sensor.RGIR, Sensor.NDSM)
"""Order of sensors in every pair below, and of the columns of ``available``."""


def availability(scenario: Scenario) -> tuple[bool, bool]:
    """Which of (rgir, ndsm) a scenario reads: one row of ``available``."""
    return Sensor.RGIR in scenario.sensors, Sensor.NDSM in scenario.sensors


@dataclass(frozen=True, kw_only=True)
class SystemOutput:
    """What a forward pass gives. Pairs are in (rgir, ndsm) order; bands are in normalised units.

    The auxiliary outputs exist in training mode only, each at its own scale's resolution.
    """

    logits: Tensor
    """[N, C, H, W]; softmax is the caller's."""
    normalised: tuple[Tensor, Tensor]
    """The real bands, [N, 3, H, W] and [N, 1, H, W]: the generators' targets."""
    available: Tensor
    """bool [N, 2]."""
    synthesised: tuple[Tensor, Tensor] | None = None
    """The generated bands, same shapes as ``normalised``; zeros for samples whose source sensor is absent. None in a
    system without generators."""
    scale_logits: tuple[Tensor, ...] = ()
    """From several scales, each [N, C, H_i, W_i]."""
    unimodal_logits: tuple[Tensor, ...] = ()
    """From each modality's own features, in sensor order."""
    unimodal_needs_sensor: bool = False
    """The unimodal logits of an absent sensor mean nothing and take no part in the loss."""
    shared_features: tuple[Tensor, Tensor] | None = None
    """What a shared encoder makes of each modality, [N, C, h, w]; ShaSpec draws them together."""
    modality_logits: tuple[Tensor, Tensor] | None = None
    """Which modality each specific feature looks like, [N, 2]; ShaSpec keeps them apart."""


class System(nn.Module, ABC):
    """Segmentation from two sensors, either of which may be missing. Raw sensor units go in."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.temperatures: Mapping[Scenario, float] = {}
        """By scenario, of :mod:`train.temperature`; :func:`tempered` takes it into the weights."""
        self.normalise = nn.ModuleDict({spec.sensor: Normalise(spec.bands) for spec in config.sensor_specs})

    def normalisation(self, sensor: Sensor) -> Normalise:
        """Raw units to the network's, and back."""
        found = self.normalise[sensor]
        assert isinstance(found, Normalise)
        return found

    @abstractmethod
    def forward(self, rgir: Tensor, ndsm: Tensor, available: Tensor) -> SystemOutput:
        """Each sample by its own mask.

        Args:
            rgir: [N, 3, H, W], uint8 or float 0..255; read only where available[:, 0].
            ndsm: [N, 1, H, W], metres, finite where it is read: where available[:, 1].
            available: bool [N, 2].

        Raises:
            ValueError: a sample has no sensor, or the sides do not fit ``config.stride_px``.
        """

    @abstractmethod
    def forward_full(self, rgir: Tensor, ndsm: Tensor) -> Tensor:
        """Both sensors alive, no mask and no generator: logits [N, C, H, W]."""

    @abstractmethod
    def forward_missing_ndsm(self, rgir: Tensor) -> tuple[Tensor, Tensor | None]:
        """RGIR alone: logits [N, C, H, W] and, from a generator, nDSM [N, 1, H, W], normalised."""

    @abstractmethod
    def forward_missing_rgir(self, ndsm: Tensor) -> tuple[Tensor, Tensor | None]:
        """nDSM alone: logits [N, C, H, W] and, from a generator, RGIR [N, 3, H, W], normalised."""

    @abstractmethod
    def auxiliary(self) -> tuple[nn.Module, ...]:
        """Modules that exist for training only and are in no exported graph."""

    def tempered(self, scenario: Scenario) -> System:
        """A view with the same parameters whose logits are divided by the scenario's temperature.

        Raises:
            ValueError: it has one, and the system cannot take it in.
        """
        temperature = self.temperatures.get(scenario, 1.0)
        if temperature == 1.0:
            return self
        name = self.last_layer()
        last = copy.deepcopy(getattr(self, name))
        with torch.no_grad():
            for parameter in last.parameters():
                parameter /= temperature
        view = copy.copy(self)
        view._modules = {**self._modules, name: last}
        return view

    def last_layer(self) -> str:
        """Name of the linear layer behind which nothing but linear resampling makes the logits.

        Raises:
            ValueError: the system has none.
        """
        raise ValueError(f"a temperature needs system gemmnet, received {self.config.system}")

    def deployable_parameters(self) -> int:
        """Parameters that at least one exported graph holds."""
        left_out = {id(p) for module in self.auxiliary() for p in module.parameters()}
        return sum(p.numel() for p in self.parameters() if id(p) not in left_out)

    def bands(self, sensor: Sensor, raw: Tensor) -> Tensor:
        """A sensor's bands in network units, float32.

        Raises:
            ValueError: the sides are no multiple of the stride.
        """
        self.check_sides(raw)
        return self.normalisation(sensor)(raw)

    def check_sides(self, raw: Tensor) -> None:
        """Let only images through whose sides are multiples of the stride.

        Raises:
            ValueError: they are not.
        """
        stride = self.config.stride_px
        if raw.shape[-2] % stride or raw.shape[-1] % stride:
            raise ValueError(f"sides must be multiples of {stride} px, received {tuple(raw.shape[-2:])}")

    def real(self, rgir: Tensor, ndsm: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
        """Both sensors' bands in network units, after checking the mask.

        Raises:
            ValueError: a sample has no sensor, or the sides are no multiple of the stride.
        """
        if not bool(available.any(dim=1).all()):
            raise ValueError("each sample needs at least one available sensor, received one with none")
        return self.bands(Sensor.RGIR, rgir), self.bands(Sensor.NDSM, ndsm)


def of_available(encode: Callable[[Tensor], Sequence[Tensor]], bands: Tensor, alive: Tensor) -> list[Tensor] | None:
    """Features of the samples that have a sensor, zeros for the others; None when no sample has it.

    Only those samples pass ``encode``: an absent sensor reaches neither the features nor the batch statistics.

    Args:
        encode: [M, B, H, W] -> feature maps, each [M, C, h, w].
        bands: [N, B, H, W].
        alive: bool [N].
    """
    rows = alive.nonzero().squeeze(1)
    if len(rows) == 0:
        return None
    found = encode(bands[rows])
    if len(rows) == len(alive):
        return list(found)
    return [x.new_zeros(len(alive), *x.shape[1:]).index_copy(0, rows, x) for x in found]
