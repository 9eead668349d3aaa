"""What holds of every grid, every stitched map and every text, whatever Hypothesis draws."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.backends.base import Output, Outputs
from engine.contract.bundle import NODATA_CLASS
from engine.contract.errors import UsageError
from engine.contract.health import default_limits, parse_limits
from engine.contract.sensors import Provenance, Scenario, Sensor, parse_sensors
from engine.grid import Axis, Tile, TileGrid, Window, mirrored
from engine.health.faults import Injection, Kind, kinds_of, parse_faults
from engine.live.frame_name import Pattern
from engine.map_block import MapBlock
from engine.stitcher import CropStitcher, HannStitcher, Stitcher
from engine.telemetry.endpoint import Address, parse_address

CLASSES = 3


@st.composite
def tilings(draw: st.DrawFn, most_halos: int = 2) -> tuple[int, int]:
    """Tile and halo in pixels; a tile is more than ``most_halos`` halos wide, or just as wide where that is allowed."""
    halo_px = draw(st.integers(0, 9))
    least = most_halos * halo_px + (most_halos == 2)
    return draw(st.integers(max(1, least), max(1, least) + 30)), halo_px


axes = st.builds(
    lambda length, tiling: Axis(length=length, tile_px=tiling[0], halo_px=tiling[1]), st.integers(1, 400), tilings()
)


@given(axes)
def test_tiles_own_every_pixel_once_and_keep_their_halo(axis: Axis) -> None:
    owners = np.zeros(axis.length, int)
    for index in range(axis.count):
        first, end, start = axis.boundary(index), axis.boundary(index + 1), axis.start(index)
        owners[first:end] += 1
        assert start <= first < end <= start + axis.tile_px
        if axis.length >= axis.tile_px:
            assert 0 <= start <= axis.length - axis.tile_px, "padding was used although real pixels were there"
            assert index == 0 or first - start >= axis.halo_px
            assert index == axis.count - 1 or start + axis.tile_px - end >= axis.halo_px
    assert (owners == 1).all()


@given(st.integers(1, 400), tilings(most_halos=4))
def test_blend_weights_sum_to_one_within_what_each_tile_reads(length: int, tiling: tuple[int, int]) -> None:
    axis = Axis(length=length, tile_px=tiling[0], halo_px=tiling[1])
    total = np.zeros(length)
    for index in range(axis.count):
        first, end = axis.reach(index)
        assert axis.start(index) <= first < end <= axis.start(index) + axis.tile_px
        total[first:end] += axis.weights(index)
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(st.integers(1, 60), st.integers(1, 60), st.none() | st.integers(1, 5), st.data())
def test_targets_cover_the_raster_within_what_is_read(
    height: int, width: int, strip_tiles: int | None, data: st.DataObject
) -> None:
    tiling = data.draw(tilings(most_halos=2 if strip_tiles is None else 4))  # as the two stitchers ask for
    grid = TileGrid(height=height, width=width, tile_px=tiling[0], halo_px=tiling[1], strip_tiles=strip_tiles)
    cover = np.zeros((height, width), int)
    tiles = list(grid.tiles())
    assert [tile.index for tile in tiles] == list(range(len(grid)))
    for tile in tiles:
        rows, cols = tile.target.within(tile.reads)
        assert 0 <= rows.start < rows.stop <= grid.tile_px
        # beside a strip a tile may have nothing to give, where there is no halo to cross-fade
        assert 0 <= cols.start < cols.stop + (strip_tiles is not None) <= grid.tile_px + 1
        cover[tile.target.row :, tile.target.col :][: tile.target.height, : tile.target.width] += 1
    assert (cover >= 1).all()
    assert strip_tiles is not None or (cover == 1).all()
    start = data.draw(st.integers(0, len(grid)))
    assert list(grid.tiles(start)) == tiles[start:]


@given(st.integers(-200, 200), st.integers(0, 90), st.integers(1, 30))
def test_a_mirrored_axis_is_numpys_symmetric_padding(start: int, size: int, length: int) -> None:
    before, after = max(0, -start), max(0, start + size - length)
    padded = np.pad(np.arange(length), (before, after), mode="symmetric")
    np.testing.assert_array_equal(mirrored(start, size, length), padded[start + before :][:size])


@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_window_within_another_names_the_same_pixels(
    row: int, col: int, height: int, width: int, data: st.DataObject
) -> None:
    inner = Window(row=row, col=col, height=height, width=width)
    up, left = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))
    outer = Window(row=row - up, col=col - left, height=height + up + 3, width=width + left + 3)
    rows, cols = np.mgrid[outer.row : outer.row + outer.height, outer.col : outer.col + outer.width]
    inside = inner.within(outer)
    assert inner.pixels == rows[inside].size
    assert rows[inside].min() == row
    assert rows[inside].max() == row + height - 1
    assert cols[inside].min() == col
    assert cols[inside].max() == col + width - 1


# --- the stitcher: tiles of networks that see one pixel at a time give back the map of the whole raster


@dataclass(frozen=True, kw_only=True)
class World:
    """A raster as every scenario's network maps it, and which scenario each pixel has."""

    probabilities: dict[Scenario, NDArray[np.float32]]
    provenance: NDArray[np.uint8]

    def seen_by(self, tile: Tile) -> tuple[NDArray[np.uint8], dict[Scenario, Outputs]]:
        """What the pipeline hands to the stitcher for that tile."""
        height, width = self.provenance.shape
        at = np.ix_(
            mirrored(tile.reads.row, tile.reads.height, height), mirrored(tile.reads.col, tile.reads.width, width)
        )
        provenance = self.provenance[at]
        present = set(np.unique(provenance[tile.target.within(tile.reads)]))
        outputs: dict[Scenario, Outputs] = {}
        for scenario, image in self.probabilities.items():
            if scenario.provenance in present:
                crop = image[:, at[0], at[1]]
                outputs[scenario] = {
                    Output.PROBABILITIES: crop,
                    Output.CLASSES: crop.argmax(axis=0).astype(np.uint8),
                    Output.CONFIDENCE: np.rint(crop.max(axis=0) * 255).astype(np.uint8),
                }
        return provenance, outputs

    def expected(self) -> dict[str, NDArray[np.uint8]]:
        """The map, pixel by pixel."""
        shape = self.provenance.shape
        classes, confidence = np.full(shape, NODATA_CLASS, np.uint8), np.zeros(shape, np.uint8)
        for scenario, image in self.probabilities.items():
            mine = self.provenance == scenario.provenance
            classes[mine] = image.argmax(axis=0)[mine]
            confidence[mine] = np.rint(image.max(axis=0) * 255)[mine]
        return {"classes": classes, "confidence": confidence, "provenance": self.provenance}


