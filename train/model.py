"""GEMMNet, read top to bottom: segmentation from two sensors, either of which may be missing.

Source: "Filling the Gaps: A Multitask Hybrid Multiscale Generative Framework for Missing Modality in Remote
Sensing Semantic Segmentation", DICTA 2025 (equation numbers below are the paper's).

    rgir --- Normalise --+--> E_rgir --x_1..x_5--+
              (absent?)  |                       +--> HyFMA --u_1..u_5--> D --> logits
    ndsm --- Normalise --+--> E_ndsm --x_1..x_5--+

An absent sensor's input is replaced with what the generator makes of the other one (eq. 1). Raw sensor units
go in: ``rgir`` uint8 or float [N, 3, H, W] in NIR-R-G order 0..255, ``ndsm`` float [N, 1, H, W] in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from engine.contract.sensors import Scenario, Sensor
from train.blocks import Attention, ConvNormAct, Decoder, Stage, TokenMixer, pack, resize, unpack
from train.config import ModelConfig
from train.system import SENSORS, System, SystemOutput, of_available


class HyFEx(nn.Module):
    """Hybrid feature extractor: convolutions, then a transformer at the bottleneck (eq. 2).

    Without ``config.hyfex_attention`` the transformer is left out (ablation).
    """

    def __init__(
        self,
        config: ModelConfig,
        bands: int,
        widths: Sequence[int],
        refinements: Sequence[int],
        *,
        stem_stride: int,
        kernel: int = 3,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.bands, self.relief, self.standardise = bands, config.relief, standardise
        self.jitter = config.standardise_jitter
        stages, width = [], bands * (config.packing**2 + config.relief + 2 * standardise)
        for i, (c_out, count) in enumerate(zip(widths, refinements, strict=True)):
            stride = 2 if i else stem_stride // config.packing
            # A 4x4 kernel is for halving; at stride 1 it would shift the map by half a pixel.
            size = kernel if stride == 2 else 3
            stages.append(Stage(config, width, c_out, stride=stride, refinements=count, kernel=size))
            width = c_out
        self.stages = nn.ModuleList(stages)
        self.mixer = TokenMixer(config, width, maps=1) if config.hyfex_attention else None

    def forward(self, x: Tensor) -> list[Tensor]:
        """Packed bands (:func:`train.blocks.pack`) -> x_1..x_n, fine to coarse, each [N, widths[i], H_i, W_i]."""
        told: list[Tensor] = []
        if self.standardise:
            x, *told = standardised(x, self.bands, jitter=self.jitter if self.training else 0.0)
        if self.relief:
            told.append(relief(x, self.bands))
        if told:
            x = torch.cat((x, *told), dim=1)
        scales = []
        for stage in self.stages:
            x = stage(x)
            scales.append(x)
        return scales if self.mixer is None else [*scales[:-1], *self.mixer(scales[-1:])]


class HyFMA(nn.Module):
    """Hybrid fusion with multiscale attention: u_1..u_5 of two encoders.

    Without ``config.hyfma_attention`` the coarsest scale is fused by convolution as the others are (ablation).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        *fine, coarse = config.encoder_widths
        kernel = config.fusion_kernel
        self.fuse = nn.ModuleList(ConvNormAct(config, 2 * c, c, kernel=kernel) for c in fine)
        self.mixer = TokenMixer(config, coarse, maps=2) if config.hyfma_attention else None
        self.merge = ConvNormAct(config, 2 * coarse, coarse, kernel=1)

    def forward(self, scales_a: Sequence[Tensor], scales_b: Sequence[Tensor]) -> list[Tensor]:
        """Five scales of each modality -> u_1..u_5, same shapes."""
        pairs = zip(self.fuse, scales_a[:-1], scales_b[:-1], strict=True)
        fine = [fuse(torch.cat((a, b), dim=1)) for fuse, a, b in pairs]  # u_1..u_4 (eq. 3)
        coarsest = [scales_a[-1], scales_b[-1]]
        mixed = coarsest if self.mixer is None else self.mixer(coarsest)
        return [*fine, self.merge(torch.cat(mixed, dim=1))]  # u_5 (eq. 4)


