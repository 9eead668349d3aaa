"""Foreign formats: one function reads each, whatever is in the file; and no parser is called anywhere else."""

from __future__ import annotations

import ast
import io
import os
import socket
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import from_origin

from engine.contract.errors import RasterOpenError
from engine.contract.formats import (
    MalformedError,
    from_builtins,
    from_csv,
    from_json,
    from_npz,
    from_toml,
    open_regular,
    read_file,
)
from engine.rasters.area import place as place_area
from engine.rasters.georeference import Grid
from engine.rasters.opening import open_raster
from engine.stac.assets import rasters_of
from engine.stac.listing import items_in

ROOT = Path(__file__).parent.parent
FORMATS = "engine/contract/formats.py"
HOMES: dict[str, set[str]] = {
    "json.load": set(),
    "json.loads": {"engine/polygons/vector_file.py"},  # what pyproj wrote, from memory
    "msgspec.json.decode": {FORMATS},
    "msgspec.convert": {FORMATS},
    "tomllib.load": set(),
    "tomllib.loads": {FORMATS},
    "csv.reader": {FORMATS},
    "csv.DictReader": set(),
    "np.load": {"train/data/scenes.py", "calib/scenes.py"},  # prepared scenes, mapped into memory
    "zipfile.ZipFile": {FORMATS, "export/golden.py"},  # the second writes
    "pickle.load": set(),
    "pickle.loads": set(),
    "eval": set(),
    "exec": set(),
    "ast.literal_eval": set(),
    "torch.load": {"train/checkpoint.py"},
    "safetensors.safe_open": {"train/checkpoint.py"},
    "safetensors.torch.load_file": set(),
    "Image.open": {"train/data/synthetic/optics.py", "engine/health/degraded.py"},  # their own JPEG, from memory
    "rasterio.open": {
        "engine/rasters/opening.py",
        "engine/rasters/map_reader.py",
        "engine/rasters/footprint.py",
        "engine/rasters/spool_files.py",
        "engine/rasters/spools.py",
        "train/data/rasters.py",
        "calib/scenes.py",
        "export/golden.py",
        "train/data/synthetic/__main__.py",  # the last two write
        "train/data/demo_scene.py",
    },
    "core.read_model": {"engine/backends/openvino.py", "calib/runtimes.py"},
    "ort.InferenceSession": {"engine/backends/onnxruntime.py", "calib/runtimes.py"},
}
"""Where each parser may be called: there, every way in which it fails becomes one error."""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_no_parser_is_called_outside_its_home() -> None:
    seen = set()
    for room in ("engine", "export", "calib", "train"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(path.read_text())):
                called = dotted(node.func) if isinstance(node, ast.Call) else ""
                if called in HOMES:
                    assert name in HOMES[called], f"{name}, line {node.lineno} calls {called}"
                    seen.add((called, name))
    assert seen >= {("msgspec.json.decode", FORMATS), ("tomllib.loads", FORMATS), ("csv.reader", FORMATS)}


NOT_UTF8 = [b"\xff\xfe", '{"a": 1}'.encode("utf-16"), b'{"a": "\xc3\x28"}']
DEEP = [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000]


@pytest.mark.parametrize("content", [*NOT_UTF8, *DEEP, b"", b"\0", b"{", b"nan", b'{"a": 1e400}x', b"1 2"])
def test_what_is_no_json_is_one_error(content: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        from_json(content, object)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [*NOT_UTF8, b"a = " + b"[" * 10_000, b"a =", b"a = 1\na = 2", b"a = 2021-99-99"])
def test_what_is_no_toml_is_one_error(content: bytes) -> None:
    with pytest.raises(MalformedError):
        from_toml(content, dict[str, object])


def test_values_of_another_type_are_one_error() -> None:
    for content in (b"[1]", b'{"a": "b"}', b'{"a": 1e400}', b'{"a": 1.5}'):
        with pytest.raises(MalformedError):
            from_json(content, dict[str, int])
    assert from_json(b'{"a": 1}', dict[str, int]) == {"a": 1}
    assert from_toml(b"a = 1", dict[str, int]) == {"a": 1}
    with pytest.raises(MalformedError):
        from_builtins({"a": "b"}, dict[str, int])


@pytest.mark.parametrize(
    "content",
    [b"", b"a\n1\n", b"a,b\n1\n", b"a,b\n1,2,3\n", b"a,b\n\xff,2\n", b"b,a\n1,2\n", b'a,b\n"' + b"x" * 200_000],
)
def test_what_is_no_such_table_is_one_error(content: bytes) -> None:
    with pytest.raises(MalformedError):
        list(from_csv(io.BytesIO(content), ["a", "b"]))


def test_a_table_reads_row_by_row() -> None:
    content = b'a,b\n1,\n"two\nlines","x,y"\n'
    assert list(from_csv(io.BytesIO(content), ["a", "b"])) == [{"a": "1", "b": ""}, {"a": "two\nlines", "b": "x,y"}]


def test_an_archive_gives_what_numpy_wrote_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    arrays = {"a": rng.random((3, 4)).astype(np.float32), "b/c": rng.integers(0, 9, (2, 2), np.uint8)}
    whole = io.BytesIO()
    np.savez_compressed(whole, **arrays)
    expected = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    found = from_npz(io.BytesIO(whole.getvalue()), expected)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    content = whole.getvalue()
    refused = 0
    for place in range(0, len(content), 3):  # whatever byte is altered: the arrays as they were, or the error
        altered = bytearray(content)
        altered[place] ^= 0xFF
        try:
            found = from_npz(io.BytesIO(bytes(altered)), expected)
        except MalformedError:
            refused += 1
        else:
            assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert refused > 50


def test_only_regular_files_of_a_bearable_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", 5) == b"12345"
    for path in (tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(MalformedError, match="not a regular file"):
            read_file(path)
    with pytest.raises(MalformedError, match="longer than 4 bytes"):
        read_file(tmp_path / "a", 4)
    with pytest.raises(MalformedError, match="name"):
        open_regular(tmp_path / "a\0b")
    with pytest.raises(OSError, match=r"File name too long|No such file"):
        read_file(tmp_path / ("x" * 300))


def test_nothing_that_is_named_is_waited_for(tmp_path) -> None:
    """A pipe, a socket or a device as a raster, an area or an item."""
    pipe, link, listening = tmp_path / "pipe.json", tmp_path / "link.json", tmp_path / "socket.json"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    grid = Grid(width=4, height=4, crs=None, transform=from_origin(0, 0, 1, 1))
    with closing(socket.socket(socket.AF_UNIX)) as bound:
        bound.bind(str(listening))
        for name in (pipe, link, listening, Path("/dev/zero")):
            for read in (partial(open_raster, "rgir"), rasters_of, items_in, partial(place_area, grid=grid)):
                with pytest.raises(RasterOpenError, match="received a pipe, a socket or a device"):
                    list(read(str(name)))  # type: ignore[operator]
