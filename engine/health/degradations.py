"""Ways in which a sensor delivers something wrong that looks right, each by a strength.

They are made tile by tile from what the sensor saw. ``--inject`` takes them; ``engine.acceptance --degradations``
measures what each of them does to the map, and from which strength on it is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.contract.sensors import Sensor


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """One way to spoil a sensor."""

    strengths: Mapping[Sensor, tuple[float, ...]]
    """For each sensor that it can befall, what acceptance tries, from mild to severe; the last is the default."""
    means: str
    """What the strength says."""
    unseen: bool = False
    """No rule and no limit was made by looking at what this does: it says how far those carry."""


RGIR, NDSM = Sensor.RGIR, Sensor.NDSM

DEGRADATIONS: Mapping[str, Degradation] = {
    "offset": Degradation(strengths={NDSM: (1, 2, 3, 5, 20, 80)}, means="m added to every height"),
    "tilt": Degradation(strengths={NDSM: (2, 5, 10, 20)}, means="m from one side of a tile to the other"),
    "terrain": Degradation(strengths={NDSM: (1, 3, 10)}, means="m of hills that are left in"),
    "scale": Degradation(strengths={NDSM: (2, 3.28, 0.5, 0.3, 0.1)}, means="times the height"),
    "shift": Degradation(strengths={RGIR: (2, 10, 20, 50), NDSM: (2, 10, 20, 50)}, means="px off"),
    "elsewhere": Degradation(
        strengths={RGIR: (1, 2, 4), NDSM: (1, 2, 4)},
        means="right angles by which the tile is turned",
    ),
    "held": Degradation(
        strengths={RGIR: (10, 3, 1), NDSM: (0.3, 0.05, 0.02)},
        means="noise on the tile before the first, again and again, DN or m",
    ),
    "blur": Degradation(strengths={RGIR: (3, 9, 25), NDSM: (3, 9, 25, 81)}, means="px, of a box, twice"),
    "spikes": Degradation(strengths={RGIR: (0.001, 0.01), NDSM: (0.001, 0.01)}, means="share of pixels"),
    "bands": Degradation(
        strengths={RGIR: (132, 321, 231, 312, 213)},
        means="which bands are given, as NIR, red, green",
    ),
    "copied": Degradation(strengths={RGIR: (2, 1)}, means="the band that all three show"),
    "inverted": Degradation(strengths={RGIR: (1, 3, 2, 0)}, means="the inverted band; 0 is all"),
    "bit": Degradation(strengths={RGIR: (4, 5, 6, 7)}, means="the bit that is always 0"),
    "fog": Degradation(strengths={RGIR: (0.2, 0.5, 0.8, 0.95, 1.0)}, means="share of 200 DN in every value"),
    "gain": Degradation(strengths={RGIR: (0.3, 0.6, 1.5)}, means="times the grey level"),
    "vignette": Degradation(strengths={RGIR: (0.4, 0.8)}, means="darkening of the corners"),
    "smeared": Degradation(strengths={RGIR: (9, 25, 75), NDSM: (9, 25, 75)}, means="px along rows"),
    "torn": Degradation(strengths={RGIR: (15, 65, 161), NDSM: (15, 65, 161)}, means="px of the lower half"),
    "parted": Degradation(strengths={RGIR: (1, 3, 8, 24)}, means="px between the bands", unseen=True),
    "gamma": Degradation(strengths={RGIR: (0.4, 0.7, 1.5, 2.5), NDSM: (0.4, 0.7, 1.4)}, means="power", unseen=True),
    "quantised": Degradation(strengths={RGIR: (8, 32, 64), NDSM: (0.5, 2, 5)}, means="DN or m", unseen=True),
    "wrapped": Degradation(strengths={NDSM: (12.8, 6.4, 3.2)}, means="m after which 0 comes again"),
    "clipped": Degradation(strengths={RGIR: (150, 110, 80), NDSM: (8, 4, 2)}, means="DN or m of the highest"),
    "stripes": Degradation(strengths={RGIR: (4, 12, 40), NDSM: (0.3, 1, 3)}, means="DN or m"),
    "grain": Degradation(strengths={RGIR: (5, 10, 20, 60), NDSM: (0.2, 0.5, 1.2, 4)}, means="DN or m"),
    "lumps": Degradation(strengths={RGIR: (5, 15, 40), NDSM: (0.3, 1, 3)}, means="DN or m"),
    "tinted": Degradation(strengths={RGIR: (1.5, 0.6, 0.3)}, means="gain of the first band", unseen=True),
    "blocks": Degradation(strengths={RGIR: (50, 15, 4), NDSM: (50, 15, 4)}, means="quality of JPEG", unseen=True),
    "negative": Degradation(strengths={NDSM: (1,)}, means="any: the sign is changed", unseen=True),
    "gaps": Degradation(strengths=dict.fromkeys(Sensor, (0.1, 0.6)), means="share of rows without data", unseen=True),
    "checkered": Degradation(
        strengths=dict.fromkeys(Sensor, (64, 4, 1)),
        means="px of squares, of which every other has no data",
        unseen=True,
    ),
    "widening": Degradation(
        strengths=dict.fromkeys(Sensor, (0.1, 0.3)),
        means="by which a hole grows with every tile, of its side",
        unseen=True,
    ),
    "lagged": Degradation(
        strengths=dict.fromkeys(Sensor, (0.1, 0.5)),
        means="share of the rows that are those of the tile before",
        unseen=True,
    ),
    "creeping": Degradation(
        strengths={RGIR: (0.05, 0.3), NDSM: (0.5, 2)},
        means="haze (share of 200 DN) or m that every tile has more",
        unseen=True,
    ),
    "flickering": Degradation(
        strengths=dict.fromkeys(Sensor, (2,)),
        means="tiles of which the first shows another place",
        unseen=True,
    ),
    "mixed": Degradation(
        strengths=dict.fromkeys(Sensor, (1, 2)),
        means="blur, haze and noise; offset, tilt and noise",
        unseen=True,
    ),
}
