"""One malformed input in a process of its own: what became of it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tqdm import tqdm

from benchmarks.hardening.damage import damaged
from benchmarks.hardening.formats import FORMATS, PRELOADED

DEADLINE_S = 60.0


class AttemptOutcome(StrEnum):
    """What became of a malformed input."""

    REFUSED = "refused"
    """One line that says why, and the documented exit code."""
    ACCEPTED = "accepted"
    """It was read, and rightly so: nothing that matters is wrong with it."""
    WRONG_CODE = "wrong code"
    SEVERAL_LINES = "several lines"
    """The error is none of one line."""
    TRACEBACK = "traceback"
    HANG = "hang"
    """No end within the deadline."""
    WRONG = "accepted although wrong"
    CRASH = "native crash"


RIGHT = (AttemptOutcome.REFUSED, AttemptOutcome.ACCEPTED)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One input."""

    format: str
    seed: int
    outcome: AttemptOutcome
    exit_code: int | None
    said: str
    """The last line of its errors."""


def attempt(name: str, ground: Path, seed: int, *, deadline_s: float = DEADLINE_S, keep: Path | None = None) -> Attempt:
    """Damage one file of a copy of ``ground`` and run the command that reads it.

    Args:
        name: of the format.
        ground: folder in which the command works, prepared.
        seed: of the damage.
        deadline_s: longest wait.
        keep: folder for the inputs that went wrong.
    """
    tried = FORMATS[name]
    with tempfile.TemporaryDirectory(prefix="hardening-") as scratch:
        folder = Path(scratch, "work")
        shutil.copytree(ground, folder, symlinks=True)
        target = tried.target(folder, seed)
        content = damaged(target.read_bytes(), seed)
        target.write_bytes(content)
        tried.ready(folder)
        err, ended = Path(scratch, "err"), Path(scratch, "code")
        process = _CONTEXT.Process(target=_child, args=(name, folder, scratch), daemon=True)
        process.start()
        process.join(deadline_s)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        elif ended.exists():  # a forkserver under load loses a code now and then, and says 255
            code = int(ended.read_text())
        process.close()
        said = err.read_text(errors="replace") if err.exists() else ""
        outcome = _judged(name, folder, ground, code, said)
        if keep is not None and outcome not in RIGHT:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{name.replace(' ', '-')}-{seed}-{target.name}").write_bytes(content)
    lines = [line for line in said.splitlines() if line.strip()]
    return Attempt(format=name, seed=seed, outcome=outcome, exit_code=code, said=lines[-1][:300] if lines else "")


def _judged(name: str, folder: Path, ground: Path, code: int | None, said: str) -> AttemptOutcome:
    tried = FORMATS[name]
    if code is None:
        return AttemptOutcome.HANG
    if code < 0:
        return AttemptOutcome.CRASH
    if "Traceback (most recent call last)" in said:
        return AttemptOutcome.TRACEBACK
    if code in tried.done:
        return AttemptOutcome.ACCEPTED if tried.right(folder, ground) else AttemptOutcome.WRONG
    if code not in tried.refused:
        return AttemptOutcome.WRONG_CODE
    errors = [line for line in said.splitlines() if line.strip()]
    one = len([line for line in errors if line.startswith("error: ")]) == 1 and errors[-1].startswith("error: ")
    return AttemptOutcome.REFUSED if one or tried.told_on_stdout else AttemptOutcome.SEVERAL_LINES


def _child(name: str, folder: Path, scratch: str) -> None:
    """Run in the process: what is printed goes into files, and so does the exit code, which is the command's."""
    for number, told in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(scratch, told), os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ["OMP_NUM_THREADS"] = "1"
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a process that ends like this one leaves behind
    try:
        code = FORMATS[name].run(folder)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    Path(scratch, "code").write_text(str(code))
    os._exit(code)


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(PRELOADED))
