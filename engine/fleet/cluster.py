"""A fleet on Ray: a worker per machine or GPU that keeps its backend warm and takes units.

Ray places the workers, notices nodes that come and go, and says when a worker is gone
(https://docs.ray.io/en/latest/ray-core/fault_tolerance/actors.html). What a unit is and when it is done is known by its
key and its marker alone, so that a driver may die as well, or two work on one list.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.contract.errors import BackendError, EngineError, UsageError, one_line
from engine.contract.sensors import Scenario
from engine.fleet.book import Book
from engine.fleet.stores import store_at
from engine.fleet.units import Unit
from engine.fleet.worker import UnitOutcome, Worker
from engine.observer import Observer
from engine.rasters.georeference import gdal_environment
from engine.telemetry import log as telemetry_log
from engine.version import own_version

log = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Units that a worker has at a time: the second waits there while the first is mapped."""
LOOK_S = 2.0
"""How often the nodes of the cluster are looked at."""
LONELY_S = 30.0
"""So long without any worker, and a warning says why."""
DEATHS = 3
"""A node whose workers die so often one after the other, and map nothing, gets no other."""
CONTROL = "control"
"""A thread of its own in each worker: it is heard while a unit is mapped."""
STOP_S = 60.0
"""Longest wait for units under way to be put by when the driver is interrupted."""


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself before it gets units."""

    host: str
    version: str
    bundle: str
    """SHA-256 of its manifest; empty where it cannot be used."""
    error: str = ""
    """Why it cannot map."""


class _Stopping(Observer):
    """Ends the unit under way as Ctrl-C does, once it is told to."""

    stop = False

    def tile_done(self, report: object) -> None:
        if self.stop:
            raise KeyboardInterrupt


class _Mapper:
    """The actor around a :class:`Worker`."""

    def __init__(self, options: argparse.Namespace, scenarios: Sequence[Scenario], cwd: str, cpus: int) -> None:
        with contextlib.suppress(OSError):
            os.chdir(cwd)  # names in the options may be relative to where the driver was started
        self._environment = gdal_environment()
        self._environment.__enter__()
        telemetry_log.configure(options.log_format, level=options.log_level.upper())
        own = {} if options.threads or cpus >= (os.cpu_count() or 1) else {"threads": cpus}
        self._options, self._scenarios = argparse.Namespace(**{**vars(options), **own}), scenarios
        self._stopping = _Stopping()
        self._worker: Worker | None = None

    def hello(self, word: str) -> Hello:
        """Load the bundle, and see that the output is the driver's."""
        host, version = f"{socket.gethostname()}:{os.getpid()}", own_version()
        try:
            store = store_at(self._options.output)
            self._worker = Worker(self._options, store, self._scenarios, block_mpx=self._options.cut or None)
            seen = store.sees(word)
        except EngineError as error:
            return Hello(host=host, version=version, bundle="", error=str(error))
        missing = f"it does not see {self._options.output} of the driver: use a folder that all nodes share"
        return Hello(host=host, version=version, bundle=self._worker.bundle.digest, error="" if seen else missing)

    def map(self, unit: Unit) -> UnitOutcome | None:
        """What became of a unit; None where the worker was told to stop."""
        assert self._worker is not None
        if self._stopping.stop:
            return None
        try:
            return self._worker.map(unit, self._stopping)
        except EngineError:  # interrupted
            return None

    def stop(self) -> None:
        """Beside a unit that is being mapped: put the unit under way by, to be gone on with, and take no other."""
        self._stopping.stop = True


@dataclass(kw_only=True, eq=False)
class _Hand:
    """A worker as the driver sees it."""

    node: str
    address: str
    actor: Any
    hello: Any
    """The reference of its first answer."""
    ready: bool = False
    units: dict[Any, Unit] = field(default_factory=dict)
    """Under way or waiting there, by reference."""


