"""The folder of device plans: written whole or not at all, verified before a byte reaches TensorRT.

``python -m export.build`` writes two files per plan into a cache folder (``plans/`` under the bundle unless told
otherwise); the runtime loads nothing that has no record::

    full-int8-3f9c0a61b2d4.plan     the serialised engine
    full-int8-3f9c0a61b2d4.json     :class:`~engine.contract.plans.CachedPlan`

The twelve digits are of :attr:`~engine.contract.plans.PlanKey.digest`. The hashes find damage and mix-ups, not an
attacker who can write to the folder: a plan holds device code and is to be trusted like a program. It never holds host
code.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from engine.contract.atomic import write_whole
from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import BackendUnavailableError, IntegrityError, OutputError
from engine.contract.files import FileRef
from engine.contract.formats import MalformedError, from_json, read_file
from engine.contract.plans import RECORD_VERSION, CachedPlan, Device, PlanAudit, PlanHost, PlanKey, refusal
from engine.contract.sensors import Scenario

log = logging.getLogger(__name__)

CACHE_NAME = "plans"
PLAN_SUFFIX = ".plan"
RECORD_SUFFIX = ".json"
RECORD_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """A record that was read, and the folder it was read from. The plan itself is not verified until :meth:`read`."""

    folder: Path
    record: CachedPlan = field(repr=False)

    @property
    def path(self) -> Path:
        """The serialised engine."""
        return self.folder / self.record.plan.path

    def read(self) -> bytes:
        """The serialised engine, of the size and SHA-256 that its record names.

        Raises:
            IntegrityError: it is missing, truncated, damaged, or another plan's.
        """
        key, plan = self.record.key, self.record.plan
        again = "run `python -m export.build` on its bundle again, which replaces damaged plans"
        try:
            content = read_file(self.path, plan.size_bytes + 1)
        except OSError as error:
            raise IntegrityError(f"{self.path}: recorded but cannot be read ({error.strerror}): {again}") from error
        except MalformedError as error:
            raise IntegrityError(f"{self.path}: recorded but {error}: {again}") from error
        if len(content) != plan.size_bytes:
            raise IntegrityError(f"{self.path}: {plan.size_bytes} bytes were built, found {len(content)}: {again}")
        found = hashlib.sha256(content).hexdigest()
        if found != plan.sha256:
            raise IntegrityError(
                f"{self.path}: is not the plan that was built for {key.scenario} in {key.precision} "
                f"(sha256 {plan.sha256[:12]}…, found {found[:12]}…): {again}"
            )
        return content

    def with_latency(self, latency_ms: float, device: Device) -> StoredPlan:
        """The same plan with a measured latency, also on disk.

        Raises:
            OutputError: the record cannot be written.
        """
        record = replace(
            self.record,
            latency_ms=latency_ms,
            latency_device=device.model,
            latency_power_mode=device.power_mode,
        )
        write_cached(self.folder / f"{record.key.stem}{RECORD_SUFFIX}", _encode(record))
        return replace(self, record=record)


def default_cache(bundle: Bundle) -> Path:
    """Where plans of a bundle are kept unless the user says otherwise."""
    return bundle.root / CACHE_NAME


def save_plan(
    cache: Path, key: PlanKey, content: bytes, *, audit: PlanAudit, build_s: float, now: float | None = None
) -> StoredPlan:
    """Write a plan and then its record, each whole or not at all: a plan without a record does not exist.

    Raises:
        OutputError: the folder cannot be written.
    """
    record = CachedPlan(
        key=key,
        plan=FileRef(
            path=f"{key.stem}{PLAN_SUFFIX}", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        ),
        audit=audit,
        created_utc=datetime.fromtimestamp(time.time() if now is None else now, UTC).isoformat(timespec="microseconds"),
        build_s=build_s,
    )
    stored = StoredPlan(folder=cache, record=record)
    write_cached(stored.path, content)
    write_cached(cache / f"{key.stem}{RECORD_SUFFIX}", _encode(record))
    return stored


def load_plan(cache: Path, key: PlanKey) -> StoredPlan | None:
    """The plan of exactly this key; None when there is none.

    Raises:
        IntegrityError: its record is malformed or belongs to another plan.
    """
    path = cache / f"{key.stem}{RECORD_SUFFIX}"
    return _read_record(path) if path.exists() else None


def stored_plans(
    cache: Path, scenario: Scenario | None = None, precision: Precision | None = None
) -> Iterator[StoredPlan]:
    """Every plan with a record, by name; those that an earlier version of this program wrote are passed over.

    Raises:
        IntegrityError: a record is malformed or belongs to another plan.
    """
    for path in sorted(cache.glob(f"{scenario or '*'}-{precision or '*'}-*{RECORD_SUFFIX}")):
        plan = _read_record(path)
        if plan is None:
            log.info("%s was written by an earlier version of this program: delete it, it is not loaded any more", path)
        else:
            yield plan


def find_plan(
    bundle: Bundle,
    scenario: Scenario,
    precision: Precision,
    host: PlanHost,
    *,
    cache: Path | None = None,
    batch: int | None = None,
    probabilities: bool = False,
) -> StoredPlan:
    """The newest plan of a graph that ``host`` may load; one without ``probabilities`` first where they are not wanted.

    Raises:
        ManifestError: the bundle has no such graph.
        BackendUnavailableError: there is none; the message says why each that is there is refused, and what to run.
        IntegrityError: a record is malformed.
    """
    bundle.graph(scenario, precision)
    folder = cache or default_cache(bundle)
    refused = []
    for plan in sorted(stored_plans(folder, scenario, precision), key=_preference)[::-1]:
        why = refusal(plan.record, bundle, host, batch=batch, probabilities=probabilities)
        if why is None:
            return plan
        refused.append(f"{plan.path.name} {why}")
    options = ["--bundle", str(bundle.root), *(["--cache", str(cache)] if cache else []), "--precision", precision]
    options += ["--probabilities"] if probabilities else []
    raise BackendUnavailableError(
        f"{scenario} in {precision} needs a plan for {host.library} {host.library_version} in {folder}; "
        f"{'; '.join(refused) or 'there is none'}: run `python -m export.build {' '.join(options)}`"
    )


def usable_plans(
    bundle: Bundle,
    host: PlanHost,
    *,
    cache: Path | None = None,
    batch: int | None = None,
    probabilities: bool = False,
) -> Mapping[Scenario, Mapping[Precision, StoredPlan]]:
    """The plan of each graph that :func:`find_plan` would take; a graph without one is left out.

    Raises:
        IntegrityError: a record is malformed.
    """
    usable: dict[Scenario, dict[Precision, StoredPlan]] = {}
    for plan in sorted(stored_plans(cache or default_cache(bundle)), key=_preference):
        if refusal(plan.record, bundle, host, batch=batch, probabilities=probabilities) is None:
            usable.setdefault(plan.record.key.scenario, {})[plan.record.key.precision] = plan
    return usable


def choose(plans: Iterable[StoredPlan], device: Device) -> tuple[StoredPlan, str]:
    """Which of several plans of one scenario to run when the user does not say, and the reason in words.

    fp16 unless another one is measured to be faster on this device: int8 costs accuracy, so it has to earn its place
    (with no fp16 plan, fp32 holds that place, and then int8 itself).

    Args:
        plans: at least one, each of another precision.
        device: that will run it; latencies of other devices, or in another power mode, do not count.
    """
    by_precision = {plan.record.key.precision: plan for plan in plans}
    order: tuple[Precision, ...] = ("fp16", "fp32", "int8")
    candidates = [by_precision[precision] for precision in order if precision in by_precision]
    default = candidates[0]
    measured = {
        plan.record.key.precision: plan.record.latency_ms
        for plan in candidates
        if plan.record.latency_ms is not None and _measured_on(plan.record, device)
    }
    here = device.name if device.power_mode is None else f"{device.name} in power mode {device.power_mode}"
    name = default.record.key.precision
    if len(candidates) == 1:
        return default, f"{name}: the only plan"
    if name not in measured or len(measured) == 1:
        return default, f"{name}: its latency beside the others has not been measured on {here}"
    fastest = min(measured, key=lambda precision: measured[precision])  # the first of equals
    times = ", ".join(f"{precision} {latency:.2f} ms" for precision, latency in measured.items())
    return by_precision[fastest], f"{fastest}: fastest on {here} ({times})"


def save_hint(path: Path, content: bytes, otherwise: str) -> None:
    """Keep what only saves time, with its SHA-256 in front; ``otherwise`` says what it costs if it is not kept."""
    try:
        sealed = hashlib.sha256(content).digest() + content
        if not (path.exists() and path.read_bytes() == sealed):
            write_cached(path, sealed)
    except (OSError, OutputError) as error:
        log.warning("%s: %s", otherwise, str(error))


def load_hint(path: Path, otherwise: str) -> bytes:
    """What :func:`save_hint` kept; empty if it is not there, cannot be read or is damaged, which is logged."""
    try:
        sealed = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        log.warning("%s: %s cannot be read (%s)", otherwise, path, error.strerror)
        return b""
    digest, content = sealed[: hashlib.sha256().digest_size], sealed[hashlib.sha256().digest_size :]
    if hashlib.sha256(content).digest() != digest:
        log.warning("%s: %s is damaged, and is written anew", otherwise, path)
        return b""
    return content


def write_cached(path: Path, content: bytes) -> None:
    """Write a file of the cache folder, or leave what is there as it is.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        write_whole(path, content, durable=True)
    except OSError as error:
        raise OutputError(
            f"plans are kept in {path.parent}, which cannot be written ({error.strerror}): choose another folder"
        ) from error


