"""Does a backend work on this machine? Tried for every scenario and precision, in a process of its own.

A library that brings its process down (an instruction that the processor lacks, a driver that does not fit) or never
answers is then a finding like any other, and takes nothing with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path

from engine.backends.base import ExecutionPrecision, Output
from engine.backends.instruction_sets import VARIABLE
from engine.backends.options import BackendName, BackendOptions
from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import BackendError, BackendUnavailableError, EngineError, GoldenMismatchError
from engine.contract.sensors import Scenario

WANTED = (Output.CLASSES, Output.CONFIDENCE, Output.PROBABILITIES)
"""What a run asks for."""


class ProbeOutcome(StrEnum):
    """What became of a probe."""

    WORKS = "works"
    UNAVAILABLE = "unavailable"
    """Its library, its device or its plan is not there."""
    WRONG = "wrong"
    """It computes, and not what was exported."""
    FAILED = "failed"
    CRASHED = "crashed"
    """The process died or never answered."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One backend, precision and scenario on this machine."""

    backend: BackendName
    precision: ExecutionPrecision
    """As asked for."""
    scenario: Scenario
    outcome: ProbeOutcome
    instruction_set: str = ""
    """What oneDNN was told that the processor is; empty: nothing."""
    reason: str = ""
    """Why it does not work."""
    exit_code: int = 0
    """What a run that meets this ends with."""
    library: str = ""
    device: str = ""
    graph: Precision | None = None
    """Which of the bundle's graphs ran."""
    computes_in: str = ""
    """The floating type the device computes in, such as f32 or bf16."""
    ready_s: float | None = None
    """From nothing to the golden tile reproduced."""
    latencies_ms: tuple[float, ...] = ()
    """One tile at a time, the golden one."""

    def row(self) -> tuple[str, str, str]:
        """What the probes of one row of the table share."""
        return self.backend, self.instruction_set, self.precision

    @property
    def works(self) -> bool:
        """It reproduced the golden tile."""
        return self.outcome is ProbeOutcome.WORKS

    @property
    def median_ms(self) -> float:
        """The median latency; only of a probe that works."""
        return statistics.median(self.latencies_ms)


def try_backend(
    name: BackendName,
    bundle: Bundle,
    precisions: Sequence[ExecutionPrecision],
    *,
    tiles: int,
    timeout_s: float,
    instruction_set: str = "",
) -> Iterator[Probe]:
    """Try one backend in a process of its own, precision by precision, scenario by scenario.

    A precision is left out where ``auto`` has already turned out to be the same.

    Args:
        name: the backend.
        bundle: what to run.
        precisions: what to ask for.
        tiles: how many to time in each probe.
        timeout_s: longest time for one probe; past it the process is ended.
        instruction_set: what oneDNN is told that the processor is; empty: nothing.
    """
    todo = [(precision, scenario) for precision in precisions for scenario in Scenario]
    context = multiprocessing.get_context("spawn")  # a fork would share the library's threads and devices
    mine, its = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile(prefix="engine-doctor-") as said:
        process = context.Process(target=_try_all, args=(its, said.name, name, bundle.root, todo, tiles), daemon=True)
        with _told(instruction_set):
            process.start()
        its.close()
        try:
            done = 0
            while mine.poll(timeout_s):
                probe: Probe | None = mine.recv()
                if probe is None:
                    return
                done = todo.index((probe.precision, probe.scenario)) + 1
                yield replace(probe, instruction_set=instruction_set)
            reason = f"no answer within {timeout_s:.0f} s"
        except EOFError:
            process.join()
            reason = _cause_of_death(process.exitcode, Path(said.name))
        finally:
            process.kill()
            process.join()
            mine.close()
    for precision, scenario in todo[done:]:
        yield Probe(
            backend=name,
            precision=precision,
            scenario=scenario,
            outcome=ProbeOutcome.CRASHED,
            instruction_set=instruction_set,
            reason=reason,
            exit_code=BackendError.exit_code,
        )
        reason = f"not tried: the process had died at {todo[done][0]} {todo[done][1]}"