class Generator(nn.Module):
    """Synthesises one sensor from the other, in normalised units (eq. 1): HyFEx and a decoder."""

    def __init__(self, config: ModelConfig, source: Sensor, bands_in: int, bands_out: int) -> None:
        super().__init__()
        widths = config.generator_widths
        self.encoder = HyFEx(
            config,
            bands_in,
            widths,
            config.generator_refinements,
            stem_stride=config.generator_stride,
            kernel=config.generator_kernel,
            standardise=config.standardise and source is Sensor.RGIR,
        )
        self.decoder = Decoder(config, widths, kind=config.generator_decoder)
        transposed = config.generator_decoder == "transposed"
        if transposed:
            self.head: nn.Module = nn.ConvTranspose2d(self.decoder.c_out, bands_out, 4, stride=2, padding=1)
        elif config.packing > 1:  # each place makes its own block of pixels
            self.head = nn.Conv2d(self.decoder.c_out, bands_out * config.packing**2, 1)
        else:
            self.head = nn.Conv2d(self.decoder.c_out, bands_out, 3, padding=1)
        self.resize_factor = 1 if transposed else config.generator_stride // config.packing
        self.tanh = config.generator_tanh

    def forward(self, x: Tensor) -> Tensor:
        """The available sensor's packed bands -> the other's, packed as well."""
        x = self.head(self.decoder(self.encoder(x)))
        if self.resize_factor > 1:
            x = resize(x, self.resize_factor)
        return torch.tanh(x) if self.tanh else x


class LinearHead(nn.Module):
    """Logits of one modality at its third scale from below, from that scale and the coarsest; training only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = config.encoder_widths
        self.local = nn.Conv2d(widths[-3], config.classes, 1)
        self.context = nn.Conv2d(widths[-1], config.classes, 1)

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """x_1..x_n -> [N, classes, H_(n-2), W_(n-2)]."""
        return self.local(scales[-3]) + resize(self.context(scales[-1]), 4)


class UnimodalDecoder(nn.Module):
    """Logits of one modality at its finest scale, by a decoder of its own; training only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config, config.encoder_widths, kind=config.decoder)
        self.head = nn.Conv2d(self.decoder.c_out, config.classes, 1)

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """x_1..x_5 -> [N, classes, H_1, W_1]."""
        return self.head(self.decoder(scales))


