"""Built-up blocks: one function per kind, all `(site, block) -> None`."""

from __future__ import annotations

import numpy as np

from train.data.synthetic.buildings import STOREY_M, building
from train.data.synthetic.canvas import CLUTTER, IMPERVIOUS, LOW_VEGETATION
from train.data.synthetic.layout import Block, divide
from train.data.synthetic.objects import box, hedge, rubble
from train.data.synthetic.open_land import parking
from train.data.synthetic.site import Lot, Site, lots

QUARTER = float(np.pi / 2)


def houses(site: Site, block: Block) -> None:
    """Detached and semi-detached houses in gardens."""
    rng = site.rng
    site.cover(block, site.palette.lawn(), LOW_VEGETATION)
    storeys = float(rng.uniform(1.0, 2.4))
    setback = float(rng.uniform(1.5, 7))
    shaggy = float(rng.uniform(0.4, 2.4))  # how much grows in these gardens
    for lot in lots(rng, block, (11, 21), 16):
        if site.window(lot.block, 6) is not None:
            _garden_house(site, lot, storeys, setback, shaggy)


def _garden_house(site: Site, lot: Lot, storeys: float, setback: float, shaggy: float) -> None:
    rng, palette, canvas = site.rng, site.palette, site.canvas
    site.cover(lot.block, palette.lawn(), LOW_VEGETATION)
    depth = min(float(rng.uniform(8, 13)), lot.depth - setback - 2)
    length = min(float(rng.uniform(8, 16)), lot.width - 3.2)
    if depth < 5 or length < 5:
        return _garden(site, lot, 0.0, shaggy)
    left = rng.random() < 0.5
    centre = length / 2 + 0.8 if left else lot.width - length / 2 - 0.8
    drive = lot.width - 1.9 if left else 1.9
    back = setback + depth
    if rng.random() < 0.35:  # the whole front is paved
        site.cover(lot.rect(0, lot.width, 0, setback), palette.paving(), IMPERVIOUS)
    reach = back * float(rng.uniform(0.5, 1.1))
    site.cover(lot.rect(drive - 1.5, drive + 1.5, 0, reach), palette.paving(), IMPERVIOUS)
    site.cover(lot.rect(centre - 0.7, centre + 0.7, 0, setback), palette.paving(), IMPERVIOUS)
    building(
        canvas, palette, site.pose(*lot.at(centre, setback + depth / 2), lot.turn),
        max(length, depth), min(length, depth) if length >= depth else length,
        eave_m=storeys * STOREY_M * float(np.exp(rng.normal(0, 0.12))) + 0.3,
        flat=rng.random() < palette.flat_share * 0.5,
        shape=str(rng.choice(("rect", "L", "T"), p=(0.68, 0.2, 0.12))),
    )  # fmt: skip
    if rng.random() < 0.45:
        building(
            canvas, palette, site.pose(*lot.at(drive, reach + 3.2), lot.turn + QUARTER),
            6.0, float(rng.uniform(2.8, 3.6)), eave_m=2.5, flat=rng.random() < 0.7,
        )  # fmt: skip
    for k in range(int(rng.choice((0, 0, 1, 1, 2)))):
        site.car(*lot.at(drive, 2.8 + 5.3 * k), lot.turn + QUARTER)
    if rng.random() < 0.7:
        a = float(rng.uniform(1, max(lot.width - 5, 1.5)))
        terrace = lot.rect(a, a + float(rng.uniform(2.5, 6)), back, back + float(rng.uniform(2, 4)))
        site.cover(terrace, palette.paving(), IMPERVIOUS)
        if rng.random() < 0.5:
            u, v = lot.at(a + 1.5, back + 1.5)
            box(canvas, palette, site.pose(u, v), 2.2, 1.6, 0.8, round_=rng.random() < 0.5)
    _garden(site, lot, back, shaggy)


