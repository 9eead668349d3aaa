"""What a model is and how it is trained: frozen values, checked on construction, and the presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from engine.contract.bands import Curve, SensorSpec, ndsm_spec, rgir_spec
from train.data.labels import IGNORE_INDEX, ISPRS_LABELS

CLASS_NAMES = ISPRS_LABELS.names


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weight of each term of CoLoss (eq. 6); zero removes the term, for ablations.

    Raises:
        ValueError: a weight is negative.
    """

    fused: float = 1.0
    scales: float = 1.0
    unimodal: float = 1.0
    reconstruction: float = 1.0
    """Weight of L_rec for generator ``ae`` (eq. 8)."""
    adversarial: float = 0.05
    """Weight of L_rec for generator ``cgan`` (eq. 9: adversarial + l1 * L1)."""
    l1: float = 100.0
    """Lambda of eq. 9, inside ``adversarial``."""
    shared: float = 0.1
    """Distance of shared features, system ``shaspec``."""
    modality: float = 0.02
    """Classification of specific features, system ``shaspec``."""
    balance: float = 0.0
    """Exponent b of the class weights ``frequency^-b`` in the cross-entropy; 0 for the ``1 - frequency`` of eq. 7."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ValueError(f"loss weight {name} must be at least 0, received {value}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """GEMMNet's shape. The defaults are the authors' widths (preset ``paper``).

    Raises:
        ValueError: a width list has the wrong length, or widths do not fit the head count.
    """

    system: Literal["gemmnet", "mmformer", "shaspec"] = "gemmnet"
    classes: int = len(CLASS_NAMES)
    height_curve: Curve = "linear"
    generator: Literal["ae", "cgan"] = "ae"
    hyfex_attention: bool = True
    """Transformer at the bottleneck of encoders and generators (eq. 1 and 2); off for ablation."""
    hyfma_attention: bool = True
    """Transformer in the fusion of the coarsest scale (eq. 4); off for ablation."""

    norm: Literal["instance", "batch"] = "instance"
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    padding: Literal["reflect", "zeros"] = "reflect"

    encoder_widths: tuple[int, ...] = (8, 16, 32, 64, 128)
    encoder_refinements: tuple[int, ...] = (2, 2, 2, 2, 2)
    """Convolutions after each stage's first, under one residual."""
    stem_stride: Literal[1, 2, 4] = 1
    """Stride of the encoder's first stage; each later stage halves the resolution."""
    pixel_shuffle: bool = False
    """Go between image and first scale by moving pixels into channels and back (space to depth) instead of strided
    convolution and resizing. Nothing else runs at full resolution, and what a generator makes enters the other sensor's
    encoder as it is. System ``gemmnet``."""
    smoothing_kernel: Literal[1, 3, 5] = 1
    """Side of a depth-wise convolution of the full-resolution logits; 1 for none. Behind ``pixel_shuffle`` each place
    decides on its own block of pixels, and this is where neighbouring blocks meet. System ``gemmnet``."""
    relief: bool = False
    """Tell the first convolution how far the pixels of each packed block lie apart, a texture that it would have to
    find in many ways of adding them up. With ``pixel_shuffle``."""
    standardise: bool = False
    """Give whatever reads RGIR each band less its mean over the image, divided by its spread there, and the two as
    channels of their own. Sun, air and camera change just these: instance normalisation takes them out layer by layer,
    batch normalisation leaves them in. System ``gemmnet``."""
    standardise_jitter: float = 0.0
    """In training, how far that mean is moved, in spreads, and the spread changed, as a share; normally distributed.
    Two tiles of one place differ in both, and should be mapped alike."""
    fusion_kernel: Literal[1, 3] = 3
    decoder: Literal["concat", "add"] = "concat"
    unimodal: Literal["decoder", "linear"] = "decoder"
    """Training-only head per modality: a decoder that both share, or a linear map of two scales."""

    generator_widths: tuple[int, ...] = (32, 64, 128, 256)
    generator_refinements: tuple[int, ...] = (0, 0, 0, 0)
    generator_kernel: Literal[3, 4] = 4
    generator_decoder: Literal["transposed", "concat", "add"] = "transposed"
    generator_tanh: bool = True

    token_width: int = 256
    token_heads: int = 8
    token_mlp: int = 512
    token_depth: int = 1
    dropout: float = 0.1
    position: Literal["learned", "convolutional"] = "learned"
    position_grid: int = 32
    """Side of the learned position embedding; other sizes are interpolated from it."""
    discriminator_widths: tuple[int, ...] = (64, 128, 256, 512)

    def __post_init__(self) -> None:
        if not 1 <= self.classes < IGNORE_INDEX:
            raise ValueError(f"classes must lie in 1..{IGNORE_INDEX - 1}, received {self.classes}")
        if not 3 <= len(self.encoder_widths) <= 5:
            raise ValueError(f"HyFEx has five scales (eq. 2), three at least; received widths {self.encoder_widths}")
        if self.relief and not self.pixel_shuffle:
            raise ValueError("relief needs pixel_shuffle: it is measured in packed blocks")
        if self.standardise and self.system != "gemmnet":
            raise ValueError(f"standardise needs system gemmnet, received {self.system}")
        if self.pixel_shuffle and (self.system != "gemmnet" or self.generator_decoder == "transposed"):
            raise ValueError(
                "pixel_shuffle needs system gemmnet and generator_decoder 'add' or 'concat', "
                f"received {self.system} and {self.generator_decoder!r}"
            )
        for part in ("encoder", "generator"):
            widths, refinements = getattr(self, f"{part}_widths"), getattr(self, f"{part}_refinements")
            if len(widths) != len(refinements) or len(widths) < 2:
                raise ValueError(
                    f"{part}_widths and {part}_refinements need the same length, at least 2; "
                    f"received {widths} and {refinements}"
                )
        if self.token_width % self.token_heads:
            raise ValueError(
                f"token_width must be a multiple of token_heads, received {self.token_width} and {self.token_heads}"
            )

    @property
    def title(self) -> str:
        """The system's name in the paper's Table 1."""
        if self.system != "gemmnet":
            return {"mmformer": "mmFormer", "shaspec": "ShaSpec"}[self.system]
        kind = {"ae": "AE", "cgan": "cGAN"}[self.generator]
        return f"GEMMNet_{kind}" if self.hyfex_attention or self.hyfma_attention else kind

    @property
    def stride_px(self) -> int:
        """Image sides must be a multiple of this: the coarsest grid of encoder and generator."""
        encoder = self.stem_stride * 2 ** (len(self.encoder_widths) - 1)
        return max(encoder, self.generator_stride * 2 ** (len(self.generator_widths) - 1))

    @property
    def generator_stride(self) -> int:
        """Stride of a generator's first stage."""
        return self.stem_stride if self.pixel_shuffle else 2

    @property
    def packing(self) -> int:
        """Side of the pixel blocks that become channels before the first convolution; 1 for none."""
        return self.stem_stride if self.pixel_shuffle else 1

    @property
    def sensor_specs(self) -> tuple[SensorSpec, SensorSpec]:
        """Bands and normalisation of (rgir, ndsm)."""
        return rgir_spec(), ndsm_spec(self.height_curve)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained.

    Raises:
        ValueError: a count or rate is out of range.
    """

    steps: int = 6000
    batch: int = 8
    crop_px: int = 256
    lr: float = 2e-3
    lr_final_fraction: float = 0.01
    warmup_steps: int = 200
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    discriminator_lr: float = 2e-4
    ema_decay: float = 0.998
    validate_every: int = 500
    checkpoint_every: int = 100
    """Steps that a kill can cost at most."""
    rare_share: float = 0.25
    """Share of crops that hold a pixel of a rare class (:func:`train.data.dataset.rare_pixels`)."""
    border_share: float = 0.0
    """Share of crops that end at a line, with what a network is given there in flight beyond it."""
    amp: Literal["auto", "bf16", "off"] = "auto"
    """Mixed precision in bfloat16; ``auto`` is on for CUDA devices."""
    seed: int = 0
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop_px", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        for name in ("lr", "discriminator_lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, received {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), received {self.ema_decay}")
        for name in ("rare_share", "border_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], received {getattr(self, name)}")


def differences(old: ModelConfig | TrainConfig, new: ModelConfig | TrainConfig) -> list[str]:
    """What two configurations of one kind differ in, in words."""
    return [
        f"{name}: was {getattr(old, name)}, now {value}"
        for name, value in vars(new).items()
        if value != getattr(old, name)
    ]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named pair of model and training configuration."""

    model: ModelConfig
    train: TrainConfig