def _try_all(
    answers: Connection,
    said: str,
    name: BackendName,
    root: Path,
    todo: Sequence[tuple[ExecutionPrecision, Scenario]],
    tiles: int,
) -> None:
    """The process: send each probe, then None. What libraries print goes to the file ``said``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    told = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(told, 1)
    os.dup2(told, 2)
    bundle = Bundle.load(root)
    tried: set[tuple[ExecutionPrecision | None, Scenario]] = set()
    for precision, scenario in todo:
        if (precision, scenario) in tried:
            continue
        probe = _try(name, bundle, precision, scenario, tiles)
        if probe.graph != "fp32" or probe.computes_in == "f32":  # fp32 promises float32, auto does not
            tried.add((probe.graph, scenario))
        answers.send(probe)
    answers.send(None)


def _try(name: BackendName, bundle: Bundle, precision: ExecutionPrecision, scenario: Scenario, tiles: int) -> Probe:
    began = time.perf_counter()
    try:
        with BackendOptions(name=name, precision=precision).open(
            bundle, scenarios=[scenario], wanted=WANTED
        ) as backend:
            ready_s = time.perf_counter() - began
            golden = bundle.golden()
            inputs = {sensor: golden[sensor.value] for sensor in scenario.sensors}
            latencies_ms = []
            for _ in range(tiles):
                sent = time.perf_counter()
                backend.infer(scenario, inputs)
                latencies_ms.append((time.perf_counter() - sent) * 1e3)
    except EngineError as error:
        outcome = (
            ProbeOutcome.UNAVAILABLE
            if isinstance(error, BackendUnavailableError)
            else ProbeOutcome.WRONG
            if isinstance(error, GoldenMismatchError)
            else ProbeOutcome.FAILED
        )
        return Probe(
            backend=name,
            precision=precision,
            scenario=scenario,
            outcome=outcome,
            reason=f"{error}{_culprit(name, bundle, precision, scenario) if outcome is ProbeOutcome.WRONG else ''}",
            exit_code=error.exit_code,
        )
    return Probe(
        backend=name,
        precision=precision,
        scenario=scenario,
        outcome=ProbeOutcome.WORKS,
        library=backend.info.library,
        device=backend.info.device,
        graph=backend.info.graph,
        computes_in=backend.info.precision,
        ready_s=ready_s,
        latencies_ms=tuple(latencies_ms),
    )


def _culprit(name: BackendName, bundle: Bundle, precision: ExecutionPrecision, scenario: Scenario) -> str:
    """Which layer is to blame, where that can be found out: in OpenVINO's int8 graphs."""
    if name != "openvino" or precision != "int8":
        return ""
    from engine.backends.openvino import first_wrong_layer  # here: the doctor outlives a broken openvino

    try:
        golden = bundle.golden()
        layer = first_wrong_layer(bundle, scenario, {sensor: golden[sensor.value] for sensor in scenario.sensors})
    except BackendError as error:
        return f"; {error}"
    return f"; the first layer that is wrong is {layer}" if layer else "; every layer by itself is right"


@contextmanager
def _told(instruction_set: str) -> Iterator[None]:
    """Start processes in here that take the processor for one with fewer instructions."""
    before = os.environ.get(VARIABLE)
    if instruction_set:
        os.environ[VARIABLE] = instruction_set
    try:
        yield
    finally:
        if before is not None:
            os.environ[VARIABLE] = before
        elif instruction_set:
            del os.environ[VARIABLE]


def _cause_of_death(exit_code: int | None, said: Path) -> str:
    """How the process ended, and the last line that anything in it printed."""
    if exit_code is not None and exit_code < 0:
        how = f"the process died of {signal.Signals(-exit_code).name}"
        if exit_code == -signal.SIGKILL:
            how += " (the kernel does that when memory runs out)"
    else:
        how = f"the process ended with exit code {exit_code}"
    lines = [line.strip() for line in said.read_text(errors="replace").splitlines() if line.strip()]
    return f"{how}: {lines[-1]}" if lines else how
