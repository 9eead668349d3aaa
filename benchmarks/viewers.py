"""What the live map costs a flight: latency without it, with its page, and with browsers that look on.

    python -m benchmarks.viewers                     3 rounds of 60 tiles at 2 a second; no page, 0 and 10 browsers
    python -m benchmarks.viewers --rate 5Hz --browsers 1,10

Each flight is one ``engine.run`` in a process of its own over a virtual raster; flights of one round follow each other.
A browser is a thread that does what the page does: it listens to ``/events`` and asks for the squares that changed, the
whole map at a glance and the newest tile in full, at most every :data:`REFRESH_S`. Browsers draw nothing and run at the
lowest priority, for real ones are elsewhere; the page's process is part of what is measured. ``none`` is a flight
without ``--serve``. At last a real Chromium looks on, by Playwright, while a sensor dies and comes back: ``shown_s`` is
the longest time from a switch being mapped to the page showing it. Exit codes: 0 done; else that of a flight.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np

from benchmarks.command import parser_of
from benchmarks.conditions import ROOT, conditions, write_csv
from benchmarks.rasters import write_flight
from engine.contract.bundle import Bundle
from engine.contract.sensors import Sensor
from engine.health.faults import parse_faults
from engine.job import TileReport
from engine.observer import Observer, Observers
from engine.request import RasterFiles, RunRequest
from engine.runner import run
from engine.tile_log import read_tile_log
from engine.view.address import listen
from engine.view.observer import Page

REFRESH_S = 1.0
"""As in the page (engine/view/static/map.js)."""
SQUARE_PX = 512
FAULTS = "ndsm:dead@4-8,ndsm:dead@14-18"


class Browser(threading.Thread):
    """Looks on until the server ends."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self.events = self.squares = self.bytes = 0

    def run(self) -> None:
        """Listen, and look at what changed."""
        if hasattr(os, "SCHED_IDLE"):  # of this thread alone
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
        while not self.events:
            try:
                self._look()
            except (OSError, HTTPException):
                time.sleep(0.2)

    def _look(self) -> None:
        stream = HTTPConnection("127.0.0.1", self._port, timeout=60)
        squares = HTTPConnection("127.0.0.1", self._port, timeout=60)
        stream.request("GET", "/events")
        answer = stream.getresponse()
        height = width = 1
        looked = 0.0
        for line in answer:
            if not line.startswith(b"data: {") or len(line) < 20:
                continue
            told = json.loads(line[6:])
            self.events += 1
            for frame in told["frames"]:
                height, width = frame["height"], frame["width"]
            painted = told.get("painted") or []
            if painted and time.monotonic() - looked >= REFRESH_S:
                looked = time.monotonic()
                _, row, col, *_ = painted[-1]
                level = max(0, (max(height, width) - 1).bit_length() - SQUARE_PX.bit_length())
                for place in (f"{level}/0/0", f"0/{col // SQUARE_PX}/{row // SQUARE_PX}"):
                    squares.request("GET", f"/tiles/0/classes/{place}?v={told['sequence']}")
                    self.bytes += len(squares.getresponse().read())
                    self.squares += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Fly, print, write the CSV."""
    parser = parser_of("viewers", __doc__, result="viewers.csv")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of all flights (default: 3)")
    parser.add_argument("--tiles", type=int, default=60, metavar="N", help="of each flight (default: 60)")
    parser.add_argument(
        "--rate", default="2Hz", metavar="HZ", help="tiles a second (default: 2Hz); 0 is as fast as it can"
    )
    parser.add_argument("--browsers", default="0,10", metavar="N,N", help="that look on (default: 0,10)")
    options = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="viewers-") as name:
        folder = Path(name)
        paths = write_flight(folder, Bundle.load(options.bundle).manifest, options.tiles)
        command = [sys.executable, "-m", "engine.run", "--bundle", str(options.bundle.resolve()), "--quiet"]
        command += [word for sensor, path in paths.items() for word in (f"--{sensor}", str(path))]
        command += [] if options.rate == "0" else ["--rate", options.rate]
        for number in range(options.rounds):
            for browsers in (None, *map(int, options.browsers.split(","))):
                row = fly(command, folder / "map", browsers)
                if isinstance(row, int):
                    return row
                rows.append({"round": number, "rate": options.rate, **row, **conditions("openvino")})
                print(", ".join(f"{key} {value}" for key, value in [*rows[-1].items()][:10]), file=sys.stderr)
            write_csv(options.out, rows)
        shown_s = seen_in_chromium(paths, options.bundle, folder / "seen")
    if shown_s is not None:
        rows = [{**row, "shown_s": round(shown_s, 2)} for row in rows]
        write_csv(options.out, rows)
        print(f"a switch is on the page of Chromium after {shown_s:.2f} s at the most")
    show(rows)
    print(f"written: {options.out}")
    return 0


def fly(command: Sequence[str], output: Path, browsers: int | None) -> dict[str, object] | int:
    """One flight, or the exit code of one that failed."""
    page: list[str] = []
    looking: list[Browser] = []
    if browsers is not None:
        free, invitation = listen("--serve", ":0")
        free.close()
        page = ["--serve", str(invitation.address)]
        looking = [Browser(invitation.address.port) for _ in range(browsers)]
    flight = subprocess.Popen([*command, *page, "--overwrite", "--output", str(output)], cwd=ROOT)
    for browser in looking:
        browser.start()
    if flight.wait():
        return flight.returncode
    for browser in looking:
        browser.join(5)
    times = np.array([row.latency_ms for row in read_tile_log(output / "tiles.csv")][5:])  # the first warm up
    told = json.loads((output / "run.json").read_text())
    p50, p90, p99 = np.percentile(times, (50, 90, 99))
    return {
        "browsers": "none" if browsers is None else browsers,
        "tiles": len(times),
        "p50_ms": round(float(p50), 1),
        "p90_ms": round(float(p90), 1),
        "p99_ms": round(float(p99), 1),
        "tiles_per_s": told["performance"]["tiles_per_s"],
        "events": sum(each.events for each in looking),
        "squares": sum(each.squares for each in looking),
        "mbytes": round(sum(each.bytes for each in looking) / 1e6, 2),
    }


class Switches(Observer):
    """When they were mapped."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def tile_done(self, report: TileReport) -> None:
        """One more tile."""
        if report.switched:
            self.at.append(time.monotonic())


