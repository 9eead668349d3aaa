"""Styles of neighbourhood: which streets, which blocks, and the traffic between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from train.data.synthetic import built, open_land
from train.data.synthetic.canvas import CLUTTER, IMPERVIOUS, LOW_VEGETATION, Canvas, Material
from train.data.synthetic.layout import Block, Street, StreetFrame, divide
from train.data.synthetic.materials import Palette, vary
from train.data.synthetic.objects import hedge
from train.data.synthetic.site import Site

Rng = np.random.Generator
QUARTER = float(np.pi / 2)

KINDS: dict[str, Callable[[Site, Block], None]] = {
    "houses": built.houses,
    "rows": built.rows,
    "perimeter": built.perimeter,
    "old_town": built.old_town,
    "slabs": built.slabs,
    "industry": built.industry,
    "building_site": built.building_site,
    "parking": open_land.parking,
    "park": open_land.park,
    "plaza": open_land.plaza,
    "field": open_land.field,
    "woods": open_land.woods,
    "orchard": open_land.orchard,
    "farm": open_land.farm,
    "greenhouse": open_land.greenhouse,
}


@dataclass(frozen=True, kw_only=True)
class Style:
    """What a neighbourhood is made of; `kinds` are shares of block kinds."""

    share: float  # of scenes at 0.1 m; `per_gsd` is added for each tenfold in ground sampling
    per_gsd: float
    block_m: tuple[float, float]
    street_m: tuple[float, float]
    kinds: dict[str, float]
    rural: bool = False
    bend_m: float = 5.0
    traffic: float = 1.0


STYLES: dict[str, Style] = {
    "suburb": Style(
        share=3.4, per_gsd=0.0, block_m=(34, 64), street_m=(5, 9), bend_m=12,
        kinds={"houses": 6, "rows": 1.5, "park": 0.5, "slabs": 0.4, "parking": 0.3, "building_site": 0.15},
    ),
    "terraces": Style(
        share=1.5, per_gsd=0.0, block_m=(32, 56), street_m=(5, 9), traffic=1.1,
        kinds={"rows": 5, "houses": 1, "park": 0.5, "parking": 0.6, "perimeter": 0.6},
    ),
    "city": Style(
        share=2.6, per_gsd=-0.2, block_m=(38, 70), street_m=(7, 14), traffic=1.2,
        kinds={
            "perimeter": 5, "old_town": 1, "slabs": 0.8, "plaza": 0.6, "park": 0.5, "parking": 0.4,
            "building_site": 0.2,
        },
    ),
    "old_town": Style(
        share=2.6, per_gsd=-0.3, block_m=(28, 60), street_m=(3.5, 8), bend_m=10, traffic=0.8,
        kinds={"old_town": 6, "plaza": 0.8, "perimeter": 1, "park": 0.3, "parking": 0.3},
    ),
    "promenade": Style(
        share=1.6, per_gsd=-0.5, block_m=(30, 65), street_m=(6, 12), bend_m=10, traffic=1.1,
        kinds={"plaza": 2.5, "old_town": 3.5, "parking": 0.7, "park": 0.8, "perimeter": 0.8},
    ),
    "estate": Style(
        share=1.6, per_gsd=0.0, block_m=(60, 110), street_m=(5, 10), bend_m=8, traffic=1.0,
        kinds={"slabs": 5, "park": 1, "parking": 1, "rows": 0.5, "building_site": 0.2},
    ),
    "industry": Style(
        share=1.5, per_gsd=0.3, block_m=(60, 130), street_m=(6, 12), traffic=0.9,
        kinds={"industry": 5, "parking": 1.2, "building_site": 0.7, "field": 0.4, "greenhouse": 0.2},
    ),
    "park": Style(
        share=1.1, per_gsd=0.2, block_m=(40, 90), street_m=(3, 7), bend_m=12, traffic=0.8,
        kinds={"park": 4, "woods": 1.5, "houses": 0.8, "parking": 0.4, "plaza": 0.4},
    ),
    "village": Style(
        share=1.2, per_gsd=0.8, block_m=(40, 100), street_m=(4, 7), bend_m=12, traffic=0.7,
        kinds={"houses": 2.5, "farm": 1.5, "field": 1.2, "orchard": 0.7, "woods": 0.5, "park": 0.3},
    ),
    "fields": Style(
        share=0.9, per_gsd=3.2, block_m=(90, 260), street_m=(2.5, 6), rural=True, traffic=0.15,
        kinds={"field": 7, "woods": 0.6, "farm": 0.5, "orchard": 0.4, "greenhouse": 0.15},
    ),
    "forest_edge": Style(
        share=0.7, per_gsd=0.8, block_m=(50, 130), street_m=(2.5, 6), rural=True, traffic=0.2, bend_m=12,
        kinds={"woods": 5, "field": 2, "park": 0.5, "farm": 0.4, "houses": 0.4},
    ),
}  # fmt: skip


def pick_style(rng: Rng, gsd_m: float) -> str:
    """A style name; fields and villages become likelier as pixels grow."""
    decades = float(np.log10(gsd_m / 0.1))
    shares = np.array([max(s.share + s.per_gsd * decades, 0.1) for s in STYLES.values()])
    return str(rng.choice(list(STYLES), p=shares / shares.sum()))


def build(canvas: Canvas, palette: Palette, style: Style) -> None:
    """Fill the canvas with a neighbourhood of the given style."""
    rng = palette.rng
    left, top, right, bottom = canvas.extent_m
    reach = float(np.hypot(right - left, bottom - top)) / 2 + 30
    centre = (
        (left + right) / 2 + float(rng.uniform(-20, 20)),
        (top + bottom) / 2 + float(rng.uniform(-20, 20)),
    )
    site = Site(canvas, palette, StreetFrame(rng, centre, bend_m=style.bend_m))
    area = Block(u0=-reach, u1=reach, v0=-reach, v1=reach)
    streets, blocks = divide(rng, area, block_m=style.block_m, width_m=style.street_m)
    _base(site, style)
    for street in streets:
        _street(site, street, style)
    if rng.random() < 0.15:
        _thoroughfare(site)
    names, shares = list(style.kinds), np.array(list(style.kinds.values()))
    pavement = float(rng.choice((0.0, 1.5, 2.5, 4.0), p=(0.25, 0.4, 0.27, 0.08)))
    paving, corner = palette.paving(), float(rng.uniform(0.5, 9))
    for block in blocks:
        kind = str(rng.choice(names, p=shares / shares.sum()))
        if site.window(block, 6) is None:
            continue
        if style.rural:
            block = block.inset(float(rng.uniform(0.3, 2.5)))
        elif pavement:
            site.cover(block, paving, IMPERVIOUS, corner_m=corner)
            _kerb(site, block, corner)
            block = block.inset(pavement)
        if min(block.size) > 8:
            KINDS[kind](site, block)
    for street in streets:
        _traffic(site, street, style, pavement)


def _base(site: Site, style: Style) -> None:
    everything = (slice(0, site.canvas.shape[0]), slice(0, site.canvas.shape[1]))
    mask = np.ones(site.canvas.shape, np.bool_)
    if style.rural:
        site.canvas.paint(everything, mask, site.palette.meadow(), LOW_VEGETATION)
    else:
        site.canvas.paint(everything, mask, site.palette.asphalt(), IMPERVIOUS)


def _ribbon(street: Street, half: float, lo: float = 0.0, hi: float = 0.0) -> Block:
    """The strip of a street between -half and +half of its axis."""
    if street.along_u:
        return Block(u0=street.lo - lo, u1=street.hi + hi, v0=street.at - half, v1=street.at + half)
    return Block(u0=street.at - half, u1=street.at + half, v0=street.lo - lo, v1=street.hi + hi)


def _street(site: Site, street: Street, style: Style) -> None:
    """Surface and marks of one street."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    half = street.width_m / 2
    if style.rural:
        _country_lane(site, street)
        return
    if rng.random() < 0.6:
        done = site.cover(_ribbon(street, half), palette.asphalt(), IMPERVIOUS)
    else:
        done = site.cover(_ribbon(street, half), palette.paving(), IMPERVIOUS) if rng.random() < 0.1 else None
    window = done[0] if done else site.window(_ribbon(street, half))
    if window is None:
        return
    across = (site.v if street.along_u else site.u)[window] - street.at
    along = (site.u if street.along_u else site.v)[window]
    on = (np.abs(across) < half) & (along > street.lo) & (along < street.hi)
    if rng.random() < 0.4:  # oil and wear along the wheel tracks
        wear = np.cos(np.clip(np.abs(across) / half, 0, 1) * 3 * np.pi)
        canvas.tint(window, on, (1 + float(rng.uniform(0.01, 0.06)) * wear).astype(np.float32))
    for _ in range(int(rng.integers(0, 4))):  # repairs
        a = float(rng.uniform(street.lo, street.hi))
        patch = on & (np.abs(along - a) < rng.uniform(0.5, 6)) & (np.sign(across) == rng.choice((-1, 1)))
        canvas.tint(window, patch, float(rng.uniform(0.8, 1.2)))
    paint = vary(rng, (0.78, 0.88, 0.88), 0.12)
    thin = max(0.07, 0.3 * canvas.gsd_m)
    fade = min(1.0, 0.14 / canvas.gsd_m + 0.35)  # thin lines only brighten coarse pixels
    if street.width_m > 5.5 and rng.random() < 0.75:
        dashes = np.mod(along, 6.0) < float(rng.choice((2.0, 3.0, 6.0)))
        canvas.paint(window, on & dashes & (np.abs(across) < thin), paint, factor=fade)
        if rng.random() < 0.5:
            canvas.paint(window, on & (np.abs(np.abs(across) - half + 0.4) < thin), paint, factor=fade)
        if street.width_m > 10:
            lanes = np.abs(np.abs(across) - half / 2) < thin
            canvas.paint(window, on & lanes & dashes, paint, factor=fade)
    if street.width_m > 11 and rng.random() < 0.4:  # green median
        median = _ribbon(street, float(rng.uniform(0.8, 1.6)), -8, -8)
        site.cover(median, palette.lawn(), LOW_VEGETATION, corner_m=1)
    for end in (street.lo + 5, street.hi - 5, float(rng.uniform(street.lo, street.hi))):
        if rng.random() < 0.3:  # zebra crossing
            bars = on & (np.abs(along - end) < 1.6) & (np.mod(across, 1.0) < 0.5)
            canvas.paint(window, bars & (np.abs(across) < half - 0.4), paint, factor=min(1.0, fade + 0.2))