def _garden(site: Site, lot: Lot, back: float, shaggy: float) -> None:
    """Beds, paths, sheds, pools, hedges and trees behind (and a little before) the house."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    rest = lot.rect(0.5, lot.width - 0.5, back + 1.5, lot.depth - 0.5) if lot.depth - back > 4 else lot.block
    du, dv = rest.size
    if rng.random() < 0.3:  # a bed or vegetable patch
        u, v = rng.uniform(rest.u0, rest.u1), rng.uniform(rest.v0, rest.v1)
        bed = Block(u0=u, u1=min(u + rng.uniform(1, 5), rest.u1), v0=v, v1=min(v + rng.uniform(1, 4), rest.v1))
        if min(bed.size) > 0.4:
            site.cover(bed, palette.soil() if rng.random() < 0.6 else palette.meadow(), LOW_VEGETATION)
    for _ in range(int(rng.integers(0, 3)) if min(du, dv) > 4 else 0):
        u, v = float(rng.uniform(rest.u0 + 1, rest.u1 - 1)), float(rng.uniform(rest.v0 + 1, rest.v1 - 1))
        what = rng.random()
        pose = site.pose(u, v, lot.turn)
        if what < 0.4:
            building(canvas, palette, pose, float(rng.uniform(2.2, 4.5)), float(rng.uniform(1.8, 3)),
                     eave_m=float(rng.uniform(1.8, 2.4)), flat=rng.random() < 0.5)  # fmt: skip
        elif what < 0.58:
            size = rng.uniform(2.5, 9), rng.uniform(2.2, 4.5)
            box(canvas, palette, pose, *size, 0.0,
                colour=palette.water(pool=True), round_=rng.random() < 0.35)  # fmt: skip
        else:
            size = rng.uniform(0.8, 3.5), rng.uniform(0.6, 2.5)
            box(canvas, palette, pose, *size, float(rng.uniform(0.3, 2.2)),
                round_=rng.random() < 0.3)  # fmt: skip
    shrub = palette.crown()
    for a0, d0, turn, length in (
        (0.3, lot.depth / 2, QUARTER, lot.depth * 0.9),
        (lot.width / 2, lot.depth - 0.4, 0.0, lot.width * 0.95),
        (lot.width / 2, 0.5, 0.0, lot.width * 0.6),
    ):
        fence = rng.random()
        pose = site.pose(*lot.at(a0, d0), lot.turn + turn)
        if fence < 0.38:
            hedge(canvas, palette, pose, length * float(rng.uniform(0.5, 1)), shrub)
        elif fence < 0.5:
            box(canvas, palette, pose, length, 0.3, float(rng.uniform(0.5, 2)), colour=palette.wall())
    for u, v in site.scatter(rest, 1.3 * shaggy, 16):
        site.tree(u, v)
    for u, v in site.scatter(lot.block, 1.2 * shaggy, 10):
        site.tree(u, v, float(rng.uniform(0.4, 1.3)), kind="bush")


def rows(site: Site, block: Block) -> None:
    """Terraced houses with narrow gardens behind."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    site.cover(block, palette.lawn(), LOW_VEGETATION)
    depth, setback = float(rng.uniform(8.5, 12)), float(rng.uniform(0, 5))
    eave, flat = float(rng.uniform(1.8, 3.2)) * STOREY_M, rng.random() < palette.flat_share * 0.6
    same_roof, annexes = "flat" if flat else "gable", float(rng.uniform(0, 0.8))
    for lot in lots(rng, block, (5.5, 8.5), 15):
        if site.window(lot.block, 4) is None:
            continue
        if rng.random() < 0.5:
            site.cover(lot.rect(0, lot.width, 0, setback + 0.5), palette.paving(), IMPERVIOUS)
        if rng.random() < 0.06:
            continue
        building(
            canvas, palette, site.pose(*lot.at(lot.width / 2, setback + depth / 2), lot.turn),
            lot.width, depth, eave_m=eave + float(rng.normal(0, 0.3)), flat=flat, packed=True,
            roof=same_roof, in_row=True,
        )  # fmt: skip
        if rng.random() < annexes:
            deep, wide = float(rng.uniform(2, 5)), lot.width * float(rng.uniform(0.4, 1))
            building(
                canvas, palette, site.pose(*lot.at(lot.width / 2, setback + depth + deep / 2), lot.turn),
                wide, deep, eave_m=float(rng.uniform(2.3, 3.4)), flat=True, packed=True,
                roof="flat" if rng.random() < 0.6 else "shed", in_row=True,
            )  # fmt: skip
        _garden(site, lot, setback + depth, 0.7)


