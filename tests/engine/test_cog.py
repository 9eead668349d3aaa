"""Writing the maps: read back with plain rasterio, killed, cut off and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from engine.contract.bands import rgir_spec
from engine.contract.bundle import ClassSpec
from engine.contract.errors import OutputError, ResumeError
from engine.contract.sensors import Sensor
from engine.rasters.cog import COG_TRAILER_BYTES, MapWriter
from engine.rasters.georeference import Grid, gdal_environment
from engine.rasters.raster import SensorRasters
from engine.rasters.spool_files import check_whole

CLASSES = (
    ClassSpec(name="impervious surface", rgb=(255, 255, 255)),
    ClassSpec(name="building", rgb=(0, 0, 255)),
    ClassSpec(name="low vegetation", rgb=(0, 255, 255)),
)
NAMES = ["classes.tif", "confidence.tif", "provenance.tif"]
STYLES = ["classes.qml", "provenance.qml"]
LAMBERT = CRS.from_epsg(2154)
GRID = Grid(width=1300, height=1100, crs=LAMBERT, transform=Affine(0.2, 0, 770550.1, 0, -0.2, 6277600.3))


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with gdal_environment():
        yield


def maps(grid: Grid) -> NDArray[np.uint8]:
    """Classes in patches, noisy confidence, provenance in halves: [3, height, width]."""
    rng = np.random.default_rng(2)
    patches = rng.integers(0, 3, (grid.height // 20 + 1, grid.width // 20 + 1), np.uint8)
    classes = patches.repeat(20, axis=0).repeat(20, axis=1)[: grid.height, : grid.width]
    classes[:30, :40] = 255
    confidence = rng.integers(90, 256, classes.shape, np.uint8)
    provenance = np.where(np.arange(grid.width) < grid.width // 2, 1, 2) * np.ones((grid.height, 1), int)
    return np.stack([classes, confidence, provenance]).astype(np.uint8)


def windows(grid: Grid, size: int = 384) -> list[tuple[int, int]]:
    return [(row, col) for row in range(0, grid.height, size) for col in range(0, grid.width, size)]


def write(writer: MapWriter, layers: NDArray[np.uint8], row: int, col: int, size: int = 384) -> None:
    writer.write(row, col, *layers[:, row : row + size, col : col + size])


def publish(folder: Path, grid: Grid = GRID, **options: Any) -> list[Path]:
    layers = maps(grid)
    with MapWriter.create(folder / "partial", grid, CLASSES, resume=False) as writer:
        for row, col in windows(grid):
            write(writer, layers, row, col)
        return writer.publish(folder, **options)


# ------------------------------------------------------------------------------------------------ what is written


def test_the_maps_hold_what_was_written_with_palette_names_and_nodata(tmp_path: Path) -> None:
    shares: list[float] = []
    paths = publish(tmp_path, progress=shares.append)
    assert paths == [tmp_path / name for name in NAMES]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    for path, layer, nodata in zip(paths, maps(GRID), (255, 0, 0), strict=True):
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(1), layer)
            assert (file.count, file.dtypes, file.nodata) == (1, ("uint8",), nodata)
    with rasterio.open(paths[0]) as file:
        assert [file.colormap(1)[index][:3] for index in range(3)] == [each.rgb for each in CLASSES]
        tags = file.tags()
        assert [tags[f"CLASS_{index}"] for index in range(3)] == [each.name for each in CLASSES]
    with rasterio.open(paths[2]) as file:
        assert len({file.colormap(1)[value] for value in range(4)}) == 4
        assert file.tags()["PROVENANCE_2"] == "RGIR only"
    # no side-car files of GDAL, nothing half-done
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*NAMES, *STYLES, "partial"])


def test_styles_for_qgis_name_and_colour_every_class_as_the_maps_do(tmp_path: Path) -> None:
    awkward = (*CLASSES[:2], ClassSpec(name='<"trees" & lawn> d\'été', rgb=(1, 2, 3)))
    with MapWriter.create(tmp_path / "partial", GRID, awkward, resume=False) as writer:
        for row, col in windows(GRID):
            write(writer, maps(GRID), row, col)
        paths = writer.publish(tmp_path)
    legends = [legend(tmp_path / name) for name in STYLES]
    assert [label for label, _ in legends[0].values()] == [spec.name for spec in awkward]
    assert [label for label, _ in legends[1].values()] == ["RGIR and nDSM", "RGIR only", "nDSM only"]
    for path, shown in zip((paths[0], paths[2]), legends, strict=True):
        with rasterio.open(path) as file:
            palette, written = file.colormap(1), set(np.unique(file.read(1))) - {int(file.nodata)}
        assert {value: colour for value, (_, colour) in shown.items()} == {value: palette[value] for value in shown}
        assert written <= set(shown)  # nodata is no entry: QGIS leaves it transparent


def legend(style: Path) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Label and RGBA of each value, as QGIS reads them."""
    root = ElementTree.fromstring(style.read_bytes())
    renderer = root.find("pipe/rasterrenderer")
    assert root.tag == "qgis"
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    return {
        int(each.attrib["value"]): (
            each.attrib["label"],
            (*bytes.fromhex(each.attrib["color"].removeprefix("#")), int(each.attrib["alpha"])),
        )
        for each in renderer.findall("colorPalette/paletteEntry")
    }