class GEMMNet(System):
    """The network; see the module docstring. Sides must be a multiple of ``config.stride_px``.

    With both attentions off and the auxiliary losses at zero (presets ``ae`` and ``cgan``) it is the paper's plain
    baseline: a generator in front of a U-Net with two encoders. Ours has the same convolutions as the GEMMNet it is
    compared with, so that the table shows what HyFEx, HyFMA and CoLoss add and nothing else.

    Departures from the paper (section 3): the tokens of the two modalities are kept apart before they become places
    again, position embeddings are interpolated to other sizes, and each sample of a batch has its own mask.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        bands = [len(spec.bands) for spec in config.sensor_specs]
        # Keyed by what comes out: generator["ndsm"] reads rgir.
        self.generator = nn.ModuleDict(
            {
                Sensor.RGIR: Generator(config, Sensor.NDSM, bands[1], bands[0]),
                Sensor.NDSM: Generator(config, Sensor.RGIR, bands[0], bands[1]),
            }
        )
        self.encoder = nn.ModuleDict(
            {
                sensor: HyFEx(
                    config,
                    count,
                    config.encoder_widths,
                    config.encoder_refinements,
                    stem_stride=config.stem_stride,
                    standardise=config.standardise and sensor is Sensor.RGIR,
                )
                for sensor, count in zip(SENSORS, bands, strict=True)
            }
        )
        self.fusion = HyFMA(config)
        self.decoder = Decoder(config, config.encoder_widths, kind=config.decoder)
        self.head = nn.Conv2d(self.decoder.c_out, config.classes * config.packing**2, 1)
        self.smooth = smoothing(config.classes, config.smoothing_kernel)
        # Training only from here on.
        self.scale_heads = nn.ModuleList(nn.Conv2d(c, config.classes, 1) for c in config.encoder_widths[:-1])
        shared = config.unimodal == "decoder"
        heads = [UnimodalDecoder(config)] if shared else [LinearHead(config) for _ in SENSORS]
        self.unimodal_heads = nn.ModuleList(heads)

    def forward(self, rgir: Tensor, ndsm: Tensor, available: Tensor) -> SystemOutput:
        """Each sample by its own mask; see :meth:`train.system.System.forward`."""
        side = self.config.packing
        real = self.real(rgir, ndsm, available)
        packed = [pack(bands, side) for bands in real]
        made = (
            self._synthesise(Sensor.RGIR, packed[1], available[:, 1], like=packed[0]),
            self._synthesise(Sensor.NDSM, packed[0], available[:, 0], like=packed[1]),
        )
        seen = [torch.where(available[:, i, None, None, None], packed[i], made[i]) for i in range(2)]
        logits, scales, fused = self._segment(*seen)
        scale_logits: tuple[Tensor, ...] = ()
        unimodal_logits: tuple[Tensor, ...] = ()
        if self.training:
            scale_logits = tuple(head(u) for head, u in zip(self.scale_heads, fused, strict=False))
            unimodal_logits = tuple(self.unimodal_heads[i % len(self.unimodal_heads)](scales[i]) for i in range(2))
        return SystemOutput(
            logits=logits,
            normalised=real,
            synthesised=(unpack(made[0], side), unpack(made[1], side)),
            available=available,
            scale_logits=scale_logits,
            unimodal_logits=unimodal_logits,
        )

    def forward_full(self, rgir: Tensor, ndsm: Tensor) -> Tensor:
        """Both sensors alive, no mask and no generator: logits [N, C, H, W]."""
        return self._segment(self._packed(Sensor.RGIR, rgir), self._packed(Sensor.NDSM, ndsm))[0]

    def forward_missing_ndsm(self, rgir: Tensor) -> tuple[Tensor, Tensor]:
        """RGIR alone: logits [N, C, H, W] and the synthesised nDSM [N, 1, H, W], normalised."""
        real = self._packed(Sensor.RGIR, rgir)
        made = self.generator[Sensor.NDSM](real)
        return self._segment(real, made)[0], unpack(made, self.config.packing)

    def forward_missing_rgir(self, ndsm: Tensor) -> tuple[Tensor, Tensor]:
        """nDSM alone: logits [N, C, H, W] and the synthesised RGIR [N, 3, H, W], normalised."""
        real = self._packed(Sensor.NDSM, ndsm)
        made = self.generator[Sensor.RGIR](real)
        return self._segment(made, real)[0], unpack(made, self.config.packing)

    def auxiliary(self) -> tuple[nn.Module, ...]:
        """The heads of single scales and modalities."""
        return self.scale_heads, self.unimodal_heads

    def last_layer(self) -> str:
        """The smoothing of the logits, or the head where there is none."""
        return "head" if isinstance(self.smooth, nn.Identity) else "smooth"

    def _packed(self, sensor: Sensor, raw: Tensor) -> Tensor:
        self.check_sides(raw)
        return self.normalise[sensor](pack(raw.float(), self.config.packing))

    def _synthesise(self, target: Sensor, source: Tensor, alive: Tensor, *, like: Tensor) -> Tensor:
        made = of_available(lambda bands: [self.generator[target](bands)], source, alive)
        return torch.zeros_like(like) if made is None else made[0]

    def _segment(self, rgir: Tensor, ndsm: Tensor) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]], list[Tensor]]:
        scales = (self.encoder[Sensor.RGIR](rgir), self.encoder[Sensor.NDSM](ndsm))
        fused = self.fusion(*scales)  # u_1..u_5
        logits = unpack(self.head(self.decoder(fused)), self.config.packing)  # eq. 5
        if self.config.stem_stride > self.config.packing:
            logits = resize(logits, self.config.stem_stride)
        return self.smooth(logits), scales, fused


def relief(packed: Tensor, bands: int) -> Tensor:
    """How far the pixels of each block lie apart: packed bands [N, B * k, H, W] -> [N, B, H, W]."""
    blocks = packed.unflatten(1, (bands, -1))
    return blocks.amax(dim=2) - blocks.amin(dim=2)


def standardised(packed: Tensor, bands: int, *, jitter: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Each band less its mean over the image and divided by its standard deviation there, then those two.

    Of packed bands [N, B * k, H, W] in network units; the others [N, B, H, W] hold one value over each image.
    ``jitter`` draws both as another part of the scene might have had them (:class:`train.config.ModelConfig`).
    """
    blocks = packed.unflatten(1, (bands, -1))
    mean = blocks.mean(dim=(2, 3, 4), keepdim=True)
    off = blocks - mean
    # At least 0.01, a grey level or so: an image of one value must not become one of noise.
    spread = (off.square().mean(dim=(2, 3, 4), keepdim=True) + 1e-4).sqrt()
    if jitter:
        spread = spread * (jitter * torch.randn_like(spread)).exp()
        shift = jitter * spread * torch.randn_like(spread)
        mean, off = mean + shift, off - shift
    level, contrast = (x.squeeze(2).expand(-1, -1, *packed.shape[-2:]) for x in (mean, spread))
    return (off / spread).flatten(1, 2), level, contrast