def _country_lane(site: Site, street: Street) -> None:
    """Paved lane, gravel track, two ruts in the grass, hedge bank, or nothing but a boundary."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    kind = str(rng.choice(("lane", "track", "ruts", "hedge", "none"), p=(0.27, 0.2, 0.2, 0.13, 0.2)))
    half = min(street.width_m / 2, 2.6)
    if kind in ("lane", "track"):
        surface = palette.asphalt() if kind == "lane" else palette.paving()
        site.cover(_ribbon(street, half), surface, IMPERVIOUS)
    elif kind == "ruts":
        window = site.window(_ribbon(street, half))
        if window is not None:
            across = np.abs((site.v if street.along_u else site.u)[window] - street.at)
            along = (site.u if street.along_u else site.v)[window]
            ruts = (np.abs(across - 0.85) < 0.35) & (along > street.lo) & (along < street.hi)
            canvas.paint(window, ruts, palette.soil(), LOW_VEGETATION)
    elif kind == "hedge":
        _hedgerow(site, street, palette.crown())


def _hedgerow(site: Site, street: Street, material: Material) -> None:
    rng = site.rng
    thick = float(rng.uniform(0.5, 3.0))
    for a in np.arange(street.lo, street.hi, 6.0):
        u, v = (a + 3, street.at) if street.along_u else (street.at, a + 3)
        if rng.random() < 0.75:
            turn = 0.0 if street.along_u else QUARTER
            hedge(site.canvas, site.palette, site.pose(float(u), float(v), turn), 6.4, material)
        for _ in range(int(rng.integers(0, 3))):
            du, dv = rng.normal(0, 1.5, 2)
            site.tree(float(u + du), float(v + dv), thick * float(rng.uniform(0.6, 1.5)), kind="broad")


def _kerb(site: Site, block: Block, corner: float) -> None:
    if site.rng.random() < 0.5:
        return
    window = site.window(block)
    if window is not None:
        inside = site.inside(window, block, corner)
        width = max(0.15, 0.4 * site.canvas.gsd_m)
        kerb = (inside < 0) & (inside > -width) & ~site.canvas.taken[window]
        site.canvas.tint(window, kerb, float(site.rng.uniform(0.85, 1.25)))


def _thoroughfare(site: Site) -> None:
    """A street, railway or river that ignores the street grid."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    theta, half = float(rng.uniform(0, np.pi)), float(rng.uniform(3, 10))
    left, top, right, bottom = canvas.extent_m
    x = canvas.x[None, :] - float(rng.uniform(left, right))
    y = canvas.y[:, None] - float(rng.uniform(top, bottom))
    p, q = x * np.cos(theta) + y * np.sin(theta), y * np.cos(theta) - x * np.sin(theta)
    q = q + float(rng.uniform(0, 15)) * np.sin(p / float(rng.uniform(40, 120)))
    everything = (slice(0, canvas.shape[0]), slice(0, canvas.shape[1]))
    on = np.abs(q) < half
    kind = str(rng.choice(("road", "rail", "river"), p=(0.6, 0.2, 0.2)))
    if kind == "river":
        bank = np.abs(q) < half + float(rng.uniform(1, 5))
        canvas.paint(everything, bank, palette.meadow(), LOW_VEGETATION)
        canvas.paint(everything, on, palette.water(pool=False), CLUTTER)
        on = bank
    elif kind == "rail":
        canvas.paint(everything, on, palette.soil(), CLUTTER)
        rails = np.abs(np.mod(np.abs(q), 3.6) - 1.4) < max(0.1, 0.3 * canvas.gsd_m)
        canvas.tint(everything, on & rails, 1.35)
    else:
        canvas.paint(everything, on, palette.asphalt(), IMPERVIOUS)
        thin = max(0.08, 0.3 * canvas.gsd_m)
        edge = np.abs(np.abs(q) - half + 0.4) < thin
        canvas.paint(everything, edge | ((np.abs(q) < thin) & (np.mod(p, 9) < 3)), (0.8, 0.88, 0.88),
                     factor=min(1.0, 0.14 / canvas.gsd_m + 0.35))  # fmt: skip
    canvas.taken |= on


