"""Who watches a run from outside: systemd where it runs as a service, and Prometheus if asked to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.contract.errors import UsageError
from engine.observer import Observer
from engine.telemetry.endpoint import Endpoint, parse_address
from engine.telemetry.status import RunStatus
from engine.telemetry.systemd import ServiceManager

if TYPE_CHECKING:
    from engine.telemetry.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class Watchers:
    """Who watches a run from outside."""

    status: RunStatus
    metrics: Metrics | None
    observers: tuple[Observer, ...]
    """The two above are among them."""


@contextmanager
def watched(*, metrics: str | None, deadline_ms: float | None, stall_s: float) -> Iterator[Watchers]:
    """Watch the run within the block; how the block ends is how the run ended, for whoever asks in its last moment.

    Args:
        metrics: where to serve ``/metrics`` and ``/healthz``, such as ``:9102``; None does not.
        deadline_ms: tiles later than that are counted.
        stall_s: ``/healthz`` answers 503 when a tile is due and none was done for so long.

    Raises:
        UsageError: ``metrics`` is no address that this process can listen on, or prometheus-client is not installed.
    """
    status = RunStatus()
    with ExitStack() as stack:
        counted = None if metrics is None else _counted(status, deadline_ms)
        if counted is not None and metrics is not None:
            stack.enter_context(Endpoint(parse_address(metrics), counted, status, stall_s=stall_s))
        service = stack.enter_context(ServiceManager.from_environment(status))
        observers = (status, service) if counted is None else (status, counted, service)
        try:
            yield Watchers(status=status, metrics=counted, observers=observers)
        except BaseException as error:
            status.failed(f"{type(error).__name__}: {error}")
            raise
        status.succeeded()


def _counted(status: RunStatus, deadline_ms: float | None) -> Metrics:
    try:
        from engine.telemetry.metrics import Metrics
    except ImportError as error:
        raise UsageError(
            f"`metrics` needs prometheus-client, which cannot be imported ({error}): pip install prometheus-client"
        ) from error
    return Metrics(status, deadline_s=None if deadline_ms is None else deadline_ms / 1e3)
