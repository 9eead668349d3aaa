"""ShaSpec for two 2-D modalities: what both sensors share stands in for the one that is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from engine.contract.sensors import Sensor
from train.blocks import ConvNormAct, Decoder, resize
from train.config import ModelConfig
from train.model import HyFEx
from train.system import SENSORS, System, SystemOutput, of_available

SHARED_BANDS = 3
"""The shared encoder reads every modality through a 1x1 convolution to so many bands."""


class ShaSpec(System):
    """ShaSpec (CVPR 2023, https://arxiv.org/abs/2307.14126, section 3), for segmentation.

    One encoder shared by both modalities and one specific to each. A modality's features are ``shared +
    conv(shared, specific)``; those of an absent one are the shared features of the other. Training draws the shared
    features of a scene together (L1) and has the specific ones tell their modality (classification); both terms
    leave absent modalities out.

    Departures: 2-D, two modalities, the residual fusion at every scale of the U-Net rather than at the bottleneck
    alone, a 1x1 convolution in front of the shared encoder because the sensors differ in bands, and the widths and
    norm of the configuration. No attention, as in the original's convolutional form, and no synthesised band.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        config = replace(config, hyfex_attention=False)
        widths = config.encoder_widths

        def encoder(bands: int) -> HyFEx:
            return HyFEx(config, bands, widths, config.encoder_refinements, stem_stride=config.stem_stride)

        bands = {spec.sensor: len(spec.bands) for spec in config.sensor_specs}
        self.adapt = nn.ModuleDict({sensor: nn.Conv2d(count, SHARED_BANDS, 1) for sensor, count in bands.items()})
        self.shared = encoder(SHARED_BANDS)
        self.specific = nn.ModuleDict({sensor: encoder(count) for sensor, count in bands.items()})
        self.combine = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for width in widths)
        self.fuse = nn.ModuleList(ConvNormAct(config, 2 * width, width, kernel=1) for width in widths)
        self.decoder = Decoder(config, widths, kind=config.decoder)
        self.head = nn.Conv2d(self.decoder.c_out, config.classes, 1)
        # Training only.
        self.modality_head = nn.Linear(widths[-1], len(SENSORS))

    def forward(self, rgir: Tensor, ndsm: Tensor, available: Tensor) -> SystemOutput:
        """Each sample by its own mask; see :meth:`train.system.System.forward`."""
        real = self.real(rgir, ndsm, available)
        parts = [
            of_available(partial(self._encode, sensor), real[i], available[:, i]) for i, sensor in enumerate(SENSORS)
        ]
        scales = len(self.config.encoder_widths)
        shared, own, specific = ([p and p[k * scales : (k + 1) * scales] for p in parts] for k in range(3))

        def features(i: int) -> Sequence[Tensor]:
            mine, stand_in, alive = own[i], shared[1 - i], available[:, i, None, None, None]
            if mine is None or stand_in is None:
                return mine or stand_in or []  # one of the two sensors is there
            return [torch.where(alive, a, b) for a, b in zip(mine, stand_in, strict=True)]

        logits = self._segment(features(0), features(1))
        if not self.training or shared[0] is None or shared[1] is None:
            return SystemOutput(logits=logits, normalised=real, available=available)
        return SystemOutput(
            logits=logits,
            normalised=real,
            available=available,
            shared_features=(shared[0][-1], shared[1][-1]),
            modality_logits=tuple(self.modality_head(x[-1].mean(dim=(2, 3))) for x in specific if x),
        )

    def forward_full(self, rgir: Tensor, ndsm: Tensor) -> Tensor:
        """Both sensors alive: logits [N, C, H, W]."""
        return self._segment(self._alone(Sensor.RGIR, rgir)[1], self._alone(Sensor.NDSM, ndsm)[1])

    def forward_missing_ndsm(self, rgir: Tensor) -> tuple[Tensor, None]:
        """RGIR alone: logits [N, C, H, W]; nothing is synthesised."""
        shared, own = self._alone(Sensor.RGIR, rgir)
        return self._segment(own, shared), None

    def forward_missing_rgir(self, ndsm: Tensor) -> tuple[Tensor, None]:
        """nDSM alone: logits [N, C, H, W]; nothing is synthesised."""
        shared, own = self._alone(Sensor.NDSM, ndsm)
        return self._segment(shared, own), None

    def auxiliary(self) -> tuple[nn.Module, ...]:
        """The classifier of modalities."""
        return (self.modality_head,)

    def _encode(self, sensor: Sensor, bands: Tensor) -> list[Tensor]:
        """[N, B, H, W] -> x_1..x_5 shared, then combined, then specific."""
        shared = self.shared(self.adapt[sensor](bands))
        specific = self.specific[sensor](bands)
        pairs = zip(self.combine, shared, specific, strict=True)
        return [*shared, *(s + combine(torch.cat((s, p), dim=1)) for combine, s, p in pairs), *specific]

    def _alone(self, sensor: Sensor, raw: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Shared and combined features of a modality that every sample has."""
        scales = len(self.config.encoder_widths)
        found = self._encode(sensor, self.bands(sensor, raw))
        return found[:scales], found[scales : 2 * scales]

    def _segment(self, rgir: Sequence[Tensor], ndsm: Sequence[Tensor]) -> Tensor:
        fused = [
            fuse(torch.cat(pair, dim=1)) for fuse, pair in zip(self.fuse, zip(rgir, ndsm, strict=True), strict=True)
        ]
        logits = self.head(self.decoder(fused))
        stride = self.config.stem_stride
        return resize(logits, stride) if stride > 1 else logits