def _preference(plan: StoredPlan) -> tuple[bool, str]:
    """Grows with how much a plan is wanted, among those that may be loaded."""
    return not plan.record.key.probabilities, plan.record.created_utc


def _measured_on(record: CachedPlan, device: Device) -> bool:
    return (record.latency_device, record.latency_power_mode) == (device.model, device.power_mode)


class _Version(msgspec.Struct):
    """What every version of a record has."""

    record_version: int


def _read_record(path: Path) -> StoredPlan | None:
    """None for a record of an earlier version, which holds less than is asked of a plan today."""
    again = "delete it and run `python -m export.build` again"
    try:
        content = read_file(path, RECORD_LIMIT_BYTES)
        if from_json(content, _Version).record_version < RECORD_VERSION:
            return None
        record = from_json(content, CachedPlan)
    except (OSError, MalformedError) as error:
        raise IntegrityError(f"{path} is not a plan's record: {error}: {again}") from error
    if record.record_version != RECORD_VERSION:
        raise IntegrityError(f"{path}: record_version must be {RECORD_VERSION}, found {record.record_version}: {again}")
    if not path.stem == record.key.stem == record.plan.path.removesuffix(PLAN_SUFFIX):
        raise IntegrityError(
            f"{path}: a record's file bears the name of its plan, but this one describes {record.plan.path}, "
            f"{record.key.scenario} in {record.key.precision}: {again}"
        )
    return StoredPlan(folder=path.parent, record=record)


def _encode(record: CachedPlan) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
