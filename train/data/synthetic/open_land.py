"""Squares, parks and farmland: one function per kind of block, all `(site, block) -> None`."""

from __future__ import annotations

import numpy as np

from train.data.synthetic.buildings import building
from train.data.synthetic.canvas import BUILDING, F32, IMPERVIOUS, LOW_VEGETATION, Mask, Window
from train.data.synthetic.layout import Block
from train.data.synthetic.materials import vary
from train.data.synthetic.objects import box, forest, sides
from train.data.synthetic.site import Lot, Site

QUARTER = float(np.pi / 2)


def parking(site: Site, block: Block) -> None:
    """Rows of stalls with aisles; line marks, cars, trees on islands."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    done = site.cover(block, palette.asphalt() if rng.random() < 0.6 else palette.paving(), IMPERVIOUS)
    if done is None:
        return
    window, ground = done
    stall, deep, aisle = float(rng.uniform(2.3, 2.7)), 5.0, float(rng.uniform(5.5, 7))
    du, dv = block.size
    lot = Lot(block=block, front="v0" if du >= dv else "u0")
    full, paint = float(rng.uniform(0.05, 0.8)), vary(rng, (0.8, 0.9, 0.9), 0.12)
    a = np.abs((site.u if lot.along_u else site.v)[window] - (block.u0 if lot.along_u else block.v0))
    d = np.abs((site.v if lot.along_u else site.u)[window] - (block.v0 if lot.along_u else block.u0))
    line = max(0.07, 0.35 * canvas.gsd_m)
    marked, planted = rng.random() < 0.75, rng.random() < 0.5
    edge, k = 0.3, 0
    while edge + deep < lot.depth:
        if marked:
            stripes = (np.mod(a, stall) < 2 * line) & (d > edge) & (d < edge + deep)
            free = ground & stripes & ~canvas.taken[window]
            canvas.paint(window, free, paint, factor=min(1.0, 0.14 / canvas.gsd_m + 0.3))
        for j in range(int(lot.width / stall)):
            u, v = lot.at((j + 0.5) * stall, edge + deep / 2 + float(rng.normal(0, 0.2)))
            if planted and j % 9 == 4:
                island = lot.rect(j * stall + 0.2, (j + 1) * stall - 0.2, edge, edge + deep)
                site.cover(island, palette.lawn(), LOW_VEGETATION)
                site.tree(u, v, float(rng.uniform(1, 2.6)), kind="broad")
            elif rng.random() < full:
                site.car(u, v, lot.turn + QUARTER)
            else:
                site.empty_stall(u, v, lot.turn + QUARTER)
        edge += deep if k % 2 else deep + aisle
        k += 1


def park(site: Site, block: Block) -> None:
    """Lawns, winding paths, groups of trees, a pond, a playground."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    done = site.cover(block, palette.lawn(), LOW_VEGETATION)
    if done is None:
        return
    window, ground = done
    u, v = site.u[window], site.v[window]
    for _ in range(int(rng.integers(1, 4))):  # winding paths
        theta, half = float(rng.uniform(0, np.pi)), float(rng.uniform(0.6, 2))
        cu, cv = rng.uniform(block.u0, block.u1), rng.uniform(block.v0, block.v1)
        p = (u - cu) * np.cos(theta) + (v - cv) * np.sin(theta)
        q = (v - cv) * np.cos(theta) - (u - cu) * np.sin(theta)
        bow = float(rng.uniform(0, 6)) * np.sin(p / float(rng.uniform(9, 30)))
        path = ground & (np.abs(q + bow) < half)
        earth = rng.random() < 0.25
        canvas.paint(window, path, palette.soil() if earth else palette.paving(),
                     LOW_VEGETATION if earth else IMPERVIOUS)  # fmt: skip
    if rng.random() < 0.3:
        x, y = site.frame.xy(*site.scatter(block, 100, 1)[0]) if min(block.size) > 5 else (0.0, 0.0)
        box(canvas, palette, (x, y, float(rng.uniform(0, 3))), *sides(rng, 8, 30), 0.0,
            colour=palette.water(pool=False), round_=True)  # fmt: skip
    if rng.random() < 0.4:
        _court(site, block)
    for cu, cv in site.scatter(block, 0.14, 16):  # groups
        kind = str(rng.choice(("broad", "conifer", "broad")))
        for _ in range(int(rng.integers(1, 8))):
            site.tree(cu + rng.normal(0, 5), cv + rng.normal(0, 5), float(rng.uniform(1.5, 6)), kind=kind)
    for cu, cv in site.scatter(block, 0.5, 60):
        site.tree(cu, cv, float(rng.uniform(0.4, 1.4)), kind="bush")
    for cu, cv in site.scatter(block, 0.5, 60):
        site.tree(cu, cv)


