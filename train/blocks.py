"""Layers of GEMMNet. Feature maps are float [N, C, H, W]; tokens are float [N, L, C]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.contract.bands import Band
from train.config import ModelConfig


class Normalise(nn.Module):
    """Raw sensor units to network units, with the constants of :mod:`engine.contract.bands`.

    ``y = (curve(clip(x)) - offset) * scale``: any dtype [N, B, H, W] in, float32 [N, B, H, W] out. Packed bands
    (:func:`pack`), k channels for each, are taken as they are: behind the packing the scale stands next to the first
    convolution, which can take it in.
    """

    clip_min: Tensor
    clip_max: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, bands: Sequence[Band]) -> None:
        super().__init__()
        curves = {band.curve for band in bands}
        if len(curves) != 1:
            raise ValueError(f"the bands of one sensor must share a curve, received {sorted(curves)}")
        self.asinh = curves == {"asinh"}
        for field in ("clip_min", "clip_max", "offset", "scale"):
            values = torch.tensor([getattr(band, field) for band in bands], dtype=torch.float32)
            # Constants of the preset, not of the weights: rebuilt from it, never loaded.
            self.register_buffer(field, values.view(1, -1, 1, 1), persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        """[N, B * k, H, W] of any dtype -> float32, same shape."""
        copies = raw.shape[1] // self.scale.shape[1]
        clip_min, clip_max, offset, scale = (
            constant if copies == 1 else constant.repeat_interleave(copies, dim=1)
            for constant in (self.clip_min, self.clip_max, self.offset, self.scale)
        )
        x = torch.minimum(torch.maximum(raw.float(), clip_min), clip_max)
        if self.asinh:
            x = arsinh(x)
        return (x - offset) * scale

    def inverse(self, normalised: Tensor) -> Tensor:
        """Network units back to raw ones, clipped to what the bands can hold: float32, same shape."""
        x = normalised / self.scale + self.offset
        return torch.minimum(torch.maximum(torch.sinh(x) if self.asinh else x, self.clip_min), self.clip_max)


def arsinh(x: Tensor) -> Tensor:
    """Inverse hyperbolic sine of -2..60 by roots and products alone, within 2e-5 in float32.

    It is the logarithm of ``y = x + sqrt(x^2 + 1)`` and 16 times that of ``r = y^(1/16)``. So near 1, ``ln r`` is
    ``2 artanh((r - 1) / (r + 1))``, of whose series three terms are enough. OpenVINO has vector kernels for all of
    this and none for ``Asinh`` or ``Log``, which took 0.8 of 45 ms a tile on two cores.
    """
    y = x + torch.sqrt(x * x + 1)
    r = y.sqrt().sqrt().sqrt().sqrt()
    z = (r - 1) / (r + 1)
    square = z * z
    return z * (32 + square * (32 / 3 + square * (32 / 5)))


def resize(x: Tensor, factor: int) -> Tensor:
    """Bilinear, half-pixel centres: [N, C, H, W] -> [N, C, H * factor, W * factor]."""
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


def pack(x: Tensor, side: int) -> Tensor:
    """Blocks of ``side`` x ``side`` pixels become channels: [N, C, H, W] -> [N, C * side^2, H / side, W / side]."""
    return x if side == 1 else F.pixel_unshuffle(x, side)


def unpack(x: Tensor, side: int) -> Tensor:
    """Inverse of :func:`pack`."""
    return x if side == 1 else F.pixel_shuffle(x, side)


class ConvNormAct(nn.Sequential):
    """Convolution, normalisation, activation as the preset says; same size at stride 1, half at 2."""

    def __init__(self, config: ModelConfig, c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1) -> None:
        norm = nn.BatchNorm2d(c_out) if config.norm == "batch" else nn.InstanceNorm2d(c_out, affine=True)
        act = nn.ReLU(inplace=True) if config.activation == "relu" else nn.LeakyReLU(0.2, inplace=True)
        super().__init__(
            nn.Conv2d(c_in, c_out, kernel, stride, (kernel - 1) // 2, bias=False, padding_mode=config.padding),
            norm,
            act,
        )


class Stage(nn.Module):
    """One encoder scale: a convolution that sets width and stride, then a residual refinement."""

    def __init__(
        self, config: ModelConfig, c_in: int, c_out: int, *, stride: int, refinements: int, kernel: int = 3
    ) -> None:
        super().__init__()
        self.enter = ConvNormAct(config, c_in, c_out, kernel=kernel, stride=stride)
        self.refine = nn.Sequential(*(ConvNormAct(config, c_out, c_out) for _ in range(refinements)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, c_in, H, W] -> [N, c_out, H / stride, W / stride]."""
        x = self.enter(x)
        return x + self.refine(x) if len(self.refine) else x


