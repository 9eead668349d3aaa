"""What a power cut leaves, in the model, and whether the model is told everything that a command does."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.disk import Disk
from benchmarks.power_cuts import tree_of
from benchmarks.recorded import record

SEEDS = range(200)


def replaced(*, sync_file: bool, sync_folder: bool) -> Disk:
    """A file that is written under another name and renamed over an old one."""
    disk = Disk({"out": None, "out/a": b"old"})
    disk.write("out/.a", 0, b"new")
    if sync_file:
        disk.sync("out/.a")
    disk.rename("out/.a", "out/a")
    if sync_folder:
        disk.sync("out")
    return disk


def test_what_is_not_synced_is_lost_or_not() -> None:
    for sync_file, sync_folder, left in (
        (True, True, {b"new"}),
        (True, False, {b"old", b"new"}),
        (False, False, {b"old", b"", b"new"}),
    ):
        disk = replaced(sync_file=sync_file, sync_folder=sync_folder)
        assert disk.now() == {"out": None, "out/a": b"new"}
        assert disk.crashed()["out/a"] == (b"new" if sync_folder else b"old")
        assert {disk.crashed(random.Random(seed))["out/a"] for seed in SEEDS} == left


def test_a_name_is_safe_once_its_folder_is_synced_and_not_before() -> None:
    disk = Disk()
    disk.write("made/file", 0, b"content")
    disk.sync("made/file")
    assert disk.crashed() == {}
    disk.sync("made")
    assert disk.crashed() == {}, "the folder has no name yet"
    disk.sync(".")
    assert disk.crashed() == {"made": None, "made/file": b"content"}


def test_names_of_a_folder_come_in_order_and_a_rename_counts_in_both() -> None:
    disk = Disk({"a": None, "b": None, "a/x": b"x"})
    disk.write("a/first", 0, b"")
    disk.rename("a/x", "b/x")
    disk.write("b/last", 0, b"")
    for seed in SEEDS:
        left = disk.crashed(random.Random(seed))
        assert ("a/x" in left) != ("b/x" in left)
        assert "b/x" not in left or "a/first" in left
        assert "b/last" not in left or "b/x" in left
    disk.sync("b")
    assert set(disk.crashed()) == {"a", "b", "a/first", "b/x", "b/last"}


def test_writes_lengths_and_removals_are_those_of_a_file() -> None:
    disk = Disk({"file": b"0123456789"})
    disk.write("file", 8, b"abcd")
    disk.truncate("file", 10)
    disk.reserve("file", 12)
    disk.write("file", None, b"end")
    assert disk.now() == {"file": b"01234567ab\0\0end"}
    assert disk.read("file", 6, 4) == b"67ab"
    assert disk.crashed() == {"file": b"0123456789"}
    disk.copy("other", 0, "file", 8, 2)
    disk.remove("file")
    assert disk.now() == {"other": b"ab"}


SCRIPT = """
import os, pathlib, shutil, sys
folder = pathlib.Path(sys.argv[1]) / "deep" / "er"
folder.mkdir(parents=True)
with (folder / "a").open("w+b") as file:
    file.write(b'quote " and \\n line')
    file.seek(2)
    file.read(3)
    file.write(b"XX")
    file.truncate(15)
    file.flush()
    os.fsync(file.fileno())
with (folder / "a").open("ab") as file:
    file.write(b"appended")
    os.pwrite(file.fileno(), b"!", 0)
    os.posix_fallocate(file.fileno(), 0, 40)
(folder / "a").rename(folder.parent / "b")
shutil.copyfile(folder.parent / "b", folder / "c")
(folder / "gone").mkdir()
shutil.rmtree(folder / "gone")
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_recording_tells_all_that_a_command_does(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        code, calls = record([sys.executable, "-c", SCRIPT, str(folder)], folder, tmp_path / "log", cwd=tmp_path)
    except OSError as error:
        pytest.skip(f"strace cannot trace here: {error}")
    if code and not calls:
        pytest.skip("strace cannot trace here")
    disk = Disk()
    for call in calls:
        call.onto(disk)
    assert code == 0
    assert disk.now() == tree_of(folder)
    assert disk.crashed() == {}
    assert not (tmp_path / "log").exists()
