"""PyTorch on the CPU, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.peers.peer import Classes, Peer
from engine.backends.base import Inputs
from engine.contract.errors import BackendError, BackendUnavailableError, EngineError
from engine.contract.sensors import Scenario, Sensor
from export.scenarios import inputs_of

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""Tell glibc never to give memory back (https://man7.org/linux/man-pages/man3/mallopt.3.html). By default it returns
the large tensors of each inference and has every page of the next ones made anew."""


class TorchPeer(Peer):
    """PyTorch in float32 on all cores."""

    def __init__(self, module: nn.Module, scenario: Scenario) -> None:
        self.library = f"torch {torch.__version__}"
        self._run: Callable[..., tuple[Tensor, Tensor, Tensor]] = module
        self._sensors = inputs_of(scenario)

    def infer(self, inputs: Inputs) -> Classes:
        """See :meth:`Peer.infer`."""
        with torch.inference_mode():
            classes, _, _ = self._run(*(torch.from_numpy(inputs[sensor])[None] for sensor in self._sensors))
        return classes[0].numpy()


class CompiledTorchPeer(TorchPeer):
    """``torch.compile`` with its default backend, which writes C++ and OpenMP for a CPU."""

    def __init__(self, module: nn.Module, scenario: Scenario) -> None:
        super().__init__(module, scenario)
        self._run = compiled(module)


def compiled(module: nn.Module) -> Callable[..., Any]:
    """A module that ``torch.compile`` compiles when it is first called.

    Raises:
        BackendUnavailableError: there is no compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise BackendUnavailableError(
            f"torch.compile compiles C++ with {compiler}, which is not there: apt install g++, or set CXX"
        )
    torch.compiler.reset()  # or a second network would count as a recompilation of the first
    return torch.compile(module, dynamic=False)


class OwnProcess(Peer):
    """PyTorch as one has it who uses nothing else: what other libraries left of the heap decides none of its times.

    Beside other libraries in one process the ``paper`` preset took 470 ms a tile in one run and 704 in the next.
    Tiles and classes go through memory that both processes map.

    Args:
        kind: what runs there.
        module: of a scenario, see :mod:`export.scenarios`.
        scenario: whose inputs it takes.
        tile_px: side T of every tile.
        environment: of the process, besides that of this one.

    Raises:
        EngineError: that process could not make it.
    """

    def __init__(
        self,
        kind: type[TorchPeer],
        module: nn.Module,
        scenario: Scenario,
        tile_px: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with ExitStack() as stack:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tile"
            path.write_bytes(bytes(tile_px**2 * (1 + 3 + 4)))  # a class, three bands and a height for each pixel
            self._inputs, self._made = _mapped(path, scenario, tile_px)
            context = multiprocessing.get_context("spawn")
            self._calls, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(kind, module, scenario, tile_px, path, theirs), daemon=True
            )
            with _set(environment or {}):
                self._process.start()
            theirs.close()
            stack.callback(self._process.join)
            stack.callback(self._calls.close)  # runs before the join: the process ends when nobody can call it
            ready = self._answer()
            if isinstance(ready, EngineError):
                raise ready
            self.library = str(ready)
            self._open = stack.pop_all()

    def infer(self, inputs: Inputs) -> Classes:
        """See :meth:`Peer.infer`."""
        for sensor, values in self._inputs.items():
            values[:] = inputs[sensor]
        self._calls.send(None)
        self._answer()
        return np.array(self._made)

    def close(self) -> None:
        """See :meth:`Peer.close`."""
        self._open.close()

    def _answer(self) -> object:
        try:
            return self._calls.recv()
        except EOFError as error:
            self._process.join()
            raise BackendError(
                f"the process of PyTorch ended with exit code {self._process.exitcode}; what it said stands above"
            ) from error


def _serve(
    kind: type[TorchPeer], module: nn.Module, scenario: Scenario, tile_px: int, path: Path, calls: Connection
) -> None:
    """The process: answer calls while there is somebody to call."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    inputs, made = _mapped(path, scenario, tile_px)
    try:
        peer = kind(module, scenario)
    except EngineError as error:
        calls.send(error)
        return
    calls.send(peer.library)
    with suppress(EOFError):
        while True:
            calls.recv()
            made[:] = peer.infer(inputs)
            calls.send(None)


def _mapped(path: Path, scenario: Scenario, tile_px: int) -> tuple[dict[Sensor, NDArray[np.generic]], Classes]:
    """A tile's inputs and its classes, in the file that both processes map."""
    at = tile_px**2
    inputs: dict[Sensor, NDArray[np.generic]] = {}
    for sensor in inputs_of(scenario):
        dtype: type[np.generic] = np.uint8 if sensor is Sensor.RGIR else np.float32
        bands = 3 if sensor is Sensor.RGIR else 1
        inputs[sensor] = np.memmap(path, dtype, "r+", at, (bands, tile_px, tile_px))
        at += inputs[sensor].nbytes
    return inputs, np.memmap(path, np.uint8, "r+", 0, (tile_px, tile_px))


@contextmanager
def _set(environment: Mapping[str, str]) -> Iterator[None]:
    """Variables that a process started meanwhile inherits."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