ROTATED = Affine.translation(770550, 6277600) @ Affine.rotation(17) @ Affine.scale(0.2, -0.2)
SOUTH_UP = Affine(0.2, 0, 770550, 0, 0.2, 6277600)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (LAMBERT, GRID.transform),
        (LAMBERT, ROTATED),
        (LAMBERT, SOUTH_UP),
        (None, GRID.transform),
        (None, None),
        (CRS.from_epsg(4326), Affine(1e-6, 0, 2.35, 0, -1e-6, 48.85)),
        (CRS.from_proj4("+proj=laea +lat_0=52 +lon_0=10.123 +ellps=GRS80 +units=m"), GRID.transform),
    ],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_maps_lie_exactly_on_the_grid(tmp_path: Path, crs: CRS | None, transform: Affine | None) -> None:
    grid = Grid(width=250, height=247, crs=crs, transform=transform)
    for path in publish(tmp_path, grid):
        with rasterio.open(path) as file:
            assert Grid.of(file) == grid
            assert file.transform == (transform or Affine.identity())


def test_an_image_without_georeferencing_raises_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    grid = Grid(width=250, height=247, crs=None, transform=None)
    publish(tmp_path, grid)
    with MapWriter.create(tmp_path / "partial", grid, CLASSES, resume=True) as writer:
        writer.flush()
    assert [str(warning.message) for warning in recwarn] == []


def test_the_maps_keep_ground_control_points(tmp_path: Path) -> None:
    points = tuple(GroundControlPoint(row, col, 5 + col, 9 - row, 0) for row in (0, 600) for col in (0, 700))
    grid = Grid(width=700, height=600, crs=None, transform=None, gcps=points, gcps_crs=LAMBERT)
    for path in publish(tmp_path, grid):
        with rasterio.open(path) as file:
            found, crs = file.gcps
            assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]
            assert crs == LAMBERT


def test_the_maps_are_cloud_optimised(tmp_path: Path) -> None:
    """As the COG driver's page defines it: https://gdal.org/drivers/raster/cog.html, "File format details"."""
    for path, layer in zip(publish(tmp_path), maps(GRID), strict=True):
        assert b"LAYOUT=IFDS_BEFORE_DATA" in path.read_bytes()[:300]
        with rasterio.open(path) as file:
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert file.block_shapes == [(512, 512)]
            assert file.overviews(1) == [2, 4]

            def place(item: str, overview: int | None, file: Any = file) -> int:
                return int(file.get_tag_item(item, "TIFF", bidx=1, ovr=overview))

            directories = [place("IFD_OFFSET", level) for level in (None, 0, 1)]
            pixels = [place("BLOCK_OFFSET_0_0", level) for level in (1, 0, None)]
        assert max(directories) < min(pixels)
        assert directories == sorted(directories)
        assert pixels == sorted(pixels)
        for level, factor in enumerate((2, 4)):
            with rasterio.open(path, OVERVIEW_LEVEL=level) as overview:
                np.testing.assert_array_equal(overview.read(1), layer[::factor, ::factor])


@pytest.mark.parametrize(("width", "height"), [(1, 1), (511, 3), (512, 512), (513, 1), (65793, 20)])
def test_any_size_can_be_written(tmp_path: Path, width: int, height: int) -> None:
    grid = Grid(width=width, height=height, crs=LAMBERT, transform=GRID.transform)
    for path, layer in zip(publish(tmp_path, grid), maps(grid), strict=True):
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(1), layer)


@pytest.mark.parametrize(("width", "height"), [(1301, 1101), (2051, 513)])
def test_each_overview_is_what_gdal_makes_of_the_level_below(tmp_path: Path, width: int, height: int) -> None:
    grid = Grid(width=width, height=height, crs=LAMBERT, transform=GRID.transform)
    for path, layer in zip(publish(tmp_path, grid), maps(grid), strict=True):
        below, level = layer, 0
        while max(below.shape) > 512:
            plain = tmp_path / f"{path.stem}_{level}.tif"
            shape = {"height": below.shape[0], "width": below.shape[1], "count": 1, "dtype": "uint8"}
            with rasterio.open(plain, "w", driver="GTiff", crs=LAMBERT, transform=GRID.transform, **shape) as file:
                file.write(below, 1)
            with rasterio.open(plain, "r+") as file:
                file.build_overviews([2])
            with rasterio.open(path, overview_level=level) as mine, rasterio.open(plain, overview_level=0) as gdals:
                np.testing.assert_array_equal(mine.read(1), gdals.read(1))
                below, level = mine.read(1), level + 1
        assert level >= 2


