"""What cannot be, or hardly, about a tile of one sensor or of both: findings from the statistics of the siblings."""

from __future__ import annotations

from collections.abc import Iterator

from engine.contract.health import ColourLimits, GroundLimits
from engine.health import mends
from engine.health.colours import Colours
from engine.health.ground import Ground
from engine.health.verdict import Fault, Finding

IMPLAUSIBLE = frozenset(
    {Fault.BANDS, Fault.BLIND, Fault.BLURRED, Fault.GROUND, Fault.UNITS, Fault.HELD, Fault.MISPLACED}
)
"""Faults of tiles that have data: used where there is nothing else to use."""
BANDS = ("infrared", "red", "green")
PAIRS = ((0, 1), (0, 2), (1, 2))
IMPOSSIBLE_GROUND_M = 60.0
"""No forest and no roof covers a whole tile at this height."""
LEAST_BELOW = 0.01
"""Where nothing stands above the ground fewer heights lie below it, or they have the wrong sign."""
LOW_RELIEF_M = 2.5
LOW_TOWN_M = 3.3
"""In a town something is higher."""
LEAST_RELIEF_M = 1.5
"""Of less nobody can say that it is too smooth."""
SURE_DISORDER = 2.0
"""Where the order of bands is so many times as odd as it may be no audit is asked; a dark forest is a little odd, and
so are red roofs, which are as bright in infrared as in red."""


def image_findings(colours: Colours, limits: ColourLimits, ground: Ground | None) -> Iterator[Finding]:
    """What is wrong with the bands of an image, the cause before its consequences.

    Args:
        colours: statistics of the tile.
        limits: of them.
        ground: of the heights of the same tile; None where there are none. An image of nothing is a lake unless heights
            tell otherwise.
    """
    detail = colours.detail
    blind, sure = "", not colours.few
    if sure and max(map(abs, detail)) < limits.together:
        blind = f"no two bands show the same detail (correlation {max(detail):.2f})"
    elif sure and colours.structure < limits.structure:
        blind = f"changes over 16 px are {colours.structure:.2f} times those over 1 px"
    if blind:
        if ground is not None and ground.reaches(LOW_RELIEF_M):
            yield Finding(
                fault=Fault.BLIND,
                hard=True,
                detail=f"{blind}, as of noise, fog, a covered lens, or bands that lie apart",
                mend=mends.LENS,
            )
        return
    if sure and colours.jumps > limits.jumps:
        words = f"{colours.jumps:.1%} of neighbouring pixels differ by about 128 DN, so that the highest bit is damaged"
        yield Finding(fault=Fault.BANDS, hard=True, detail=words, mend=mends.CAMERA)
        return
    if colours.crippled:
        yield Finding(fault=Fault.BANDS, hard=True, detail=f"in a band {colours.crippled}", mend=mends.CAMERA)
        return
    copies = [pair for pair, varies in zip(PAIRS, colours.difference, strict=True) if varies < limits.copied_dn]
    if copies:
        first, second = copies[0]
        words = f"{BANDS[first]} and {BANDS[second]} are the same"
        hard = any(0 in pair for pair in copies)
        yield Finding(fault=Fault.BANDS, hard=hard, detail=words, mend=mends.BANDS_OPTION)
        return
    if colours.few:
        return
    against = [
        -each > limit for each, limit in zip(detail, (limits.infrared, limits.infrared, limits.against), strict=True)
    ]
    if any(against):
        first, second = PAIRS[against.index(True)]
        words = f"{BANDS[first]} and {BANDS[second]} contradict each other (correlation {min(detail):.2f}), "
        words += "as if one is inverted"
        yield Finding(fault=Fault.BANDS, hard=True, detail=words, mend=mends.INVERT)
        return
    if colours.inverted > limits.reversed:
        words = f"detail of the infrared contradicts that of red and green (correlation {max(detail[:2]):.2f}), and "
        words += f"what is coarse does not ({min(colours.coarse[:2]):.2f}), as if it is inverted"
        yield Finding(fault=Fault.BANDS, hard=True, detail=words, mend=mends.INVERT)
        return
    alone = [band for band in range(3) if max(detail[pair] for pair in range(3) if band in PAIRS[pair]) < limits.alone]
    if any(alone):  # infrared alone goes its own way over vegetation
        words = f"{BANDS[alone[-1]]} shares no detail with the other bands, and is dead or noise"
        yield Finding(fault=Fault.BANDS, hard=True, detail=words, mend=mends.BANDS_OPTION)
        return
    if colours.infrared and colours.disorder > limits.order:
        words = f"the {('second', 'third')[colours.infrared - 1]} of the three bands behaves as the infrared does"
        shaded = colours.shared > limits.shading
        hard = colours.disorder > SURE_DISORDER * limits.order and not shaded
        yield Finding(
            fault=Fault.BANDS,
            hard=hard,
            detail=words,
            mend=mends.FIRST_BAND,
            doubt=not hard,
            hint=shaded,
            size=colours.disorder,
        )
    together = colours.together
    if together < limits.parted:
        words = (
            f"red and green do not go together (correlation {together:.2f}), as if one is damaged, or lies elsewhere"
        )
        mend = mends.REGISTER_BANDS
        yield Finding(fault=Fault.BANDS, hard=False, detail=words, mend=mend, doubt=True, hint=True, size=-together)
    if colours.blur > limits.blurred:
        words = f"changes over 16 px are {colours.blur:.0f} times those over 1 px, as if out of focus, or moved"
        yield Finding(fault=Fault.BLURRED, hard=False, detail=words, mend=mends.FOCUS, doubt=True, size=colours.blur)