def seen_in_chromium(paths: Mapping[Sensor, Path], bundle: Path, output: Path) -> float | None:
    """The longest time until a switch is on the page, in seconds; None where there is no browser."""
    program = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
    try:
        from playwright.sync_api import TimeoutError, sync_playwright
    except ImportError:
        program = None
    if program is None:
        print("no Chromium with Playwright here: shown_s is left out", file=sys.stderr)
        return None
    page, switches, late = Page("127.0.0.1:0", output), Switches(), []
    request = RunRequest(
        source=RasterFiles(paths=paths),
        bundle=bundle,
        output=output,
        watch=True,
        rate_hz=2.0,
        inject=parse_faults(FAULTS),
    )
    with page as teller, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        seen = browser.new_page()
        seen.goto(page.invitation.url)
        flight = threading.Thread(target=run, args=(request, Observers([teller, switches])))
        flight.start()
        try:
            for number in range(2 * FAULTS.count("@")):
                seen.locator("#switches button").nth(number).wait_for(timeout=60_000)
                late.append(time.monotonic() - switches.at[number])
        except TimeoutError:
            print(f"Chromium shows {len(late)} switches: more tiles make more of them", file=sys.stderr)
        browser.close()
        flight.join()
    return max(late, default=None)


def show(rows: Sequence[dict[str, object]]) -> None:
    """Medians over rounds, and their ratios to a flight without the page."""
    kinds = list(dict.fromkeys(row["browsers"] for row in rows))

    def median(kind: object, column: str) -> float:
        return float(np.median([float(str(row[column])) for row in rows if row["browsers"] == kind]))

    for kind in kinds:
        ratios = ", ".join(
            f"{column} {median(kind, column):.1f} ({median(kind, column) / median('none', column):.3f})"
            for column in ("p50_ms", "p90_ms", "p99_ms", "tiles_per_s")
        )
        print(f"browsers {kind}: {ratios}")


if __name__ == "__main__":
    sys.exit(main())