def test_maps_larger_than_what_is_held_in_memory_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [path.read_bytes() for path in publish(tmp_path / "a")]
    monkeypatch.setattr("engine.rasters.spools.HELD_BYTES", 1)
    layers = maps(GRID)
    with MapWriter.create(tmp_path / "b" / "partial", GRID, CLASSES, resume=False) as writer:
        for row, col in sorted(windows(GRID, 100), key=lambda place: place[0] * 7 % 11):
            write(writer, layers, row, col, 100)
        assert [path.read_bytes() for path in writer.publish(tmp_path / "b")] == expected


def test_the_bytes_depend_on_neither_order_nor_flushes(tmp_path: Path) -> None:
    expected = [path.read_bytes() for path in publish(tmp_path / "a")]
    layers = maps(GRID)
    writer = MapWriter.create(tmp_path / "b" / "partial", GRID, CLASSES, resume=False)
    for row, col in reversed(windows(GRID)):
        write(writer, 255 - layers, row, col)
        write(writer, layers, row, col)
        writer.flush()
    assert [path.read_bytes() for path in writer.publish(tmp_path / "b")] == expected


def test_reading_and_writing_in_two_threads_share_one_small_cache(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, GRID.height, GRID.width), np.uint8)
    with rasterio.open(
        tmp_path / "rgir.tif", "w", driver="GTiff", dtype="uint8", count=3, width=GRID.width, height=GRID.height,
        crs=GRID.crs, transform=GRID.transform, tiled=True, blockxsize=128, blockysize=128, compress="deflate",
    ) as file:  # fmt: skip
        file.write(values)
    with (
        gdal_environment(2 << 20),
        SensorRasters.open({Sensor.RGIR: tmp_path / "rgir.tif"}, {Sensor.RGIR: rgir_spec()}, window_px=64) as rasters,
        MapWriter.create(tmp_path / "partial", GRID, CLASSES, resume=False) as writer,
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(1) as writing,
    ):
        rasterio.env.setenv(GDAL_CACHEMAX=2 << 20)
        jobs = []
        for row, col in windows(GRID, 96):
            size = min(96, GRID.height - row), min(96, GRID.width - col)
            seen = reading.submit(lambda row=row, col=col, size=size: rasters.read(row, col, *size)[Sensor.RGIR].values)
            jobs.append(writing.submit(lambda seen=seen, row=row, col=col: writer.write(row, col, *seen.result())))
        for job in jobs:
            job.result()
        paths = writer.publish(tmp_path)
    for path, layer in zip(paths, values, strict=True):
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(1), layer)


def test_a_window_outside_the_grid_or_of_another_kind_is_a_bug(tmp_path: Path) -> None:
    layer = np.zeros((10, 10), np.uint8)
    with MapWriter.create(tmp_path, GRID, CLASSES, resume=False) as writer:
        with pytest.raises(ValueError, match="row 1091"):
            writer.write(1091, 0, layer, layer, layer)
        with pytest.raises(ValueError, match=r"\(10, 9\)"):
            writer.write(0, 0, layer, layer, layer[:, :9])
        with pytest.raises(ValueError, match="int64"):
            writer.write(0, 0, layer, layer, layer.astype(int))


# ------------------------------------------------------------------------------------------------ resuming


