"""A resumed run trusts nothing of what lies in the unfinished folder: it ends as if never stopped, or refuses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.contract.bundle import Bundle
from engine.contract.errors import InterruptedRunError, OutputError, ResumeError
from engine.contract.sensors import Sensor
from engine.journal import FOLDER, Entry, Journal, Statistics
from engine.rasters.georeference import gdal_environment
from engine.rasters.map_reader import MAPS
from engine.request import RunRequest
from engine.runner import run
from tests.conftest import Scene, make_scene
from tests.engine.runs import Watcher, request_for

PRODUCTS = (*(f"{name}.tif" for name in MAPS), "quicklook.png")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with gdal_environment():
        yield


@pytest.fixture
def stopped(toy_bundle: Bundle, write_scene: Callable[[Scene], dict[Sensor, Path]], tmp_path: Path) -> RunRequest:
    """A run over 20 tiles that was stopped after nine."""
    request = request_for(
        toy_bundle, write_scene(make_scene(180, 230)), tmp_path / "out", watch=True, backend="onnxruntime"
    )
    with pytest.raises(InterruptedRunError):
        run(request, Watcher(stop_after=9))
    return replace(request, resume=True)


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte[0] ^ 0x10]))


@pytest.mark.parametrize("blend", ["hann", "none"])
def test_a_run_that_was_stopped_behind_its_last_tile_publishes_its_maps(
    toy_bundle: Bundle, write_scene: Callable[[Scene], dict[Sensor, Path]], tmp_path: Path, blend: str
) -> None:
    request = request_for(toy_bundle, write_scene(make_scene(70, 90)), tmp_path / "whole", watch=True, blend=blend)
    tiles = run(request).tiling.tiles
    stopped = replace(request, output=tmp_path / "stopped")
    with pytest.raises(InterruptedRunError, match=f"after {tiles} of {tiles} tiles"):
        run(stopped, Watcher(stop_after=tiles))
    record = run(replace(stopped, resume=True))
    assert record.frames.done == 1
    assert record.tiling.tiles == tiles
    for name in PRODUCTS:
        assert (stopped.output / name).read_bytes() == (request.output / name).read_bytes()


def test_what_the_power_took_from_a_run_while_it_swept_up_is_swept_up_later(
    toy_bundle: Bundle, write_scene: Callable[[Scene], dict[Sensor, Path]], tmp_path: Path
) -> None:
    """The journal is taken away first, the marker last, and whatever lies between them may be left."""
    request = request_for(toy_bundle, write_scene(make_scene(70, 90)), tmp_path / "out")
    run(request)
    assert not (request.output / FOLDER).exists()
    maps = [(request.output / name).read_bytes() for name in PRODUCTS]
    left = Journal(request.output)
    for begun in (False, True):
        left.make()
        if begun:
            (left.folder / "frame" / "maps").mkdir(parents=True)
            (left.folder / "frame" / "classes.spool.tif").write_bytes(bytes(100))
        torn = request.output / ".run.json.4711"
        torn.touch()
        with pytest.raises(OutputError, match="already holds classes.tif"):  # and not an unfinished run
            run(request)
        with pytest.raises(ResumeError, match="is finished, so that resume=True has nothing to do"):
            run(replace(request, resume=True))
        assert not left.folder.exists()
        assert not torn.exists()
        assert [(request.output / name).read_bytes() for name in PRODUCTS] == maps
    left.make()
    run(replace(request, overwrite=True))
    assert not left.folder.exists()


@pytest.mark.slow
def test_whatever_byte_is_damaged_the_run_refuses_or_ends_as_if_never_stopped(
    stopped: RunRequest, tmp_path: Path
) -> None:
    kept = Path(shutil.copytree(stopped.output, tmp_path / "kept"))
    run(stopped)
    whole = {name: (stopped.output / name).read_bytes() for name in PRODUCTS}
    rng = np.random.default_rng(0)
    refused = 0
    for file in sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file()):
        if file.name == ".gemmnet":
            continue
        size = (kept / file).stat().st_size
        for place in (0, size - 1, *rng.integers(0, size, 2)):
            shutil.rmtree(stopped.output)
            shutil.copytree(kept, stopped.output)
            flip(stopped.output / file, int(place))
            try:
                run(stopped)
            except ResumeError:
                refused += 1
            else:
                for name, content in whole.items():
                    assert (stopped.output / name).read_bytes() == content, f"{file} at {place}: {name}"
    assert refused >= 12


class StopsAtPublishing(Watcher):
    """Stops the run when every tile is in the maps and none of them is published."""

    def publishing(self) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("blend", ["crop", "hann"])
def test_a_run_that_was_stopped_behind_its_last_tile_has_only_to_publish(
    toy_bundle: Bundle, write_scene: Callable[[Scene], dict[Sensor, Path]], tmp_path: Path, blend: str
) -> None:
    request = request_for(
        toy_bundle, write_scene(make_scene(180, 230)), tmp_path / "out", watch=True, backend="onnxruntime", blend=blend
    )
    whole = run(replace(request, output=tmp_path / "whole"))
    with pytest.raises(InterruptedRunError, match="stopped after 20 of 20 tiles"):
        run(request, StopsAtPublishing())
    resumed = run(replace(request, resume=True))
    for name in PRODUCTS:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert (resumed.result, resumed.health, resumed.frames.done) == (whole.result, whole.health, 1)
    assert (resumed.inputs, resumed.grid) == (whole.inputs, whole.grid)


@pytest.mark.parametrize("left", [(), (".gemmnet",), ("..gemmnet.123",)])
def test_a_folder_that_a_dying_run_could_not_mark_is_in_nobodys_way(
    toy_bundle: Bundle, write_scene: Callable[[Scene], dict[Sensor, Path]], tmp_path: Path, left: tuple[str, ...]
) -> None:
    """A power cut may leave the name of a file and not its content."""
    folder = tmp_path / "out" / FOLDER
    folder.mkdir(parents=True)
    for name in left:
        (folder / name).touch()
    request = request_for(
        toy_bundle, write_scene(make_scene(100, 100)), tmp_path / "out", backend="onnxruntime", overwrite=True
    )
    run(request)
    assert not folder.exists()
    folder.mkdir()
    (folder / "mine.txt").touch()
    with pytest.raises(OutputError, match="was not made by this project"):
        run(request)
    assert (folder / "mine.txt").exists()


@pytest.mark.parametrize("name", ["journal.json", "tiles.csv", "frame/windows.crc", "frame/preview.bin"])
@pytest.mark.parametrize("kind", ["emptied", "cut", "removed", "fifo"])
def test_a_file_that_is_not_whole_is_refused(stopped: RunRequest, name: str, kind: str) -> None:
    path = stopped.output / FOLDER / name
    if kind in ("emptied", "cut"):
        os.truncate(path, 0 if kind == "emptied" else path.stat().st_size // 8)
    else:
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
    with pytest.raises(ResumeError) as caught:
        run(stopped)
    assert str(caught.value).isprintable()


def test_an_input_that_changed_behind_its_size_and_time_is_another(stopped: RunRequest) -> None:
    path = stopped.source.paths[Sensor.NDSM]
    before = path.stat()
    flip(path, before.st_size - 3)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ResumeError, match="inputs was"):
        run(stopped)


def test_a_journal_decodes_to_what_was_encoded_and_to_nothing_else() -> None:
    content = Entry(key={"a": 1}, tiles_done=3, statistics=Statistics()).encode()
    assert Entry.decode(content).tiles_done == 3
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= 1
        with pytest.raises(ValueError, match="not what was written"):
            Entry.decode(bytes(altered))