class Crew:
    """The workers of a cluster, and the units that they have. A context manager; use from one thread.

    Args:
        options: of the command, see :mod:`engine.fleet.__main__`.
        scenarios: whose graphs may be needed.
        bundle: SHA-256 of the manifest that all must have.
        word: that all must see in the output, see :meth:`engine.fleet.store.Store.shown`.

    Raises:
        UsageError: there is no cluster at the address.
    """

    def __init__(self, options: argparse.Namespace, scenarios: Sequence[Scenario], *, bundle: str, word: str) -> None:
        self._options, self._scenarios, self._bundle, self._word = options, tuple(scenarios), bundle, word
        self._hands: list[_Hand] = []
        self._deaths: Counter[str] = Counter()
        """Of workers, by node, since the last unit that was mapped there."""
        self._refused: dict[str, str] = {}
        self._looked_at = 0.0
        self.lost = 0
        """Workers that are gone."""
        try:
            ray.init(
                # Without one Ray would look for a cluster that ran here once, and wait for it although it is gone.
                address=options.address or "local",
                log_to_driver=options.log_level == "debug",
                logging_level=logging.ERROR,
                include_dashboard=False,
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise UsageError(
                f"no Ray cluster answers at {options.address or 'this machine'} ({one_line(error)}): start one with "
                "`ray start --head`, or leave --address away"
            ) from error
        self._lonely_at = time.monotonic()

    @property
    def address(self) -> str:
        """Where the cluster is, in words."""
        return f"Ray at {ray.get_runtime_context().gcs_address}"

    def work(self, book: Book) -> None:
        """Have all units mapped.

        Raises:
            BackendError: no node can map.
            KeyboardInterrupt: a signal came; what was under way is put by.
        """
        try:
            while book.ended < book.total:
                self._look()
                self._feed(book)
                for reference in self._answers(min(book.wait_s() or 0.5, 0.5)):
                    self._take(reference, book)
        except KeyboardInterrupt:
            self._stop()
            raise

    def _look(self) -> None:
        """Have a worker wherever there is room for one."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        here = Counter(hand.node for hand in self._hands)
        alive = [node for node in ray.nodes() if node["Alive"]]
        for node in alive:
            name, resources = node["NodeID"], node["Resources"]
            if name in self._refused:
                continue
            gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
            cpus = self._options.cpus or max(cores // max(gpus, 1), 1)
            for _ in range(here[name], gpus or cores // cpus):
                self._hire(node, cpus, gpu=gpus > 0)
        if self._refused and not self._hands and all(node["NodeID"] in self._refused for node in alive):
            raise BackendError(f"no node can map: {'; '.join(sorted(set(self._refused.values())))}")
        if any(hand.ready for hand in self._hands):
            self._lonely_at = now
        elif now - self._lonely_at > LONELY_S:
            self._lonely_at = now
            log.warning("no worker is ready after %.0f s: see `ray status` for free processors", LONELY_S)

    def _hire(self, node: dict[str, Any], cpus: int, *, gpu: bool) -> None:
        place = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        asked = {"num_cpus": cpus, "num_gpus": int(gpu), "scheduling_strategy": place}
        mapper = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={CONTROL: 1})(_Mapper)
        actor = mapper.options(**asked).remote(self._options, self._scenarios, str(Path.cwd()), cpus)
        address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        hello = actor.hello.remote(self._word)
        self._hands.append(_Hand(node=node["NodeID"], address=address, actor=actor, hello=hello))

    def _feed(self, book: Book) -> None:
        """Give units to workers, one each before any gets a second."""
        for depth in range(1, IN_FLIGHT + 1):
            for hand in self._hands:
                if hand.ready and len(hand.units) < depth and (depth == 1 or book.waiting > len(self._hands)):
                    unit = book.take()
                    if unit is None:
                        return
                    hand.units[hand.actor.map.remote(unit)] = unit

    def _answers(self, longest_s: float) -> list[Any]:
        references = [each for hand in self._hands for each in ((hand.hello,) if not hand.ready else hand.units)]
        if not references:
            time.sleep(longest_s)
            return []
        done, _ = ray.wait(references, num_returns=len(references), timeout=0)
        if not done:
            done, _ = ray.wait(references, num_returns=1, timeout=longest_s)
        return list(done)

    def _take(self, reference: Any, book: Book) -> None:
        """An answer, or the news that a worker is gone."""
        hand = next((each for each in self._hands if reference == each.hello or reference in each.units), None)
        if hand is None:
            return  # its worker was found to be gone by another of its answers
        try:
            answer = ray.get(reference)
        except RayTaskError as error:  # nothing that the actor expects
            self._dismiss(hand, book, f"it failed ({one_line(error.cause)})")
            return
        except RayError as error:
            gone = one_line(error).partition(":")[0] if isinstance(error, RayActorError) else one_line(error)
            self._dismiss(hand, book, f"it is gone ({gone})")
            return
        if isinstance(answer, Hello):
            self._greet(hand, answer)
            return
        unit = hand.units.pop(reference)
        if answer is None:
            book.give_back(unit)
            return
        self._deaths[hand.node] = 0
        book.settle(unit, answer)

    def _greet(self, hand: _Hand, hello: Hello) -> None:
        """Let a worker have units, or refuse its node."""
        why = hello.error
        if hello.version != own_version():
            why = f"it has gemmnet-edge {hello.version}, the driver {own_version()}: install the same"
        elif not why and hello.bundle != self._bundle:
            why = f"its bundle is {hello.bundle[:12]}…, the driver's {self._bundle[:12]}…: copy the same"
        if not why:
            hand.ready = True
            log.info("worker %s on node %s is ready", hello.host, hand.address)
            return
        self._refuse(hand, why)

    def _refuse(self, hand: _Hand, why: str) -> None:
        self._refused[hand.node] = f"node {hand.address} is refused: {why}"
        log.error("%s", self._refused[hand.node])
        for other in [each for each in self._hands if each.node == hand.node and not each.ready]:
            self._hands.remove(other)
            ray.kill(other.actor)

    def _dismiss(self, hand: _Hand, book: Book, why: str) -> None:
        """Its units are for others."""
        self.lost += 1
        self._hands.remove(hand)
        for unit in hand.units.values():
            book.give_back(unit)
        log.warning("the worker on node %s: %s; its %d units are mapped again", hand.address, why, len(hand.units))
        self._deaths[hand.node] += 1
        if self._deaths[hand.node] >= DEATHS:
            self._refuse(hand, f"{DEATHS} workers ended there one after the other, the last: {why}")

    def _stop(self) -> None:
        """Have the units under way put by."""
        with contextlib.suppress(RayError):
            for hand in self._hands:
                hand.actor.stop.options(concurrency_group=CONTROL).remote()
            references = [each for hand in self._hands for each in hand.units]
            if references:
                ray.wait(references, num_returns=len(references), timeout=STOP_S)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_error: object) -> None:
        ray.shutdown()