def smoothing(channels: int, kernel: int) -> nn.Module:
    """Depth-wise convolution that starts as its window's mean, none for kernel 1: [N, channels, H, W] -> same."""
    if kernel == 1:
        return nn.Identity()
    smooth = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
    nn.init.constant_(smooth.weight, 1 / kernel**2)
    assert smooth.bias is not None
    nn.init.zeros_(smooth.bias)
    return smooth


class PatchDiscriminator(nn.Module):
    """PatchGAN (https://arxiv.org/abs/1611.07004): is this target real, given the available modality?"""

    def __init__(self, config: ModelConfig, bands_condition: int, bands_target: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = bands_condition + bands_target
        for i, c_out in enumerate(config.discriminator_widths):
            stride = 2 if i < len(config.discriminator_widths) - 1 else 1
            layers.append(nn.Conv2d(width, c_out, 4, stride, 1))
            if i:
                layers.append(nn.InstanceNorm2d(c_out, affine=True))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            width = c_out
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))

    def forward(self, condition: Tensor, target: Tensor) -> Tensor:
        """[N, B, H, W] and [N, T, H, W] -> logits [N, 1, H', W'], one per patch."""
        return self.layers(torch.cat((condition, target), dim=1))


def discriminators(config: ModelConfig) -> nn.ModuleDict:
    """One discriminator per synthesised sensor, conditioned on the other sensor."""
    rgir, ndsm = (len(spec.bands) for spec in config.sensor_specs)
    return nn.ModuleDict(
        {
            Sensor.RGIR: PatchDiscriminator(config, ndsm, rgir),
            Sensor.NDSM: PatchDiscriminator(config, rgir, ndsm),
        }
    )


def count_macs(module: nn.Module, call: Callable[[], object]) -> int:
    """Multiply-accumulates of the convolutions, linear layers and attention products that ``call`` runs.

    ``call`` uses ``module``, for example ``lambda: model.forward_missing_ndsm(rgir)``.
    """
    total = 0

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.ConvTranspose2d):
            total += inputs[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Conv2d):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        elif isinstance(layer, Attention):
            n, length, width = inputs[0].shape
            total += 2 * n * length * length * width  # Q K^T and weights V

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, Attention)
    handles = [layer.register_forward_hook(hook) for layer in module.modules() if isinstance(layer, kinds)]
    try:
        with torch.no_grad():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return total


def gmac(model: System, scenario: Scenario) -> float:
    """Multiply-accumulates of one scenario's exported path at 512 x 512 px, in billions."""
    device = next(model.parameters()).device
    rgir, ndsm = (torch.zeros(1, len(spec.bands), 512, 512, device=device) for spec in model.config.sensor_specs)
    calls = {
        Scenario.FULL: lambda: model.forward_full(rgir, ndsm),
        Scenario.MISSING_NDSM: lambda: model.forward_missing_ndsm(rgir),
        Scenario.MISSING_RGIR: lambda: model.forward_missing_rgir(ndsm),
    }
    return count_macs(model, calls[scenario]) / 1e9