def _traffic(site: Site, street: Street, style: Style, pavement: float) -> None:
    """Parked rows at the kerb, moving cars, street trees; seen from above, so last."""
    rng = site.rng
    half = street.width_m / 2
    if site.window(_ribbon(street, half)) is None:
        return
    turn = 0.0 if street.along_u else QUARTER

    def at(along: float, across: float) -> tuple[float, float]:
        a, c = along, street.at + across
        return (a, c) if street.along_u else (c, a)

    busy = style.traffic * float(rng.uniform(0.0, 0.9))
    for side in (-1, 1):
        parked = float(np.clip(rng.normal(0.16, 0.3) * style.traffic, 0, 0.8))
        if not style.rural and street.width_m > 5 and parked > 0.05:
            for a in np.arange(street.lo + 6, street.hi - 6, 5.6):
                place = at(float(a + rng.normal(0, 0.3)), side * (half - 1.05))
                if rng.random() < parked:
                    site.car(*place, turn)
                else:
                    site.empty_stall(*place, turn)
        for a in rng.uniform(street.lo, street.hi, int(rng.poisson(busy * (street.hi - street.lo) / 60))):
            site.car(*at(float(a), side * half * 0.35), turn)
        if not style.rural and rng.random() < 0.5:  # an avenue
            step, radius = float(rng.uniform(6, 16)), float(rng.uniform(1, 4.5))
            kind = str(rng.choice(("broad", "broad", "palm", "bare")))
            material = site.palette.crown() if rng.random() < 0.7 else None
            offset = half + max(pavement * 0.5, 0.8)
            for a in np.arange(street.lo + 4, street.hi - 4, step):
                if rng.random() < 0.85:
                    size = radius * float(np.exp(rng.normal(0, 0.15)))
                    u, v = at(float(a + rng.normal(0, 0.4)), side * offset)
                    site.tree(u, v, size, kind=kind, material=material)