def height_findings(ground: Ground, limits: GroundLimits, edges: float | None, edge_limit: float) -> Iterator[Finding]:
    """What is hardly plausible about heights.

    Args:
        ground: statistics of the tile.
        limits: of them.
        edges: share of strong edges of the image of the same tile; None where there is none.
        edge_limit: from which share on an image shows a town.
    """
    if ground.below > limits.below:
        words = f"{ground.below:.0%} of the heights lie below {limits.low_m:g} m, down to {ground.lowest_m:.1f} m"
        yield Finding(fault=Fault.GROUND, hard=False, detail=words, mend=mends.DATUM, doubt=True, size=-ground.lowest_m)
    elif ground.below > LEAST_BELOW and not ground.reaches(limits.high_m):
        words = f"nothing stands above the ground, and {ground.below:.0%} of the heights lie below {limits.low_m:g} m"
        yield Finding(fault=Fault.GROUND, hard=False, detail=words, mend=mends.DATUM, doubt=True, size=ground.below)
    elif ground.grounded < limits.grounded:
        hard = ground.lowest_m > IMPOSSIBLE_GROUND_M
        words = f"ground lies at {ground.level_m:.1f} m"
        if ground.slope_m is not None and ground.slope_m > 2 * max(1.0, abs(ground.lowest_m)):
            words = f"ground is tilted, by {ground.slope_m:.1f} m across the tile"
        mend = mends.SURFACE
        yield Finding(fault=Fault.GROUND, hard=hard, detail=words, mend=mend, doubt=not hard, size=ground.level_m)
    if ground.reaches(LEAST_RELIEF_M) and ground.smooth(limits.rise):
        words = (
            f"heights up to {ground.top_m:.1f} m rise by no more than {ground.rise_m:.2f} m over 8 px, as if smeared"
        )
        yield Finding(fault=Fault.BLURRED, hard=False, detail=words, mend=mends.POINTS, doubt=True, size=-ground.rise_m)
    if edges is not None and edges > edge_limit and not ground.reaches(LOW_TOWN_M):
        words = f"nothing is higher than {ground.top_m:.2f} m under an image with {edges:.0%} strong edges"
        yield Finding(fault=Fault.UNITS, hard=False, detail=words, mend=mends.UNITS, doubt=True, size=-ground.top_m)
