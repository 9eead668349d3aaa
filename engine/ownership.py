"""Who may write into an output folder, and what in it is ours to replace.

One run owns an output folder, by a lock of the operating system on the folder itself: it leaves no file behind, and the
kernel releases it however the process ends. What is replaced or deleted is what a marker proves to be ours: a
file :data:`MARKER` in a folder of a frame's maps and in that of the unfinished run, ``run.json`` beside the maps of a
finished one. Whatever else lies there is left alone.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine.contract.atomic import sync, write_whole
from engine.contract.errors import OutputError, writing
from engine.contract.formats import MalformedError, from_json, read_file

log = logging.getLogger(__name__)

MARKER = ".gemmnet"
RUN_NAME = "run.json"
_RUN_FIELDS = {"version", "bundle", "tiling"}
"""What the run.json of every version holds."""
IN_USE = (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN)
"""What a lock that somebody else holds is refused with."""


@contextmanager
def owned(output: Path) -> Iterator[None]:
    """For the block: nobody else runs into ``output``, which is made if it is missing.

    A folder that was made here and is still empty when the block fails is taken away again.

    Raises:
        OutputError: another run is under way there, or it is no folder that can be written.
    """
    check_text(output, "`output`")
    made: list[Path] = []
    with writing(output):
        if output.exists() and not output.is_dir():
            raise OutputError(f"`output` must be a folder; {output} is a file: pass another `output`")
        made = [each for each in (output, *output.parents) if not each.exists()]
        handle = _locked(output)
        for folder in made:
            with suppress(PermissionError):  # one may be allowed to make a folder and not to list those beside it
                sync(folder.parent)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the first that is not empty ends it
            for folder in made:
                folder.rmdir()
        raise
    finally:
        os.close(handle)


def _locked(output: Path) -> int:
    """A descriptor that holds the lock."""
    while True:
        output.mkdir(parents=True, exist_ok=True)
        handle = os.open(output, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in IN_USE:
                os.close(handle)
                raise OutputError(
                    f"another run is writing to {output}: wait for it, or pass another `output`"
                ) from error
            log.warning("%s cannot be locked (%s): see that no other run writes there", output, error.strerror)
            return handle
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), output.stat()):
                return handle
        os.close(handle)  # whoever made it took it away meanwhile


def check_text(path: Path, option: str) -> None:
    """See that a path can be written into ``run.json``.

    Raises:
        OutputError: its name is no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise OutputError(f"{option} must have a name in UTF-8, received {path}: rename it") from error


def frame_mark(stamp: str) -> str:
    """What the folder of a live frame's maps is marked as."""
    return f"frame {stamp}"


def mark(folder: Path, what: str) -> None:
    """Write into a folder that it is ours.

    Args:
        folder: that was made by this project.
        what: is in it; :func:`is_marked` asks for the same.
    """
    write_whole(folder / MARKER, _content(what).encode(), durable=True)


def is_marked(folder: Path, what: str) -> bool:
    """Whether a folder, which is no link, is one that :func:`mark` was told of."""
    try:
        return not folder.is_symlink() and read_file(folder / MARKER, 1024) == _content(what).encode()
    except (OSError, MalformedError):
        return False


def is_unmarked(folder: Path) -> bool:
    """Whether a folder, which is no link, holds nothing but what a run leaves that dies while it marks it."""
    return not folder.is_symlink() and all(path.name.startswith((MARKER, f".{MARKER}.")) for path in folder.iterdir())


def clear_marked(folder: Path, *, keep: bool = False) -> None:
    """Delete a folder that is marked, its marker last: what is left if the power fails is still known to be ours.

    Args:
        folder: to delete.
        keep: it stays, with nothing but its marker.

    Raises:
        OSError: the system refuses.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    if keep:
        return
    sync(folder)
    (folder / MARKER).unlink(missing_ok=True)
    folder.rmdir()
    sync(folder.parent)


def sweep(output: Path, names: Collection[str]) -> None:
    """Delete what a process that died while it replaced one of these files left beside it.

    Args:
        output: a folder whose lock is held: nobody else writes these files now.
        names: of the files; see :func:`engine.contract.atomic.replacing`.
    """
    for path in output.glob(".*"):
        name, _, process = path.name[1:].rpartition(".")
        if name in names and process.isdecimal() and not path.is_dir():
            path.unlink()


def remove_marked(folder: Path, what: str, ours: Collection[str]) -> None:
    """Delete a folder of ours, but nothing in it that is not: then the folder stays, and a warning says so.

    A folder without the marker is left alone altogether.

    Args:
        folder: to delete.
        what: it was marked as.
        ours: names of files that we write; a name that begins with one of them and goes on with ``.`` is GDAL's.
    """
    if not is_marked(folder, what):
        if os.path.lexists(folder):
            log.warning("%s was not written by this project: it is left alone", folder)
        return
    for path in folder.iterdir():
        if path.name in ours or any(path.name.startswith(f"{name}.") for name in ours):
            path.unlink()
    if any(path.name != MARKER for path in folder.iterdir()):
        log.warning("%s holds files that this project did not write: they are left there", folder)
        return
    (folder / MARKER).unlink()
    folder.rmdir()


def holds_a_run(output: Path) -> bool:
    """Whether ``run.json`` in a folder proves that a run of this project ended there."""
    try:
        told = from_json(read_file(output / RUN_NAME), dict[str, Any])
    except (OSError, MalformedError):
        return False
    return set(told) >= _RUN_FIELDS


def _content(what: str) -> str:
    return f"written by gemmnet-edge: {what}\n"
