"""mmFormer for two 2-D modalities: absent features are zeros, and a transformer over all tokens makes up for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.contract.sensors import Sensor
from train.blocks import ConvNormAct, Decoder, TokenMixer, resize
from train.config import ModelConfig
from train.model import HyFEx
from train.system import SENSORS, System, SystemOutput, of_available


class ScaleFusion(nn.Sequential):
    """1x1, 3x3, 1x1 convolutions over both modalities of one scale: [N, 2C, H, W] -> [N, C, H, W]."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__(
            ConvNormAct(config, 2 * width, width, kernel=1),
            ConvNormAct(config, width, width),
            ConvNormAct(config, width, width, kernel=1),
        )


class MmFormer(System):
    """mmFormer (MICCAI 2022, https://arxiv.org/abs/2206.02425, section 2), without its third dimension.

    Per modality a hybrid encoder of five scales with an intra-modality transformer at the coarsest; the features of
    an absent modality are zeros at every scale; an inter-modality transformer over the tokens of both; one fusion per
    scale; a U-Net decoder. Training adds a decoder shared by the single modalities and a head on each decoder scale.

    Departures: 2-D convolutions, two modalities in place of four, widths and norm of the configuration (the GEMMNet
    paper trains it at 8..128 channels), residual token mixers as in GEMMNet, and no synthesised band.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        widths = config.encoder_widths
        self.encoder = nn.ModuleDict(
            {
                spec.sensor: HyFEx(
                    config, len(spec.bands), widths, config.encoder_refinements, stem_stride=config.stem_stride
                )
                for spec in config.sensor_specs
            }
        )
        self.inter = TokenMixer(config, widths[-1], maps=2)
        self.fuse = nn.ModuleList(ScaleFusion(config, width) for width in widths)
        self.decoder = Decoder(config, widths, kind=config.decoder)
        self.head = nn.Conv2d(self.decoder.c_out, config.classes, 1)
        # Training only from here on.
        self.unimodal_decoder = Decoder(config, widths, kind=config.decoder)
        self.unimodal_head = nn.Conv2d(self.unimodal_decoder.c_out, config.classes, 1)
        self.scale_heads = nn.ModuleList(nn.Conv2d(width, config.classes, 1) for width in widths[1:])

    def forward(self, rgir: Tensor, ndsm: Tensor, available: Tensor) -> SystemOutput:
        """Each sample by its own mask; see :meth:`train.system.System.forward`."""
        real = self.real(rgir, ndsm, available)
        found = [of_available(self.encoder[s], real[i], available[:, i]) for i, s in enumerate(SENSORS)]
        scales = [mine or [torch.zeros_like(x) for x in found[1 - i] or []] for i, mine in enumerate(found)]
        logits, fused = self._segment(*scales)
        if not self.training:
            return SystemOutput(logits=logits, normalised=real, available=available)
        return SystemOutput(
            logits=logits,
            normalised=real,
            available=available,
            scale_logits=tuple(head(x) for head, x in zip(self.scale_heads, fused[1:], strict=True)),
            unimodal_logits=tuple(self.unimodal_head(self.unimodal_decoder(scales[i])) for i in range(2)),
            unimodal_needs_sensor=True,
        )

    def forward_full(self, rgir: Tensor, ndsm: Tensor) -> Tensor:
        """Both sensors alive: logits [N, C, H, W]."""
        seen = {Sensor.RGIR: rgir, Sensor.NDSM: ndsm}
        return self._segment(*(self.encoder[s](self.bands(s, seen[s])) for s in SENSORS))[0]

    def forward_missing_ndsm(self, rgir: Tensor) -> tuple[Tensor, None]:
        """RGIR alone: logits [N, C, H, W]; nothing is synthesised."""
        scales = self.encoder[Sensor.RGIR](self.bands(Sensor.RGIR, rgir))
        return self._segment(scales, [torch.zeros_like(x) for x in scales])[0], None

    def forward_missing_rgir(self, ndsm: Tensor) -> tuple[Tensor, None]:
        """nDSM alone: logits [N, C, H, W]; nothing is synthesised."""
        scales = self.encoder[Sensor.NDSM](self.bands(Sensor.NDSM, ndsm))
        return self._segment([torch.zeros_like(x) for x in scales], scales)[0], None

    def auxiliary(self) -> tuple[nn.Module, ...]:
        """The shared decoder of single modalities and the heads of the scales."""
        return self.unimodal_decoder, self.unimodal_head, self.scale_heads

    def _segment(self, rgir: Sequence[Tensor], ndsm: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Scales of both modalities, zeros where absent -> logits and the fused scales."""
        coarsest = self.inter((rgir[-1], ndsm[-1]))
        pairs = zip([*rgir[:-1], coarsest[0]], [*ndsm[:-1], coarsest[1]], strict=True)
        fused = [fuse(torch.cat(pair, dim=1)) for fuse, pair in zip(self.fuse, pairs, strict=True)]
        logits = self.head(self.decoder(fused))
        stride = self.config.stem_stride
        return (resize(logits, stride) if stride > 1 else logits), fused