class Attention(nn.Module):
    """Multi-head self-attention (https://arxiv.org/abs/1706.03762): [N, L, C] -> [N, L, C].

    Q and K each carry the constant head_width ** -0.25 before their product: the logits stay small enough for
    fp16, and TensorRT's fused attention recognises the form.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.25
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> [N, L, C]."""

        def split(t: Tensor) -> Tensor:
            return t.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [N, heads, L, C / heads]

        q, k, v = split(self.query(x)) * self.scale, split(self.key(x)) * self.scale, split(self.value(x))
        weights = torch.softmax(q @ k.transpose(2, 3), dim=-1)  # [N, heads, L, L]
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer (https://arxiv.org/abs/2002.04745): [N, L, C] -> [N, L, C]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.token_width
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, config.token_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.token_mlp),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.token_mlp, width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> [N, L, C]."""
        x = x + self.dropout(self.attention(self.norm_attention(x)))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))


class LearnedPosition(nn.Module):
    """A learned embedding per grid place, interpolated to the map's size: [N, C, H, W] -> same."""

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(1, width, grid, grid) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> same."""
        if x.shape[-2:] == self.embedding.shape[-2:]:
            return x + self.embedding
        size = (x.shape[-2], x.shape[-1])
        return x + F.interpolate(self.embedding, size=size, mode="bilinear", align_corners=False)


class ConvolutionalPosition(nn.Module):
    """Position from zero-padded depth-wise convolution (https://arxiv.org/abs/2102.10882), any size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> same."""
        return x + self.conv(x)


class TokenMixer(nn.Module):
    """The transformer of HyFEx (one map) and HyFMA (several): every place attends to every place of every map.

    Tokens of all maps form one sequence; it is cut per map again *before* tokens become places, so no token
    changes its position or modality. Residual around the whole.

    Args:
        config: token width, heads, depth and position encoding.
        width: channels C of each map.
        maps: how many maps M are mixed.
    """

    def __init__(self, config: ModelConfig, width: int, *, maps: int) -> None:
        super().__init__()
        tokens = config.token_width
        self.enter = nn.ModuleList(nn.Conv2d(width, tokens, 1) for _ in range(maps))
        self.position = nn.ModuleList(
            LearnedPosition(tokens, config.position_grid)
            if config.position == "learned"
            else ConvolutionalPosition(tokens)
            for _ in range(maps)
        )
        self.layers = nn.Sequential(*(TransformerLayer(config) for _ in range(config.token_depth)))
        self.norm = nn.LayerNorm(tokens)
        self.leave = nn.ModuleList(nn.Conv2d(tokens, width, 1) for _ in range(maps))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """M tensors [N, C, H, W] -> M tensors [N, C, H, W]."""
        height, width = maps[0].shape[-2:]
        tokens = [
            position(enter(x)).flatten(2).transpose(1, 2)  # [N, H * W, T]
            for x, enter, position in zip(maps, self.enter, self.position, strict=True)
        ]
        mixed = self.norm(self.layers(torch.cat(tokens, dim=1)))  # [N, M * H * W, T]
        per_map = mixed.chunk(len(maps), dim=1)
        return [
            x + leave(t.transpose(1, 2).unflatten(2, (height, width)))  # [N, C, H, W]
            for x, t, leave in zip(maps, per_map, self.leave, strict=True)
        ]


class AddUp(nn.Module):
    """Decoder step: project, resize x2, add the skip, 3x3. The cheap one."""

    def __init__(self, config: ModelConfig, c_in: int, c_skip: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(c_in, c_skip, 1)
        self.mix = ConvNormAct(config, c_skip, c_skip)
        self.c_out = c_skip

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """[N, c_in, H, W], [N, c_skip, 2H, 2W] -> [N, c_out, 2H, 2W]."""
        return self.mix(resize(self.project(coarse), 2) + skip)


class ConcatUp(nn.Module):
    """Decoder step of a U-Net: resize x2, 3x3, concatenate the skip, 3x3, 1x1."""

    def __init__(self, config: ModelConfig, c_in: int, c_skip: int) -> None:
        super().__init__()
        self.reduce = ConvNormAct(config, c_in, c_skip)
        self.mix = nn.Sequential(ConvNormAct(config, 2 * c_skip, c_skip), ConvNormAct(config, c_skip, c_skip, kernel=1))
        self.c_out = c_skip

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """[N, c_in, H, W], [N, c_skip, 2H, 2W] -> [N, c_out, 2H, 2W]."""
        return self.mix(torch.cat((self.reduce(resize(coarse, 2)), skip), dim=1))


class TransposedUp(nn.Module):
    """Decoder step of Pix2Pix (https://arxiv.org/abs/1611.07004): 4x4 transposed conv, concatenate the skip."""

    def __init__(self, config: ModelConfig, c_in: int, c_skip: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(c_in, c_skip, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(c_skip) if config.norm == "batch" else nn.InstanceNorm2d(c_skip, affine=True),
            nn.ReLU(inplace=True),
        )
        self.c_out = 2 * c_skip

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """[N, c_in, H, W], [N, c_skip, 2H, 2W] -> [N, c_out, 2H, 2W]."""
        return torch.cat((self.up(coarse), skip), dim=1)


_UPS: dict[str, type[AddUp | ConcatUp | TransposedUp]] = {
    "add": AddUp,
    "concat": ConcatUp,
    "transposed": TransposedUp,
}


class Decoder(nn.Module):
    """From the coarsest of several scales up to the finest: sequence of [N, C_i, H_i, W_i] -> finest."""

    def __init__(self, config: ModelConfig, widths: Sequence[int], *, kind: str) -> None:
        super().__init__()
        ups: list[nn.Module] = []
        width = widths[-1]
        for skip in reversed(widths[:-1]):
            ups.append(up := _UPS[kind](config, width, skip))
            width = up.c_out
        self.ups = nn.ModuleList(ups)
        self.c_out = width

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Scales fine to coarse -> [N, c_out, H_1, W_1]."""
        x = scales[-1]
        for up, skip in zip(self.ups, reversed(scales[:-1]), strict=True):
            x = up(x, skip)
        return x
