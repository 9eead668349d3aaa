"""Procedural neighbourhoods with exact labels: `generate(seed=...)` returns a `SyntheticScene`.

A network that has seen nothing else shall give a sensible map of real imagery, so the aim is
not beauty but cover: the draws of layout, material, light, camera and height survey are meant
to contain real scenes and much around them (domain randomisation, Tobin et al. 2017,
https://arxiv.org/abs/1703.06907). Only numpy, scipy and Pillow are used.

How one scene comes about, module by module:

    layout     streets and blocks          canvas     rasters drawn on in metres
    town       styles, streets, traffic    materials  NIR-R-G colours of everything
    site       street coordinates, lots    optics     sun, shadow, air, camera -> rgir
    built, open_land  kinds of block       heights    LiDAR or dense matching  -> ndsm
    buildings, objects                     scene      the seed, and all of it in order
"""

from train.data.synthetic.scene import GSD_RANGE_M, SyntheticScene, generate
from train.data.synthetic.town import STYLES

__all__ = ["GSD_RANGE_M", "STYLES", "SyntheticScene", "generate"]