_PAPER = Preset(model=ModelConfig(), train=TrainConfig(lr=5e-4, ema_decay=0.999))

# The plain baseline: no transformer, no HyFMA, no auxiliary loss of CoLoss.
_AE = Preset(
    model=replace(_PAPER.model, hyfex_attention=False, hyfma_attention=False),
    train=replace(_PAPER.train, weights=LossWeights(scales=0.0, unimodal=0.0)),
)
_MMFORMER = Preset(model=replace(_PAPER.model, system="mmformer"), train=replace(_PAPER.train, lr=2e-4))
_SHASPEC = Preset(model=replace(_PAPER.model, system="shaspec"), train=_PAPER.train)


def _cgan(preset: Preset) -> Preset:
    return replace(preset, model=replace(preset.model, generator="cgan"))


_NANO = Preset(
    model=replace(
        _PAPER.model,
        # Log-like heights keep cars apart from the ground in eight bits as well.
        height_curve="asinh",
        # Conv-BN-ReLU folds into one kernel; InstanceNorm and reflect padding do not.
        norm="batch",
        activation="relu",
        padding="zeros",
        # At 5-20 cm GSD full-resolution convolutions cost half the time and see no context.
        stem_stride=2,
        # Multiples of 8, 16 at least, for tensor cores and INT8.
        encoder_widths=(16, 24, 48, 96, 128),
        # Depth where it is cheap per receptive field; the transformer refines the last scale.
        encoder_refinements=(0, 1, 1, 1, 0),
        # 1x1 fusion and additive skips: the decoder's 3x3 already mixes space.
        fusion_kernel=1,
        decoder="add",
        unimodal="linear",
        # Five stages put the generator's transformer at stride 32: context for colour from height.
        generator_widths=(16, 24, 40, 64, 128),
        generator_refinements=(0, 0, 1, 1, 0),
        generator_kernel=3,
        # Resize + conv: transposed convolution quantises badly and leaves checkerboards.
        generator_decoder="add",
        # asinh heights leave [-1, 1], which a tanh could not reach.
        generator_tanh=False,
        token_width=128,
        token_heads=4,
        token_mlp=256,
        dropout=0.0,
        # A depth-wise convolution knows no grid size: trains on crops, runs on whole tiles.
        position="convolutional",
    ),
    train=TrainConfig(
        # Auxiliary terms guide a small model early but must not compete with the map it ships.
        weights=LossWeights(scales=0.15, unimodal=0.15, reconstruction=1.0),
    ),
)