def _court(site: Site, block: Block) -> None:
    """A tennis court, ball cage or playground: clutter in the ISPRS sense."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    places = site.scatter(block.inset(9), 100, 1)
    if not places:
        return
    u, v = places[0]
    colour = vary(rng, ((0.62, 0.60, 0.42), (0.35, 0.42, 0.52), (0.45, 0.48, 0.42))[int(rng.integers(3))])
    pose = site.pose(u, v)
    if not box(canvas, palette, pose, 34.0, 17.0, 0.0, colour=colour):
        return
    patch = canvas.patch(*pose, 17.0, 8.5)
    if patch is None:
        return
    s, t = np.abs(patch.s), np.abs(patch.t)
    lines = ((np.abs(s - 11.9) < 0.08) & (t < 5.5)) | ((np.abs(t - 5.4) < 0.08) & (s < 11.9))
    lines |= ((np.abs(t - 4.1) < 0.08) & (s < 11.9)) | ((np.abs(s - 6.4) < 0.08) & (t < 4.1))
    canvas.paint(patch.window, lines | ((s < 0.08) & (t < 5.5)), (0.85, 0.92, 0.92))


def plaza(site: Site, block: Block) -> None:
    """Paved square: slab joints, planters, palms or pollards, awnings, kiosks, tables."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    done = site.cover(block, palette.paving(), IMPERVIOUS)
    if done is None:
        return
    window, ground = done
    if rng.random() < 0.75:
        step, line = float(rng.uniform(1.5, 8)), float(rng.uniform(0.08, 0.4))
        joints = (np.mod(site.u[window], step) < line) | (np.mod(site.v[window], step) < line)
        canvas.tint(window, ground & joints, float(rng.choice((0.82, 0.9, 1.12, 1.2))))
    palms = rng.random() < 0.5
    for u, v in site.scatter(block.inset(2), 0.3, 10):  # planters
        length, width = float(rng.uniform(3, 18)), float(rng.uniform(1.5, 5))
        bed = Block(u0=u - length / 2, u1=u + length / 2, v0=v - width / 2, v1=v + width / 2)
        if rng.random() < 0.5:
            bed = Block(u0=u - width / 2, u1=u + width / 2, v0=v - length / 2, v1=v + length / 2)
        site.cover(bed, palette.lawn() if rng.random() < 0.7 else palette.soil(), LOW_VEGETATION,
                   corner_m=float(rng.uniform(0, 2)))  # fmt: skip
        for a, b in site.scatter(bed, 2.5, 4):
            site.tree(a, b, float(rng.uniform(1, 3)), kind="palm" if palms else "")
    for u, v in site.scatter(block.inset(5), 0.12, 4):  # pavilions, market halls, corner houses
        building(canvas, palette, site.pose(u, v, QUARTER * int(rng.integers(2))), float(rng.uniform(8, 26)),
                 float(rng.uniform(7, 16)), eave_m=float(rng.uniform(3, 12)), flat=rng.random() < 0.6)  # fmt: skip
    for u, v in site.scatter(block, 1.2, 30):  # awnings, kiosks, tables, people
        size = float(np.exp(rng.uniform(np.log(0.4), np.log(5))))
        box(canvas, palette, site.pose(u, v, float(rng.choice((0.0, 0.4)))), size, size * float(rng.uniform(0.5, 1)),
            float(rng.uniform(0.7, 3.0)), round_=rng.random() < 0.2)  # fmt: skip
    for u, v in site.scatter(block, 0.7, 24):
        site.tree(u, v, float(rng.uniform(1, 3)), kind="palm" if palms else "")
    for u, v in site.scatter(block, 0.25, 6):
        site.car(u, v, QUARTER * int(rng.integers(2)))