def perimeter(site: Site, block: Block) -> None:
    """Houses wall to wall around a courtyard."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    depth = float(rng.uniform(9, 15))
    du, dv = block.size
    if min(du, dv) < 2.6 * depth:
        return old_town(site, block)
    yard = block.inset(depth)
    green = rng.random() < 0.5
    site.cover(block, palette.paving(), IMPERVIOUS)
    site.cover(
        yard.inset(float(rng.uniform(0, 3))),
        palette.lawn() if green else palette.paving(),
        LOW_VEGETATION if green else IMPERVIOUS,
    )
    storeys = float(rng.uniform(2.5, 6))
    for side in ("v0", "v1", "u0", "u1"):
        along = side[0] == "v"
        length = du if along else dv - 2 * depth
        origin = 0.0 if along else depth
        lot = Lot(block=block, front=side)
        a = 0.0
        while a < length - 4:
            step = min(float(rng.uniform(9, 24)), length - a)
            if rng.random() > 0.07:
                building(
                    canvas, palette,
                    site.pose(*lot.at(origin + a + step / 2, depth / 2), lot.turn),
                    step, depth, eave_m=max(storeys + rng.normal(0, 0.5), 1) * STOREY_M,
                    flat=rng.random() < palette.flat_share, packed=True,
                    roof=None if rng.random() < 0.4 else "gable" if rng.random() > palette.flat_share else "flat",
                    in_row=rng.random() < 0.8,
                )  # fmt: skip
            a += step
    for u, v in site.scatter(yard.inset(3), 0.35, 6):
        building(canvas, palette, site.pose(u, v), float(rng.uniform(4, 14)), float(rng.uniform(3, 7)),
                 eave_m=float(rng.uniform(2.4, 6)), flat=rng.random() < 0.6)  # fmt: skip
    for u, v in site.scatter(yard, 0.5, 10):
        site.car(u, v, QUARTER * int(rng.integers(2)))
    for u, v in site.scatter(yard.inset(1), 0.8, 16):
        site.tree(u, v)
    for u, v in site.scatter(yard.inset(1), 0.5, 10):
        box(
            canvas,
            palette,
            site.pose(u, v),
            float(rng.uniform(0.8, 2.5)),
            float(rng.uniform(0.8, 2.5)),
            float(rng.uniform(0.5, 1.8)),
        )


def old_town(site: Site, block: Block) -> None:
    """Roof beside roof, with light wells and small yards between."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    site.cover(block, palette.paving(), IMPERVIOUS)
    low, high = float(rng.uniform(3, 7)), float(rng.uniform(7, 16))
    _, cells = divide(rng, block, block_m=(6, 15), width_m=(0, float(rng.choice((0.0, 0.0, 0.6)))))
    for cell in cells:
        du, dv = cell.size
        turn = 0.0 if du >= dv else QUARTER
        centre = (cell.u0 + cell.u1) / 2, (cell.v0 + cell.v1) / 2
        what = rng.random()
        if what < 0.86:
            building(
                canvas, palette, site.pose(*centre, turn), max(du, dv), min(du, dv),
                eave_m=float(rng.uniform(low, high)), flat=rng.random() < palette.flat_share,
                packed=True,
                roof=None if rng.random() < 0.6 else "shed",
            )  # fmt: skip
        elif what < 0.93 and min(du, dv) > 3:
            site.cover(cell, palette.lawn(), LOW_VEGETATION)
            for u, v in site.scatter(cell.inset(1), 3, 4):
                site.tree(u, v)
        else:
            for u, v in site.scatter(cell, 4, 5):
                box(
                    canvas,
                    palette,
                    site.pose(u, v),
                    float(rng.uniform(0.6, 2.5)),
                    float(rng.uniform(0.6, 2.5)),
                    float(rng.uniform(0.5, 2)),
                )


