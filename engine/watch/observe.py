"""Who watches a run from outside: systemd where it runs as a service, and Prometheus if asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.backends.base import BackendInfo
from engine.backends.resilient import BackendEvent
from engine.contract.errors import UsageError
from engine.watch.endpoint import Endpoint, parse_address
from engine.watch.systemd import ServiceManager
from engine.watch.vitals import Vitals

if TYPE_CHECKING:
    from engine.watch.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is to be told what while a run is watched."""

    vitals: Vitals
    metrics: Metrics | None
    observers: tuple[Vitals | ServiceManager | Metrics, ...]
    """Of the run's tiles; the two above are among them."""

    @property
    def source_waits(self) -> Callable[[bool], None]:
        """To be told, from any thread, when the source begins (True) and ceases (False) to wait for the world."""
        return self.vitals.source_waits

    def backend_event(self, event: BackendEvent, backend: BackendInfo) -> None:
        """To be told what happened to a backend, and which one infers now."""
        if self.metrics is not None:
            self.metrics.backend_event(event, backend)


@contextmanager
def watched(*, metrics: str | None, deadline_s: float | None, stall_s: float) -> Iterator[Watch]:
    """Watch the run within the block; how the block ends is how the run ended, for whoever asks in its last moment.

    Args:
        metrics: where to serve ``/metrics`` and ``/healthz``, such as ``:9102``; None does not.
        deadline_s: tiles later than that are counted.
        stall_s: ``/healthz`` answers 503 when a tile is due and none was done for so long.

    Raises:
        UsageError: ``metrics`` is no address that this process can listen on, or prometheus-client is not installed.
    """
    vitals = Vitals()
    with ExitStack() as stack:
        counted = None if metrics is None else _counted(vitals, deadline_s)
        if counted is not None and metrics is not None:
            stack.enter_context(Endpoint(parse_address(metrics), counted, vitals, stall_s=stall_s))
        service = stack.enter_context(ServiceManager.from_environment(vitals))
        observers = (vitals, service) if counted is None else (vitals, counted, service)
        try:
            yield Watch(vitals=vitals, metrics=counted, observers=observers)
        except BaseException as error:
            vitals.failed(f"{type(error).__name__}: {error}")
            raise
        vitals.finished()


def _counted(vitals: Vitals, deadline_s: float | None) -> Metrics:
    try:
        from engine.watch.metrics import Metrics
    except ImportError as error:
        raise UsageError(
            f"--metrics needs prometheus-client, which cannot be imported ({error}): pip install prometheus-client"
        ) from error
    return Metrics(vitals, deadline_s=deadline_s)
