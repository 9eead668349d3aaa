"""Half-landed TIFFs, against rasterio: what is called whole must read as the pixels that were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioError
from rasterio.transform import from_origin
from rasterio.windows import Window

from engine.contract.tiff import unfinished

PLACE = from_origin(650000, 6860000, 0.2, 0.2)
PIXELS = np.random.default_rng(0).integers(1, 256, (3, 40, 37), np.uint8)
TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16}
LAYOUTS = {
    "strips": {},
    "deflated tiles": {**TILED, "compress": "deflate"},
    "bands apart": {"interleave": "band", "compress": "lzw"},
    "BigTIFF": {**TILED, "BIGTIFF": "YES"},
    "big-endian": {"ENDIANNESS": "BIG"},
    "COG": {"driver": "COG"},
}


def create(path: Path, height: int, width: int, **layout: Any) -> Any:
    profile = {"driver": "GTiff", "crs": "EPSG:2154", "transform": PLACE, "dtype": "uint8", "count": 3, **layout}
    return rasterio.open(path, "w", height=height, width=width, **profile)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_tiff_cut_anywhere_is_unfinished_or_reads_as_written(layout: dict[str, Any], tmp_path: Path) -> None:
    path, cut = tmp_path / "whole.tif", tmp_path / "cut.tif"
    with create(path, 40, 37, **layout) as file:
        file.write(PIXELS)
    assert unfinished(path) is None
    whole = path.read_bytes()
    lengths = sorted({*range(0, 40), *range(0, len(whole), 23), *range(len(whole) - 40, len(whole))})
    called_whole = []
    for length in lengths:
        cut.write_bytes(whole[:length])
        if unfinished(cut) is None:
            called_whole.append(length)
            with rasterio.open(cut) as file:
                assert (file.crs.to_epsg(), file.transform) == (2154, PLACE)
                np.testing.assert_array_equal(file.read(), PIXELS)
    # behind a COG's last block come four bytes that no pixel needs
    assert len(called_whole) == (4 if layout.get("driver") == "COG" else 0)


@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}])
def test_a_tiff_is_unfinished_until_its_writer_closes_it(layout: dict[str, Any], tmp_path: Path) -> None:
    """GDAL's small cache makes it write early: a directory that names blocks still to come."""
    path = tmp_path / "growing.tif"
    told = []
    with rasterio.Env(GDAL_CACHEMAX=100_000), create(path, 320, 256, **layout) as file:
        for row in range(0, 320, 64):
            file.write(np.full((3, 64, 256), 7, np.uint8), window=Window(0, row, 256, 64))
            told.append(unfinished(path))
    assert None not in told
    assert any("is not written yet" in why for why in told), told
    assert unfinished(path) is None


def test_gdal_reads_zeros_without_complaint_where_a_block_is_missing(tmp_path: Path) -> None:
    """Why GDAL cannot be asked: this is what a writer that was killed leaves behind."""
    path = tmp_path / "sparse.tif"
    with create(path, 64, 64, **TILED, SPARSE_OK="TRUE") as file:
        file.write(np.full((3, 16, 64), 7, np.uint8), window=Window(0, 0, 64, 16))
    with rasterio.open(path) as file:
        assert (file.read()[:, 16:] == 0).all()
    assert unfinished(path) == "block 5 of 16 is not written yet"


@pytest.mark.parametrize(
    "content", [b"", b"II*\0", b"this is no raster", b"II*\0" + b"\xff" * 200, b"II*\0" + bytes(200)]
)
def test_what_is_no_tiff_is_unfinished(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    assert unfinished(path)
    with pytest.raises(RasterioError):
        rasterio.open(path)


def test_a_file_that_vanished_is_unfinished(tmp_path: Path) -> None:
    assert unfinished(tmp_path / "gone.tif") == "it cannot be read (No such file or directory)"


@pytest.mark.parametrize("seed", range(20))
def test_damaged_directories_never_raise(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "damaged.tif"
    with create(path, 40, 37, BIGTIFF="YES" if seed % 2 else "NO") as file:
        file.write(PIXELS)
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    rng = np.random.default_rng(seed)
    for _ in range(20):
        damaged = content.copy()
        damaged[rng.integers(4, 300, 8)] = rng.integers(0, 256, 8)
        path.write_bytes(damaged.tobytes())
        assert unfinished(path) != ""
