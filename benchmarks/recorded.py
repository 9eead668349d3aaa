"""What a command does to the files of a folder, call by call, as strace sees it."""

from __future__ import annotations

import heapq
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.disk import Disk
from engine.contract.errors import UsageError

CALLS = (
    *(
        "open",
        "openat",
        "creat",
        "lseek",
        "read",
        "readv",
        "write",
        "writev",
        "pwrite64",
        "pwritev",
        "ftruncate",
        "truncate",
    ),
    *("fallocate", "copy_file_range", "sendfile", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir"),
    *("mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat", "fsync", "fdatasync"),
)
MOST_BYTES = 1 << 25
"""Of one write that are recorded: more than any has."""
_HEAD = re.compile(r"(\d+\.\d+) (\w+)\(")
_RESULT = re.compile(r"\d+")
_HANDLE = re.compile(r"(?:^|, )(\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")
_SENT_FROM = re.compile(r", \[(\d+)\]")
_NUMBER = re.compile(r"(?:^|, )(\d+)(?=,|$)")


@dataclass(frozen=True, kw_only=True)
class Call:
    """A method of :class:`benchmarks.disk.Disk`, when it was called and with what."""

    at_s: float
    """Since the first call."""
    method: str
    arguments: tuple[str | int | bytes | None, ...]

    def onto(self, disk: Disk) -> None:
        """Do it."""
        getattr(disk, self.method)(*self.arguments)


def record(command: Sequence[str], folder: Path, logs: Path, *, cwd: Path) -> tuple[int, list[Call]]:
    """Run a command and write down what it does below ``folder``.

    Args:
        command: to run.
        folder: that is watched.
        logs: folder for strace's files, made anew; about five bytes for each byte that is written.
        cwd: where it runs.

    Returns:
        Its exit code, and its calls in order.

    Raises:
        UsageError: strace is not installed.
    """
    if shutil.which("strace") is None:
        raise UsageError("--power-loss records a run with strace, which is not installed: `apt install strace`")
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    tracing = ["strace", "-f", "-ff", "-y", "-xx", "--seccomp-bpf", "-s", str(MOST_BYTES), "-o", str(logs / "log")]
    tracing += ["--absolute-timestamps=format:unix,precision:ns", "-e", f"trace={','.join(CALLS)}"]
    done = subprocess.run([*tracing, *command], cwd=cwd, check=False, stdin=subprocess.DEVNULL)
    calls = list(_calls(sorted(logs.glob("log.*")), folder.resolve()))
    shutil.rmtree(logs)
    return done.returncode, calls


def _calls(logs: Sequence[Path], folder: Path) -> Iterator[Call]:
    """Each thread has a log; a call counts from its beginning."""
    reader = _Reader(folder)
    began: float | None = None
    # stdio leaves out an lseek that would go where a read ended, so that reads count too
    for line in heapq.merge(*map(_lines, logs), key=lambda line: line[0]):
        for method, *arguments in reader.calls(*line[1:]):
            began = line[0] if began is None else began
            yield Call(at_s=line[0] - began, method=str(method), arguments=tuple(arguments))


def _lines(log: Path) -> Iterator[tuple[float, str, str, int]]:
    with log.open() as file:
        for line in file:
            head = _HEAD.match(line)
            told, _, answer = line.rpartition(" = ") if head else ("", "", "")
            result = _RESULT.match(answer)
            if head is not None and result is not None:
                yield float(head[1]), head[2], told[head.end() :].rstrip().removesuffix(")"), int(result[0])


class _Reader:
    """Turns system calls into those of a disk; keeps the place in every open file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, int] = {}
        self._appending: set[str] = set()

    def calls(self, name: str, told: str, result: int) -> Iterator[tuple[str | int | bytes | None, ...]]:
        quoted = told.split('"')  # a text is all \\x.. and holds no quote
        rest = "".join(quoted[::2])
        handles = [(number, _decoded(path)) for number, path in _HANDLE.findall(rest)]
        if name in ("read", "readv"):
            self._places[handles[0][0]] = self._places.get(handles[0][0], 0) + result
            return
        if name in ("write", "writev", "pwrite64", "pwritev") and self._below(handles[0][1]) is None:
            return
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in quoted[1::2]]
        numbers = [int(number) for number in _NUMBER.findall(rest)]
        if name in ("open", "openat", "creat"):
            path = self._inside(handles, texts[0])
            if path is not None:
                self._places[str(result)] = 0
                self._appending.discard(str(result))
                if "O_APPEND" in told:
                    self._appending.add(str(result))
                if name == "creat" or "O_TRUNC" in told:
                    yield "truncate", path, 0
                elif "O_CREAT" in told:
                    yield "reserve", path, 0
        elif name in ("rename", "renameat", "renameat2"):
            old, new = (self._inside(handles[at : at + 1], text) for at, text in enumerate(texts))
            assert (old is None) == (new is None), f"a rename across the edge of {self._folder}: {texts}"
            if old is not None:
                yield "rename", old, new
        elif name in ("unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "truncate"):
            path = self._inside(handles, texts[0])
            if path is not None:
                if name == "truncate":
                    yield "truncate", path, numbers[-1]
                else:
                    yield "make_folder" if name.startswith("mkdir") else "remove", path
        elif name in ("link", "linkat", "symlink", "symlinkat"):
            assert all(self._inside(handles, text) is None for text in texts), f"{name} is not known to this model"
        else:
            yield from self._of_open_file(name, told, result, texts, handles, numbers)

    def _of_open_file(
        self,
        name: str,
        told: str,
        result: int,
        texts: list[bytes],
        handles: list[tuple[str, str]],
        numbers: list[int],
    ) -> Iterator[tuple[str | int | bytes | None, ...]]:
        handle, path = handles[0][0], self._below(handles[0][1])
        if path is None or path.endswith("(deleted)"):
            return
        if name == "lseek":
            self._places[handle] = result
        elif name in ("write", "writev"):
            content = b"".join(texts)[:result]
            assert len(content) == result, f"{result} bytes were written to {path}, {len(content)} recorded"
            yield "write", path, None if handle in self._appending else self._places.get(handle, 0), content
            self._places[handle] = self._places.get(handle, 0) + result
        elif name in ("pwrite64", "pwritev"):
            # Linux appends whatever the offset says (pwrite(2), BUGS)
            yield "write", path, None if handle in self._appending else numbers[-1], b"".join(texts)[:result]
        elif name == "ftruncate":
            yield "truncate", path, numbers[-1]
        elif name == "fallocate":
            yield "reserve", path, numbers[-2] + numbers[-1]
        elif name in ("fsync", "fdatasync"):
            yield "sync", path
        elif name == "sendfile" and (source := self._below(handles[1][1])) is not None:
            begin = _SENT_FROM.search(told)
            assert begin is not None, told
            place = self._places.get(handle, 0)
            yield "copy", path, place, source, int(begin[1]), result
            self._places[handle] = place + result
        else:
            raise AssertionError(f"{name} into {path} is not known to this model: {told[:200]}")

    def _inside(self, handles: list[tuple[str, str]], name: bytes) -> str | None:
        at = Path(handles[0][1]) if handles else Path.cwd()
        return self._below(str(at / name.decode(errors="surrogateescape")))

    def _below(self, path: str) -> str | None:
        if path == str(self._folder):
            return "."
        head = f"{self._folder}/"
        return path.removeprefix(head) if path.startswith(head) else None


def _decoded(text: str) -> str:
    return bytes.fromhex(text.replace("\\x", "")).decode(errors="surrogateescape")