def slabs(site: Site, block: Block) -> None:
    """Apartment slabs and towers in lawn, with paths, parking and trees."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    site.cover(block, palette.lawn(), LOW_VEGETATION)
    du, dv = block.size
    for k in range(int(rng.integers(1, 4))):  # paths
        at = float(rng.uniform(0.1, 0.9))
        half = float(rng.uniform(0.7, 1.8))
        if k % 2:
            path = Block(u0=block.u0 + at * du - half, u1=block.u0 + at * du + half, v0=block.v0, v1=block.v1)
        else:
            path = Block(u0=block.u0, u1=block.u1, v0=block.v0 + at * dv - half, v1=block.v0 + at * dv + half)
        site.cover(path, palette.paving(), IMPERVIOUS)
    depth = float(rng.uniform(10, 15))
    turn = QUARTER * int(rng.integers(2))
    towers = rng.random() < 0.12
    eave = float(rng.uniform(9, 15) if towers else rng.uniform(3, 8)) * STOREY_M
    flat = rng.random() < 0.75
    for u, v in site.scatter(block.inset(9), 0.4, 12):
        building(
            canvas, palette, site.pose(u, v, turn), float(rng.uniform(14, 45)), depth,
            eave_m=eave + STOREY_M * int(rng.integers(-1, 2)), flat=flat,
            shape=str(rng.choice(("rect", "L", "U"), p=(0.75, 0.15, 0.1))),
        )  # fmt: skip
    if min(du, dv) > 30:
        strip = Block(u0=block.u0, u1=block.u1, v0=block.v0, v1=block.v0 + 11.5)
        if rng.random() < 0.7:
            parking(site, strip)
    for u, v in site.scatter(block, 0.8, 70):
        site.tree(u, v)
    for u, v in site.scatter(block, 0.4, 20):
        site.tree(u, v, float(rng.uniform(0.4, 1.5)), kind="bush")


def industry(site: Site, block: Block) -> None:
    """Halls, yards, containers, lorries, some waste ground."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    site.cover(block, palette.paving() if rng.random() < 0.5 else palette.asphalt(), IMPERVIOUS)
    if rng.random() < 0.6:
        strip = Block(u0=block.u0, u1=block.u1, v0=block.v0, v1=block.v0 + float(rng.uniform(2, 9)))
        site.cover(strip, palette.lawn(), LOW_VEGETATION)
    du, dv = block.size
    for u, v in site.scatter(block.inset(8), 0.3, 8):
        length = float(rng.uniform(0.25, 0.8)) * max(du, dv)
        width = float(rng.uniform(0.25, 0.7)) * min(du, dv)
        roof = str(rng.choice(("flat", "gable", "shed", "vault"), p=(0.6, 0.22, 0.08, 0.1)))
        building(
            canvas, palette, site.pose(u, v, 0.0 if du > dv else QUARTER), max(length, 8), max(width, 7),
            eave_m=float(rng.uniform(4, 13)), flat=roof == "flat", roof=roof,
            shape=str(rng.choice(("rect", "L", "court"), p=(0.75, 0.2, 0.05))),
        )  # fmt: skip
    if rng.random() < 0.7:
        parking(site, Block(u0=block.u0, u1=block.u1, v0=block.v1 - 17.5, v1=block.v1))
    turn = QUARTER * int(rng.integers(2))
    for u, v in site.scatter(block.inset(2), 0.5, 30):
        what = rng.random()
        if what < 0.5:  # containers, often side by side
            for k in range(int(rng.integers(1, 5))):
                pose = site.pose(u + (2.6 * k if turn else 0), v + (0 if turn else 2.6 * k), turn)
                box(canvas, palette, pose, float(rng.choice((6.0, 12.0))), 2.45, float(rng.choice((2.6, 5.2))))
        elif what < 0.7:
            rubble(canvas, palette, *site.frame.xy(u, v), float(rng.uniform(1, 4)))
        else:
            site.car(u, v, turn)
    for u, v in site.scatter(block, 0.1, 12):
        site.tree(u, v)


def building_site(site: Site, block: Block) -> None:
    """Bare ground with heaps, stacks, a crane pad, a shell of a house."""
    rng, palette, canvas = site.rng, site.palette, site.canvas
    site.cover(block, palette.soil(), CLUTTER if rng.random() < 0.4 else LOW_VEGETATION)
    for u, v in site.scatter(block, 0.35, 25):
        rubble(canvas, palette, *site.frame.xy(u, v), float(rng.uniform(1, 5)))
    for u, v in site.scatter(block, 0.7, 40):
        box(canvas, palette, site.pose(u, v, QUARTER * int(rng.integers(2))), float(rng.uniform(1, 7)),
            float(rng.uniform(0.6, 2.6)), float(rng.uniform(0.3, 2.8)))  # fmt: skip
    for u, v in site.scatter(block, 0.2, 5):
        site.car(u, v, 0.0)
    for u, v in site.scatter(block.inset(8), 0.1, 2):
        building(canvas, palette, site.pose(u, v), 14.0, 10.0, eave_m=float(rng.uniform(2.5, 8)), flat=True)