@st.composite
def worlds(draw: st.DrawFn) -> World:
    height, width = draw(st.integers(1, 50)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images = {}
    for scenario in Scenario:
        winner = rng.integers(0, CLASSES, (height, width))
        ahead = rng.uniform(0.45, 0.9, (height, width))  # by more than rounding of sums can take back
        images[scenario] = np.where(np.arange(CLASSES)[:, None, None] == winner, ahead, (1 - ahead) / (CLASSES - 1))
    cases = draw(st.lists(st.sampled_from(Provenance), min_size=1, max_size=4))
    blocks = rng.choice(np.array([case.value for case in cases], np.uint8), (height // 5 + 1, width // 7 + 1))
    provenance = np.kron(blocks, np.ones((5, 7), np.uint8))[:height, :width]
    return World(probabilities={s: image.astype(np.float32) for s, image in images.items()}, provenance=provenance)


def stitcher_of(kind: str, world: World, tiling: tuple[int, int]) -> Stitcher:
    height, width = world.provenance.shape
    size = {"height": height, "width": width, "tile_px": tiling[0], "halo_px": tiling[1]}
    return HannStitcher(**size, classes=CLASSES) if kind == "hann" else CropStitcher(**size)


def stitch(stitcher: Stitcher, world: World, start: int = 0) -> list[tuple[int, int, MapBlock]]:
    """Each block with its tile, and with the number of tiles that the journal may call done before that tile."""
    blocks = []
    for tile in stitcher.grid.tiles(start):
        done = stitcher.tiles_done
        blocks += [(tile.index, done, block) for block in stitcher.add(tile, *world.seen_by(tile))]
    return blocks


@pytest.mark.parametrize("kind", ["crop", "hann"])
@given(world=worlds(), tiling=tilings(most_halos=4), data=st.data())
def test_stitched_tiles_are_the_map_of_the_whole_raster_also_after_a_stop(
    kind: str, world: World, tiling: tuple[int, int], data: st.DataObject
) -> None:
    blocks = stitch(stitcher_of(kind, world, tiling), world)
    for name, expected in world.expected().items():
        found, written = np.full(expected.shape, 77, np.uint8), np.zeros(expected.shape, int)
        for _, _, block in blocks:
            at = block.window.within(Window(row=0, col=0, height=expected.shape[0], width=expected.shape[1]))
            found[at] = getattr(block, name)
            written[at] += 1
        assert (written == 1).all()
        off_by = 1 if (kind, name) == ("hann", "confidence") else 0  # sums of weighted probabilities are rounded
        np.testing.assert_allclose(found.astype(int), expected, rtol=0, atol=off_by)

    done = data.draw(st.sampled_from(sorted({done for _, done, _ in blocks})))
    resumed = stitcher_of(kind, world, tiling)
    rest = stitch(resumed, world, resumed.resume_at(done))
    again, before = ([block for index, _, block in found if index >= done] for found in (rest, blocks))
    assert len(again) == len(rest), "a block that the journal called done was handed out again"
    assert [block.window for block in again] == [block.window for block in before]
    for one, other in zip(again, before, strict=True):
        for name in ("classes", "confidence", "provenance"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# --- texts that people type: understood, or refused as a wrong option; never anything else


def like(*parts: str) -> st.SearchStrategy[str]:
    """Any text, and texts of pieces of the grammar, which come much closer to it."""
    pieces = st.sampled_from(parts) | st.integers(-1, 10**20).map(str) | st.text(max_size=3)
    return st.text(max_size=20) | st.lists(pieces, max_size=8).map("".join)


PARSERS: list[tuple[Callable[[str], object], st.SearchStrategy[str]]] = [
    (parse_sensors, like("rgir", "ndsm", ",", " ")),
    (parse_faults, like(*Sensor, *Kind, ":", "@", "-", ",", "9" * 5000)),
    (parse_address, like(":", "[", "]", "::1", "localhost", "0.0.0.0")),
    (lambda text: parse_limits([text], default_limits()), like(*Sensor, ".", "=", "off", "noise", "soft", "nan", "²")),
    (lambda text: Pattern(text=text), like("{sensor}", "{stamp}", "{", "}", "_", ".tif", "/")),
]


@pytest.mark.parametrize("index", range(len(PARSERS)), ids=["sensors", "faults", "address", "limits", "pattern"])
@given(data=st.data())
def test_a_text_is_understood_or_refused_as_an_option(index: int, data: st.DataObject) -> None:
    parse, texts = PARSERS[index]
    with contextlib.suppress(UsageError):
        parse(data.draw(texts))


injections = st.sampled_from(Sensor).flatmap(
    lambda sensor: st.builds(
        lambda kind, first, more: Injection(
            sensor=sensor, kind=kind, first=first, last=None if more is None else first + more
        ),
        st.sampled_from(kinds_of(sensor)),
        st.integers(1, 10**6),
        st.none() | st.integers(0, 100),
    )
)


@given(st.lists(injections, min_size=1, max_size=5))
def test_faults_are_read_as_they_are_written(faults: list[Injection]) -> None:
    assert parse_faults(",".join(map(str, faults))) == tuple(faults)


@given(st.builds(Address, host=st.sampled_from(["127.0.0.1", "::1", "0.0.0.0", "box"]), port=st.integers(0, 65535)))
def test_an_address_is_read_as_it_is_written(address: Address) -> None:
    assert parse_address(str(address)) == address


@given(st.sets(st.sampled_from(Sensor), min_size=1))
def test_sensors_are_read_in_any_order_and_case(sensors: set[Sensor]) -> None:
    for names in (sorted(sensors), sorted(sensors, reverse=True)):
        assert parse_sensors(" , ".join(names).upper()) == sensors
