"""A fleet of one process: ``engine.run --list``, and a shard of a list for batch services."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.contract.atomic import write_whole
from engine.contract.bundle import Bundle
from engine.contract.errors import InterruptedRunError, TilesLostError, UnitsFailedError, UsageError, writing
from engine.contract.sensors import Scenario, Sensor, parse_sensors, scenarios_within
from engine.fleet.book import NAME, UNITS_NAME, Book, FleetRecord
from engine.fleet.console import FleetTeller, JsonUnits, UnitBar
from engine.fleet.forecast import print_forecast
from engine.fleet.lists import read_units
from engine.fleet.store import Store
from engine.fleet.stores import store_at
from engine.fleet.units import RASTER_OPTIONS, Unit
from engine.fleet.worker import UnitState, Worker
from engine.options import pattern_of
from engine.rasters.mosaic import mosaic_vrts
from engine.rasters.names import RasterName
from engine.report.fleet import write_fleet_report
from engine.request import check_positive

OUTPUT = Path("segmented-list")
"""Where results go when --output does not say."""
_ONE_RASTER = (
    *RASTER_OPTIONS,
    "live",
    "partner_wait",
    "idle_exit",
    "live_driver",
    "rate",
    "inject",
    "metrics",
    "serve",
    "base_layer",
)
"""Options that belong to a single raster or to a flight."""


def map_list(options: argparse.Namespace) -> FleetRecord:
    """Map the units of a list in this process, or those of a shard; see :func:`drive` for the errors.

    Args:
        options: of ``engine.run``; ``list`` is given.
    """
    units, store = listed(options), store_at(options.output or OUTPUT)
    with Worker(options, store, scenarios_of(units, options)) as worker, store.shown():  # which shows that it can be

        def work(book: Book, teller: FleetTeller) -> None:
            while book.ended < book.total:
                unit = book.take()
                if unit is None:
                    time.sleep(book.wait_s() or 0.0)
                else:
                    book.settle(unit, worker.map(unit, teller))

        return drive(options, units, store, work, bundle=worker.bundle, where=worker.name)


def dry_run(options: argparse.Namespace) -> int:
    """Say what would be mapped; returns the exit code."""
    check_positive(speed=options.speed, price=options.price)
    print_forecast(options, listed(options))
    return 0


def drive(
    options: argparse.Namespace,
    units: Sequence[Unit],
    store: Store,
    work: Callable[[Book, FleetTeller], None],
    *,
    bundle: Bundle,
    where: str,
) -> FleetRecord:
    """Have the units of a list mapped, and keep the books.

    Args:
        options: of the command.
        units: to be mapped.
        store: where to.
        work: maps all that the book hands out.
        bundle: the model.
        where: who maps, in words.

    Raises:
        UsageError: the options contradict each other, or the list cannot be used.
        BundleError, BackendError: nothing can be mapped.
        InterruptedRunError: a signal came. What is done stays done.
        UnitsFailedError: some units failed; the others are published.
        TilesLostError: all are published, but some lack tiles.
    """
    with teller_of(options) as teller, Book(units, store.books, tell=teller.unit) as book:
        teller.begin(len(units), where)
        ended = "complete"
        try:
            work(book, teller)
        except (InterruptedRunError, KeyboardInterrupt):
            ended = "interrupted"
        record, names = book.close(bundle=bundle.digest, ended=ended, shard=options.shard)
        vrts = mosaic_vrts({f"{unit}/classes.tif": grid for unit, grid in book.placed.items()}, bundle.manifest.classes)
        for name, content in vrts.items() if options.shard is None else ():
            with writing(store.books / name):
                write_whole(store.books / name, content, durable=True)
        report = [] if options.shard is not None else [write_fleet_report(store.books, record, names[0]).name]
        for name in (*names, *(vrts if options.shard is None else ()), *report):
            store.keep(name)
        teller.end(record, str(options.output or OUTPUT))
    check_whole(record, options.output or OUTPUT)
    return record


def listed(options: argparse.Namespace) -> list[Unit]:
    """The units that are asked for.

    Raises:
        UsageError: the options contradict each other, or the list cannot be used.
    """
    for name in _ONE_RASTER:
        if getattr(options, name) is not None:
            raise UsageError(f"--list maps many rasters: leave --{name.replace('_', '-')} away")
    named = None if options.sensors in (None, "auto") else parse_sensors(options.sensors)
    sensor = next(iter(named)) if named is not None and len(named) == 1 else None
    pattern = pattern_of(options.pattern)
    if pattern is None:
        raise UsageError("--pattern sidecar belongs to --live: name files of a list by a pattern, or in a CSV")
    units = read_units(options.list, sensor=sensor, pattern=pattern)
    if options.shard is None:
        return units
    number, of = parse_shard(options.shard)
    return units[number::of]


def parse_shard(text: str) -> tuple[int, int]:
    """``"3/10"``: the fourth of ten, for they are counted from 0 as batch services count.

    Raises:
        UsageError: it is something else.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise UsageError(f"--shard takes I/N with I from 0 to N - 1, as in 0/4 to 3/4; received {text!r}")
    return int(found[1]), int(found[2])


def scenarios_of(units: Sequence[Unit], options: argparse.Namespace) -> tuple[Scenario, ...]:
    """Whose graphs the units may need, fullest first."""
    given: set[Sensor] = set()
    needed: set[Scenario] = set()
    for kind in {unit.sensors for unit in units}:
        needed |= set(scenarios_within(kind))
        given |= kind
    if options.sensors not in (None, "auto"):
        needed &= set(scenarios_within(parse_sensors(options.sensors)))
    return tuple(scenario for scenario in Scenario if scenario in needed)


def teller_of(options: argparse.Namespace) -> FleetTeller:
    """Who says what happens, as the options ask."""
    return JsonUnits() if options.json else FleetTeller() if options.quiet else UnitBar()


def check_whole(record: FleetRecord, output: RasterName) -> None:
    """The exit code says what is missing.

    Raises:
        InterruptedRunError, UnitsFailedError, TilesLostError: something is.
    """
    done, failed = sum(record.states.values()), record.states[UnitState.FAILED]
    if record.ended == "interrupted":
        raise InterruptedRunError(f"stopped after {done} of {record.units} units; repeat the command to finish")
    if failed:
        names = ", ".join(list(record.failed)[:3]) + (", …" if failed > 3 else "")
        others = ", the others are mapped" if failed < record.units else ""
        raise UnitsFailedError(
            f"{failed} of {record.units} units failed ({names}){others}: {NAME} and {UNITS_NAME} in {output} say why; "
            "mend them and repeat the command"
        )
    if record.incomplete:
        raise TilesLostError(
            f"{record.incomplete} of {record.units} maps in {output} lack tiles, or hold no pixel with data: column "
            f"tiles_lost of {UNITS_NAME}, and tiles.csv of each"
        )