_EDGE = Preset(
    model=replace(
        _NANO.model,
        # The same parts, arranged for tensor cores and 8 bits: all channels multiples of 32, nothing but the last
        # smoothing finer than a quarter of the resolution, and what a generator makes stays packed on its way to the
        # encoder.
        stem_stride=4,
        pixel_shuffle=True,
        smoothing_kernel=5,
        relief=True,
        standardise=True,
        encoder_widths=(32, 64, 96, 128),
        encoder_refinements=(0, 1, 1, 0),
        generator_widths=(32, 64, 96, 128),
        generator_refinements=(0, 1, 1, 0),
    ),
    # Without RGIR the rare classes drown in the frequent ones unless they weigh more.
    # A tile at the border of a map is partly a mirror image, which counts in its mean and spread.
    train=replace(_NANO.train, weights=replace(_NANO.train.weights, balance=0.75), border_share=0.2),
)

PRESETS = {
    "ae": _AE,
    "cgan": _cgan(_AE),
    "paper": _PAPER,
    "paper-cgan": _cgan(_PAPER),
    "mmformer": _MMFORMER,
    "shaspec": _SHASPEC,
    "nano": _NANO,
    "edge": _EDGE,
}
"""The six systems of the paper's Table 1 at the authors' widths (``paper`` is its GEMMNet_AE), and ours."""
