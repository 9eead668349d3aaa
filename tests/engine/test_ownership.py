"""One run owns an output folder, and what it replaces is proven to be ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.contract.bundle import Bundle
from engine.contract.errors import OutputError
from engine.contract.sensors import Sensor
from engine.ownership import MARKER, is_marked, mark, owned, remove_marked
from engine.rasters.georeference import gdal_environment
from engine.runner import run
from tests.conftest import Scene, make_scene
from tests.engine.runs import request_for

Write = Callable[[Scene], dict[Sensor, Path]]


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with gdal_environment():
        yield


def test_a_second_run_into_a_folder_is_refused_and_the_first_is_not_disturbed(
    toy_bundle: Bundle, write_scene: Write, tmp_path: Path
) -> None:
    paths, output = write_scene(make_scene(70, 90)), tmp_path / "out"
    with owned(output):
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(OutputError, match="another run is writing to"):
                run(request_for(toy_bundle, paths, output, **options))
        assert list(output.iterdir()) == []
    run(request_for(toy_bundle, paths, output))


def test_the_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    program = f"""
        import time
        from pathlib import Path
        from engine.ownership import owned
        with owned(Path({str(tmp_path / "out")!r})):
            print("locked", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(OutputError, match="another run"), owned(tmp_path / "out"):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    with owned(tmp_path / "out"):
        pass


def test_a_folder_made_for_a_run_that_failed_is_taken_away_and_one_that_was_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for output in (tmp_path / "a" / "b", tmp_path / "there"):
        with pytest.raises(OutputError, match="failed"), owned(output):
            raise OutputError("failed")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    (tmp_path / "there" / "map").write_text("x")
    with pytest.raises(OutputError, match="failed"), owned(tmp_path / "there"):
        raise OutputError("failed")
    assert (tmp_path / "there" / "map").exists()


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000, os.fsdecode(b"caf\xe9"), "file"])
def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught, owned(tmp_path / name):
        pass
    assert str(caught.value).isprintable()


def test_a_run_never_replaces_its_own_input(toy_bundle: Bundle, write_scene: Write, tmp_path: Path) -> None:
    paths, output = write_scene(make_scene(70, 90)), tmp_path / "out"
    run(request_for(toy_bundle, paths, output))
    before = (output / "classes.tif").read_bytes()
    os.link(output / "classes.tif", tmp_path / "hard.tif")
    (tmp_path / "soft.tif").symlink_to(output / "confidence.tif")
    for name in (output / "classes.tif", tmp_path / "hard.tif", tmp_path / "soft.tif"):
        with pytest.raises(OutputError, match="would replace"):
            run(request_for(toy_bundle, {**paths, Sensor.RGIR: name}, output, overwrite=True))
    assert (output / "classes.tif").read_bytes() == before


def test_overwrite_replaces_results_of_ours_alone(toy_bundle: Bundle, write_scene: Write, tmp_path: Path) -> None:
    paths, output = write_scene(make_scene(70, 90)), tmp_path / "out"
    output.mkdir()
    (output / "classes.tif").write_text("a map of somebody else")
    with pytest.raises(OutputError, match="move it away"):
        run(request_for(toy_bundle, paths, output, overwrite=True))
    assert (output / "classes.tif").read_text() == "a map of somebody else"
    (output / "classes.tif").unlink()
    (output / "report.txt").write_text("mine")
    run(request_for(toy_bundle, paths, output))
    run(request_for(toy_bundle, paths, output, overwrite=True))
    assert (output / "report.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["files", "link"])
def test_an_unfinished_folder_of_somebody_else_is_left_alone(
    kind: str, toy_bundle: Bundle, write_scene: Write, tmp_path: Path
) -> None:
    paths, output, other = write_scene(make_scene(70, 90)), tmp_path / "out", tmp_path / "other"
    output.mkdir()
    other.mkdir()
    (other / "poem").write_text("mine")
    if kind == "link":
        (output / ".unfinished").symlink_to(other)
    else:
        other = other.rename(output / ".unfinished")
    with pytest.raises(OutputError, match="not made by this project"):
        run(request_for(toy_bundle, paths, output, overwrite=True))
    assert [path.name for path in other.iterdir()] == ["poem"]


def test_only_a_marked_folder_is_deleted_and_only_what_is_ours_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "0001"
    folder.mkdir()
    (folder / "classes.tif").write_text("")
    (folder / MARKER).write_text("written by gemmnet-edge: frame 0002\n")
    remove_marked(folder, "frame 0001", ["classes.tif"])
    assert (folder / "classes.tif").exists()
    mark(folder, "frame 0001")
    assert is_marked(folder, "frame 0001")
    (folder / "classes.tif.aux.xml").write_text("")
    (folder / "classes.tiff").write_text("mine")
    remove_marked(folder, "frame 0001", ["classes.tif"])
    assert sorted(path.name for path in folder.iterdir()) == [MARKER, "classes.tiff"]
    (folder / "classes.tiff").unlink()
    remove_marked(folder, "frame 0001", ["classes.tif"])
    assert not folder.exists()
