"""What a run is asked for. Values alone; :mod:`engine.plan` checks them against the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.backends.options import BackendOptions
from engine.contract.errors import UsageError
from engine.contract.sensors import Sensor
from engine.health.faults import Injection
from engine.live.frame_name import Pattern
from engine.rasters.area import AreaInput
from engine.rasters.raster import RasterInput
from engine.rasters.stretch import Stretch
from engine.resolution import Gsd
from engine.stitcher import Blend

WhenBehind = Literal["block", "drop-oldest"]
PATTERN = Pattern(text="{sensor}_{stamp}.tif")


@dataclass(frozen=True, kw_only=True)
class RasterFiles:
    """A raster for each sensor that may be used: one frame.

    Raises:
        UsageError: there is none.
    """

    paths: Mapping[Sensor, RasterInput]

    def __post_init__(self) -> None:
        if not self.paths:
            raise UsageError("at least one sensor must be alive, received none: give a raster of rgir or ndsm")

    @property
    def sensors(self) -> frozenset[Sensor]:
        """Those that may be used."""
        return frozenset(self.paths)


@dataclass(frozen=True, kw_only=True)
class LandingFolder:
    """A folder in which frames land while the run lasts.

    Raises:
        UsageError: no sensor is expected, or a number is not positive.
    """

    folder: Path
    sensors: frozenset[Sensor] = frozenset(Sensor)
    """Those expected to deliver."""
    pattern: Pattern | None = PATTERN
    """Of file names; None goes by sidecars alone."""
    partner_wait_ms: float = 500.0
    """How long a frame waits for a sensor after the first has delivered."""
    idle_exit_s: float | None = None
    """The run is over when nothing has landed for so long; None waits for a signal."""
    drivers: tuple[str, ...] = ("GTiff",)
    """Drivers of GDAL that may open a frame. A file lands from outside: one of another driver may name files anywhere,
    or make GDAL ask a network for them."""

    def __post_init__(self) -> None:
        if not self.drivers:
            raise UsageError("at least one driver must be allowed, received none: name GTiff in `drivers`")
        if not self.sensors:
            raise UsageError("at least one sensor must deliver, received none: name some in `sensors`")
        check_positive(partner_wait_ms=self.partner_wait_ms, idle_exit_s=self.idle_exit_s)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """Everything a run needs to know.

    Raises:
        UsageError: a number is not positive, or two options contradict each other.
    """

    source: RasterFiles | LandingFolder
    bundle: Path
    output: Path
    require_signature: bool = False
    """Run a bundle that a trusted key has signed and no other, whatever the installation asks for."""
    backend: BackendOptions = field(default_factory=BackendOptions)
    watch: bool = False
    """Judge every sensor in every tile, and map without one that is dead; else all are trusted."""
    health: tuple[str, ...] = ()
    """Changes to the bundle's limits, as :func:`engine.contract.health.parse_limits` takes them."""
    audit_every: int | None = None
    """One tile in so many is mapped by all graphs to judge the sensors; 0 is none, None as the bundle says."""
    halo_px: int | None = None
    """None takes the bundle's."""
    blend: Blend = "hann"
    """``hann`` cross-fades tiles where they overlap; ``none`` lets each write what it owns."""
    rate_hz: float | None = None
    """Tiles a second, as if in flight; None reads as fast as tiles are mapped."""
    when_behind: WhenBehind = "block"
    """What comes too fast waits, or the oldest is dropped: of a paced raster a tile, of a landing folder a frame."""
    deadline_ms: float | None = None
    """What is later than this, from available to written, is counted."""
    inject: tuple[Injection, ...] = ()
    """Faults on purpose; tiles are counted over all frames."""
    overwrite: bool = False
    resume: bool = False
    """Go on with an interrupted run. A landing folder begins where there is nothing to go on behind."""
    rgir_bands: tuple[int, int, int] | None = None
    ndsm_scale_m: float | None = None
    gsd: Gsd = "auto"
    """At which ground sampling distance rasters are mapped; see :mod:`engine.resolution`."""
    stretch: Stretch | None = None
    """How imagery of more than 8 bits becomes 8; None refuses it."""
    area: AreaInput | None = None
    """The part of the rasters that is mapped; None: all. See :mod:`engine.rasters.area`."""
    readers: int | None = None
    """Threads that decode a raster; None is as many as the backend leaves room for."""
    probabilities: bool = False
    """Write the probability of each class as well."""

    def __post_init__(self) -> None:
        if self.overwrite and self.resume:
            raise UsageError("overwrite=True starts over and resume=True goes on: pass one of them")
        check_positive(rate_hz=self.rate_hz, deadline_ms=self.deadline_ms)
        if self.readers is not None and self.readers < 1:
            raise UsageError(f"`readers` must be at least 1, received {self.readers}")
        if self.audit_every is not None and self.audit_every < 0:
            raise UsageError(f"audit_every must be at least 0, received {self.audit_every}")
        if not self.watch and (self.health or self.inject):
            name = "inject" if self.inject else "health"
            raise UsageError(f"`{name}` needs sensors that are watched: pass watch=True")
        if self.inject and self.resume:
            raise UsageError("a run with `inject` cannot be resumed: start over with overwrite=True")
        for injection in self.inject:
            if injection.sensor not in self.source.sensors:
                names = ", ".join(sensor for sensor in Sensor if sensor in self.source.sensors)
                raise UsageError(f"`inject` names {injection.sensor}, but the run reads {names}: add that sensor")
        if isinstance(self.source, LandingFolder):
            if self.stretch is not None:
                self.stretch.check_for_frames()
            if self.area is not None:
                raise UsageError("frames of a landing folder are mapped whole: leave `area` away")
            if self.rate_hz is not None:
                raise UsageError("a landing folder is read at its own pace: leave rate_hz away")
        elif self.when_behind == "drop-oldest" and self.rate_hz is None:
            raise UsageError("when_behind drop-oldest needs rate_hz: without it every tile is waited for")


def check_positive(**numbers: float | None) -> None:
    """See that every number that is given is above zero and finite.

    Raises:
        UsageError: one is not.
    """
    for name, number in numbers.items():
        if number is not None and not 0 < number < float("inf"):
            raise UsageError(f"{name} must be a positive number, received {number:g}")