def field(site: Site, block: Block) -> None:
    """Arable land or meadow in strips, with drill rows, tramlines and headlands."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    done = site.cover(block, palette.meadow(), LOW_VEGETATION)
    if done is None:
        return
    along = rng.random() < 0.5
    du, dv = block.size
    count = int(rng.integers(1, 4))
    for k in range(count):
        lo, hi = k / count, (k + 1) / count
        part = (
            Block(u0=block.u0, u1=block.u1, v0=block.v0 + lo * dv, v1=block.v0 + hi * dv)
            if along
            else Block(u0=block.u0 + lo * du, u1=block.u0 + hi * du, v0=block.v0, v1=block.v1)
        ).inset(float(rng.uniform(0.2, 1.5)))
        kind = str(rng.choice(("crop", "soil", "meadow"), p=(0.32, 0.42, 0.26)))
        material = {"crop": palette.crop, "soil": palette.soil, "meadow": palette.meadow}[kind]()
        sown = site.cover(part, material, LOW_VEGETATION)
        if sown is None:
            continue
        window, mask = sown
        # Soil and growth vary over tens of metres, and fine tufts speckle rough grass.
        wide = 1 + float(rng.uniform(0.02, 0.14)) * canvas.grain(window, 25.0)
        wide = wide + float(rng.uniform(0, 0.08)) * canvas.grain(window, 2.7)
        canvas.tint(window, mask, np.clip(wide, 0.5, 1.5))
        across = (site.v if along else site.u)[window]
        edge = -site.inside(window, part)
        if kind != "meadow":
            _tillage(site, window, mask, across, edge, kind)
        top = float(rng.choice((0.0, 0.1, 0.3, 0.8))) if kind != "soil" else 0.0
        if top:
            growth = top * (1 + 0.25 * canvas.grain(window, 0.9) + 0.2 * canvas.grain(window, 8.0))
            growth = np.maximum(growth, 0).astype(np.float32)
            seen = growth * float(rng.choice((0.15, 0.6, 1.0)))
            canvas.raise_surface(window, mask & (canvas.surface[window] == 0), growth, sensed_m=seen)
    for u, v in site.scatter(block, 0.01, 8):
        site.tree(u, v, float(rng.uniform(1, 5)))
    if rng.random() < 0.25:  # bales or heaps
        for u, v in site.scatter(block, 0.05, 15):
            box(canvas, palette, site.pose(u, v), 1.5, 1.3, 1.3, colour=vary(rng, (0.6, 0.68, 0.6)))


def _tillage(site: Site, window: Window, mask: Mask, across: F32, edge: F32, kind: str) -> None:
    """Rows of the drill, tramlines of the tractor, and the headland turned the other way."""
    rng, canvas = site.rng, site.canvas
    headland = float(rng.uniform(6, 18)) if rng.random() < 0.7 else 0.0
    along_edge = edge < headland
    waver = across + 0.25 * canvas.grain(window, 8.0)
    coordinate = np.where(along_edge, edge, waver)
    period = float(np.exp(rng.uniform(np.log(0.5), np.log(7))))
    if period > 2.2 * canvas.gsd_m:
        wave = np.sin(coordinate * (2 * np.pi / period)) + 0.5 * np.sin(coordinate * (5.1 / period))
        canvas.tint(window, mask, 1 + wave * float(rng.uniform(0.01, 0.08)))
    if rng.random() < 0.75:
        spacing = float(rng.uniform(12, 36))
        half = max(float(rng.uniform(0.15, 0.35)), 0.3 * canvas.gsd_m)
        offset = np.mod(coordinate, spacing)
        tracks = (np.abs(offset - 1.0) < half) | (np.abs(offset - 2.8) < half)
        worn = site.palette.soil()
        strength = float(rng.uniform(0.85, 1.3))
        if kind == "crop" and rng.random() < 0.7:
            canvas.paint(window, mask & tracks, worn, LOW_VEGETATION, factor=strength)
        else:
            canvas.tint(window, mask & tracks, strength)


def woods(site: Site, block: Block) -> None:
    """Closed or open forest on rough ground, with rides and glades."""
    rng = site.rng
    done = site.cover(block, site.palette.meadow(), LOW_VEGETATION)
    if done is None:
        return
    window, mask = done
    glade = site.canvas.grain(window, 25.0) + 0.4 * site.canvas.grain(window, 8.0)
    mask = mask & (glade < float(rng.uniform(0.4, 2.5)))
    forest(site.canvas, site.palette, window, mask, float(rng.uniform(2.0, 5.0)))
    for u, v in site.scatter(block, 0.3, 40):
        site.tree(u, v, float(rng.uniform(0.5, 2.5)), kind="bush" if rng.random() < 0.5 else "")


def orchard(site: Site, block: Block) -> None:
    """Trees or vines in rows on grass or soil."""
    rng, palette = site.rng, site.palette
    bare = rng.random() < 0.4
    if site.cover(block, palette.soil() if bare else palette.lawn(), LOW_VEGETATION) is None:
        return
    row, step = float(rng.uniform(4, 8)), float(rng.uniform(2.5, 6))
    radius, material = min(step, row) * float(rng.uniform(0.3, 0.5)), palette.crown()
    for u in np.arange(block.u0 + 2, block.u1 - 2, row):
        for v in np.arange(block.v0 + 2, block.v1 - 2, step):
            if rng.random() < 0.9:
                size = radius * float(np.exp(rng.normal(0, 0.15)))
                site.tree(float(u), float(v), size, kind="broad", material=material)


def farm(site: Site, block: Block) -> None:
    """Farmhouse, barns, yard, machines, old trees."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    site.cover(block, palette.meadow(), LOW_VEGETATION)
    du, dv = block.size
    cu, cv = (block.u0 + block.u1) / 2, (block.v0 + block.v1) / 2
    half = min(du, dv, 70.0) * 0.3
    yard = Block(u0=cu - half, u1=cu + half, v0=cv - half * 0.8, v1=cv + half * 0.8)
    site.cover(yard, palette.paving() if rng.random() < 0.6 else palette.soil(), IMPERVIOUS, corner_m=5)
    for u, v in site.scatter(yard, 0.4, 9):
        building(canvas, palette, site.pose(u, v, QUARTER * int(rng.integers(2))), float(rng.uniform(9, 35)),
                 float(rng.uniform(7, 16)), eave_m=float(rng.uniform(3, 6.5)), flat=rng.random() < 0.15,
                 shape=str(rng.choice(("rect", "L"), p=(0.8, 0.2))))  # fmt: skip
    for u, v in site.scatter(yard, 0.5, 12):
        if rng.random() < 0.4:
            site.car(u, v, float(rng.uniform(0, 3)))
        else:
            box(
                canvas,
                palette,
                site.pose(u, v, float(rng.uniform(0, 3))),
                float(rng.uniform(1, 6)),
                float(rng.uniform(1, 6)),
                1.5,
            )
    for u, v in site.scatter(block, 0.3, 40):
        site.tree(u, v)


def greenhouse(site: Site, block: Block) -> None:
    """Rows of glass or plastic tunnels: buildings, pale and shiny."""
    rng, canvas = site.rng, site.canvas
    if site.cover(block, site.palette.soil(), LOW_VEGETATION) is None:
        return
    width = float(rng.uniform(5, 9))
    lot = Lot(block=block, front="v0" if block.size[0] >= block.size[1] else "u0")
    glass = vary(rng, (0.72, 0.78, 0.80), 0.12)
    for d in np.arange(1.0, lot.depth - width, width + float(rng.choice((0.1, 1.5)))):
        u, v = lot.at(lot.width / 2, float(d) + width / 2)
        box(canvas, site.palette, site.pose(u, v, lot.turn), lot.width * 0.9, width, float(rng.uniform(2.5, 4.5)),
            label=BUILDING, colour=vary(rng, glass, 0.04))  # fmt: skip
