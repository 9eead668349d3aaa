"""One procedural scene from one seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.data.synthetic.canvas import Canvas, Survey
from train.data.synthetic.heights import survey_heights
from train.data.synthetic.materials import Palette, RealPalette
from train.data.synthetic.optics import expose
from train.data.synthetic.town import STYLES, build, pick_style

GSD_RANGE_M = (0.08, 0.5)
UNKNOWN = 255


@dataclass(frozen=True, kw_only=True)
class SyntheticScene:
    """Aligned rasters of one scene.

    rgir:   uint8 [3,H,W], bands NIR, R, G
    ndsm:   float32 [1,H,W], metres above ground, NaN where the height survey has holes
    labels: uint8 [H,W], 0 impervious, 1 building, 2 low vegetation, 3 tree, 4 car, 5 clutter;
            255 unknown
    gsd_m:  ground sampling distance, metres per pixel
    """

    rgir: NDArray[np.uint8]
    ndsm: NDArray[np.float32]
    labels: NDArray[np.uint8]
    gsd_m: float

    def __post_init__(self) -> None:
        height, width = self.labels.shape
        expected = ((3, height, width), (1, height, width))
        if (self.rgir.shape, self.ndsm.shape) != expected:
            raise ValueError(
                f"a scene needs rgir and ndsm of shapes {expected} to match its labels, "
                f"received {self.rgir.shape} and {self.ndsm.shape}"
            )
        dtypes = [str(raster.dtype) for raster in (self.rgir, self.ndsm, self.labels)]
        if dtypes != ["uint8", "float32", "uint8"]:
            raise ValueError("a scene needs uint8 rgir, float32 ndsm and uint8 labels, received " + ", ".join(dtypes))


def generate(
    *,
    seed: int,
    size_px: int | tuple[int, int] = 512,
    gsd_m: float | None = None,
    style: str | None = None,
    real_colours: bool = False,
) -> SyntheticScene:
    """Make the scene that belongs to a seed; the same arguments always give the same bytes.

    size_px: side, or (height, width), in pixels; at least 16
    gsd_m:   metres per pixel, 0.03 to 2; None draws it log-uniformly from 0.08 to 0.5
    style:   one of `STYLES`; None draws one, with field and forest likelier at coarse pixels
    real_colours: vegetation, soil, streets and roofs in the colours of NAIP; nothing else changes
    Raises ValueError when an argument is outside these ranges.
    """
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    if min(height, width) < 16:
        raise ValueError(f"size_px must be at least 16 on both sides, received {size_px}")
    if gsd_m is not None and not 0.03 <= gsd_m <= 2:
        raise ValueError(f"gsd_m must lie in 0.03..2 metres, received {gsd_m}")
    if style is not None and style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, received {style!r}")
    # One stream per stage: a change in how, say, noise is drawn leaves the layouts as they were.
    streams = np.random.SeedSequence(seed).spawn(5)
    setup, grain, layout, optics, survey = (np.random.default_rng(s) for s in streams)
    if gsd_m is None:
        gsd_m = float(np.exp(setup.uniform(*np.log(GSD_RANGE_M))))
    drawn = pick_style(setup, gsd_m)
    canvas = Canvas((height, width), gsd_m, int(np.clip(6.0 / gsd_m, 8, 48)), _survey(setup), grain)
    palette = RealPalette(layout) if real_colours else Palette(layout)
    build(canvas, palette, STYLES[drawn if style is None else style])
    rgir = canvas.crop(expose(canvas, optics))
    ndsm = canvas.crop(survey_heights(canvas, survey))[None]
    return SyntheticScene(rgir=rgir, ndsm=ndsm, labels=canvas.crop(canvas.label), gsd_m=gsd_m)


def _survey(rng: np.random.Generator) -> Survey:
    angle, lean = rng.uniform(0, 2 * np.pi), min(abs(rng.normal(0, 0.05)), 0.11)
    true_ortho = rng.random() < 0.35
    return Survey(
        lean_x=0.0 if true_ortho else float(lean * np.cos(angle)),
        lean_y=0.0 if true_ortho else float(lean * np.sin(angle)),
        car_share=float(rng.choice((0.0, 0.3, 0.7, 1.0), p=(0.2, 0.25, 0.25, 0.3))),
        tree_share=float(rng.choice((0.6, 0.9, 1.0), p=(0.1, 0.3, 0.6))),
        tree_penetration=float(rng.choice((0.0, 0.05, 0.15, 0.4), p=(0.45, 0.3, 0.18, 0.07))),
        tree_swell_m=float(rng.choice((0.0, 0.3, 0.6, 1.0), p=(0.5, 0.2, 0.2, 0.1))),
    )