def in_a_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` after this module's names, with ``folder`` as a Path; this process survives what it does."""
    program = f"from tests.engine.test_cog import *\nimport resource\nfolder = Path({str(folder)!r})\n{code}"
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    expected = [path.read_bytes() for path in publish(tmp_path / "whole")]
    killed = in_a_process(
        """
with gdal_environment():
    writer = MapWriter.create(folder / "partial", GRID, CLASSES, resume=False)
    layers = maps(GRID)
    for row, col in windows(GRID)[:5]:
        write(writer, layers, row, col)
    writer.flush()
    for row, col in windows(GRID)[5:7]:
        write(writer, 255 - layers, row, col)
    os.kill(os.getpid(), signal.SIGKILL)
""",
        tmp_path,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    layers = maps(GRID)
    for spool, layer in zip(sorted((tmp_path / "partial").glob("*.tif")), layers, strict=True):
        with rasterio.open(spool) as file:
            np.testing.assert_array_equal(file.read(1)[:384], layer[:384])
    with MapWriter.create(tmp_path / "partial", GRID, CLASSES, resume=True) as writer:
        for row, col in windows(GRID)[5:]:
            write(writer, layers, row, col)
        assert [path.read_bytes() for path in writer.publish(tmp_path)] == expected
    # killed between publishing and cleaning up: publishing again changes nothing
    with MapWriter.create(tmp_path / "partial", GRID, CLASSES, resume=True) as writer:
        assert [path.read_bytes() for path in writer.publish(tmp_path)] == expected


def test_resuming_needs_whole_spools_of_the_same_size(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="missing"):
        MapWriter.create(tmp_path, GRID, CLASSES, resume=True)
    MapWriter.create(tmp_path, GRID, CLASSES, resume=False).close()
    other = Grid(width=1300, height=1101, crs=LAMBERT, transform=GRID.transform)
    with pytest.raises(ResumeError, match="1300 x 1101 px, found 1300 x 1100"):
        MapWriter.create(tmp_path, other, CLASSES, resume=True)
    spool = next(tmp_path.glob("provenance*.tif"))
    os.truncate(spool, spool.stat().st_size // 2)
    with pytest.raises(ResumeError, match="damaged"):
        MapWriter.create(tmp_path, GRID, CLASSES, resume=True)


# ------------------------------------------------------------------------------------------------ full disks


def test_a_disk_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    side = 4_000_000
    grid = Grid(width=side, height=side, crs=LAMBERT, transform=GRID.transform)
    with pytest.raises(OutputError, match=r"4000000 x 4000000 px need 92,8\d\d,\d\d\d MB .* has [\d,]+ MB free"):
        MapWriter.create(tmp_path / "partial", grid, CLASSES, resume=False)
    assert not any((tmp_path / "partial").iterdir())


def test_space_for_every_pixel_is_reserved_when_the_spools_are_created(tmp_path: Path) -> None:
    MapWriter.create(tmp_path, GRID, CLASSES, resume=False).close()
    for spool in tmp_path.glob("*.tif"):
        assert spool.stat().st_size >= 3 * 3 * 512 * 512
        assert spool.stat().st_blocks * 512 >= spool.stat().st_size


def test_a_disk_that_fills_while_the_spools_are_created_is_an_output_error(tmp_path: Path) -> None:
    done = in_a_process(
        """
with gdal_environment():
    for limit in (0, 1000, 1_000_000, 3 * 3 * 512 * 512, 3_600_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        with pytest.raises(OutputError, match="free space"):
            MapWriter.create(folder / "partial", GRID, CLASSES, resume=False)
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_writes_that_gdal_delays_and_fails_silently_are_an_output_error(tmp_path: Path) -> None:
    done = in_a_process(
        """
layers = maps(GRID)
with gdal_environment():
    writer = MapWriter.create(folder / "partial", GRID, CLASSES, resume=False)
    write(writer, layers, 384, 384)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))
    with pytest.raises(OutputError, match="spool.tif cannot be written"):
        writer.flush()
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_a_disk_that_fills_while_publishing_leaves_the_old_maps_and_can_be_tried_again(tmp_path: Path) -> None:
    expected = [path.read_bytes() for path in publish(tmp_path)]
    for name in NAMES:
        (tmp_path / name).write_text("an older map")
    sizes = [len(content) for content in expected]
    limits = [0, 5000, sizes[0] // 2, sizes[1] // 2, sizes[1] - 5000, sizes[1] - 1]
    done = in_a_process(
        f"""
with gdal_environment():
    for limit in {limits}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        writer = MapWriter.create(folder / "partial", GRID, CLASSES, resume=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        with pytest.raises(OutputError, match="free space"):
            writer.publish(folder)
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert {(tmp_path / name).read_text() for name in NAMES} == {"an older map"}
    assert not list(tmp_path.glob(".*"))
    with MapWriter.create(tmp_path / "partial", GRID, CLASSES, resume=True) as writer:
        assert [path.read_bytes() for path in writer.publish(tmp_path)] == expected


@pytest.mark.parametrize("missing", [1, 4, 5, 100, 100_000])
def test_a_map_that_lacks_its_last_bytes_is_found_out(tmp_path: Path, missing: int) -> None:
    """GDAL opens such a file and reports nothing when the disk fills at its very end."""
    path = publish(tmp_path)[1]
    check_whole(path, [2, 4], COG_TRAILER_BYTES)
    os.truncate(path, path.stat().st_size - missing)
    with pytest.raises(OSError, match="ends at"):
        check_whole(path, [2, 4], COG_TRAILER_BYTES)


def test_an_output_that_is_no_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="another `output`"):
        MapWriter.create(tmp_path / "file" / "partial", GRID, CLASSES, resume=False)
    writer = MapWriter.create(tmp_path / "partial", GRID, CLASSES, resume=False)
    with pytest.raises(OutputError, match="file"):
        writer.publish(tmp_path / "file")
