"""What Prometheus scrapes and what /healthz answers, over real sockets."""

from __future__ import annotations

import json
import platform
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.backends.resilient import BackendEvent, What
from engine.contract.errors import UsageError
from engine.contract.sensors import Scenario, Sensor
from engine.health.faults import parse_faults
from engine.health.monitor import Fault, State, Verdict
from engine.observer import Observers
from engine.telemetry import endpoint
from engine.telemetry.endpoint import MAX_CLIENTS, Endpoint, parse_address
from engine.telemetry.metrics import Metrics
from engine.telemetry.observe import Watchers, watched
from engine.telemetry.status import RunStatus
from engine.version import own_version
from tests.engine.flight_scene import flight_scene
from tests.engine.runs import request_for, run_told
from tests.engine.test_run_status import ALIVE, BACKEND, FROZEN, PLAN, Clock, tile_report

ROOT = Path(__file__).parent.parent.parent
NO_DATA = Verdict(state=State.DEAD, fault=Fault.NO_DATA, detail="no valid pixel")
BROKEN = Verdict(state=State.DEAD, fault=Fault.READ_ERROR, detail="block 3 is gone")
NOISY = Verdict(state=State.DEGRADED, fault=Fault.NOISE, detail="9 DN, limit 4")
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scraped:
    """One scrape, by name and labels."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self.series: Series = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: object) -> float:
        return self.series[f"gemmnet_{name}", frozenset((key, str(value)) for key, value in labels.items())]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run_status(clock: Clock) -> RunStatus:
    return RunStatus(clock)


@pytest.fixture
def metrics(run_status: RunStatus) -> Metrics:
    return Metrics(run_status, deadline_s=0.16)


@pytest.fixture
def server(metrics: Metrics, run_status: RunStatus) -> Iterator[Endpoint]:
    with Endpoint(parse_address(":0"), metrics, run_status, stall_s=10) as listening:
        yield listening


def get(server: Endpoint, path: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    try:
        with urllib.request.urlopen(f"http://{server.address}{path}", timeout=20) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def scrape(server: Endpoint) -> Scraped:
    status, kind, text = get(server, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    return Scraped(text)


def health(server: Endpoint) -> tuple[int, dict]:
    status, kind, text = get(server, "/healthz")
    assert kind == "application/json"
    return status, json.loads(text)


def test_tiles_are_counted_by_what_became_of_them(server, metrics) -> None:
    metrics.started(PLAN, BACKEND, first_tile=0)
    metrics.tile_done(tile_report(0))
    metrics.tile_done(tile_report(1, Scenario.MISSING_NDSM, Scenario.FULL, switched=True))
    metrics.tile_done(tile_report(2, Scenario.MISSING_NDSM, latency_s=0.17))
    metrics.tile_done(tile_report(3, scenarios=(), skipped=True, latency_s=9.0))
    metrics.tile_done(tile_report(4, scenarios=(), verdicts={Sensor.RGIR: BROKEN, Sensor.NDSM: FROZEN}))
    metrics.tile_done(
        tile_report(5, scenarios=(), verdicts={Sensor.RGIR: NO_DATA, Sensor.NDSM: NO_DATA}, queue_depth=4)
    )
    told = scrape(server)
    assert {name: told("tiles_total", scenario=name) for name in (*Scenario, "none")} == {
        Scenario.FULL: 1,
        Scenario.MISSING_NDSM: 2,
        Scenario.MISSING_RGIR: 0,
        "none": 3,
    }
    assert [told("inferences_total", scenario=each) for each in Scenario] == [2, 2, 0]
    assert told("switches_total", scenario="missing_ndsm") == 1
    assert told("tiles_lost_total", reason="dropped") == 1
    assert told("tiles_lost_total", reason="no_sensor") == 1, "where nobody could have seen anything, nothing is lost"
    assert told("deadline_misses_total") == 1, "a dropped tile is lost, not late"
    assert told("deadline_seconds") == 0.16
    assert told("queue_depth") == 4
    metrics.publishing()
    assert scrape(server)("queue_depth") == 0


def test_the_latency_histogram_agrees_with_numpy_and_has_the_deadline_as_a_bucket(server, metrics) -> None:
    seconds = np.random.default_rng(0).lognormal(-2, 1.5, 300)
    for index, latency_s in enumerate(seconds):
        metrics.tile_done(tile_report(index, latency_s=float(latency_s), read_s=float(latency_s / 2)))
    told = scrape(server)
    bounds = {
        dict(labels)["le"]
        for name, labels in told.series
        if name == "gemmnet_tile_latency_seconds_bucket" and ("scenario", "full") in labels
    }
    assert {"0.01", "0.16", "10.0", "+Inf"} <= bounds
    for bound in bounds:
        expected = (seconds <= float(bound)).sum()
        assert told("tile_latency_seconds_bucket", scenario="full", le=bound) == expected
    assert told("tile_latency_seconds_sum", scenario="full") == pytest.approx(seconds.sum())
    assert told("deadline_misses_total") == (seconds > 0.16).sum()
    assert told("tile_stage_seconds_sum", stage="read") == pytest.approx(seconds.sum() / 2)
    assert told("tile_stage_seconds_count", stage="write") == 300


def test_a_sensor_is_in_one_state_at_a_time_and_faults_are_counted_by_kind(server, metrics) -> None:
    for ndsm in (ALIVE, NOISY, NOISY, FROZEN, NO_DATA, FROZEN, ALIVE):
        metrics.tile_done(tile_report(verdicts={Sensor.RGIR: ALIVE, Sensor.NDSM: ndsm}))
        if ndsm is not NO_DATA:
            told = scrape(server)
            assert {state: told("sensor_state", sensor="ndsm", state=state) for state in State} == {
                state: float(state is ndsm.state) for state in State
            }
    assert told("sensor_state", sensor="rgir", state="alive") == 1
    assert told("sensor_faulty_tiles_total", sensor="ndsm", fault="noise") == 2
    assert told("sensor_faulty_tiles_total", sensor="ndsm", fault="frozen") == 2
    assert told("sensor_faulty_tiles_total", sensor="ndsm", fault="no_data") == 1
    changes = {state: told("sensor_state_changes_total", sensor="ndsm", state=state) for state in State}
    assert changes == {State.ALIVE: 1, State.DEGRADED: 1, State.DEAD: 1}


def test_a_tile_without_data_does_not_make_a_sensor_look_dead(server, metrics) -> None:
    for ndsm in (NO_DATA, ALIVE, NO_DATA):
        metrics.tile_done(tile_report(verdicts={Sensor.RGIR: ALIVE, Sensor.NDSM: ndsm}))
    told = scrape(server)
    assert told("sensor_state", sensor="ndsm", state="alive") == 1
    assert told("sensor_state_changes_total", sensor="ndsm", state="dead") == 0


def test_an_unwatched_sensor_has_no_state(server, metrics) -> None:
    metrics.tile_done(tile_report(verdicts={}))
    assert not any(name == "gemmnet_sensor_state" for name, _ in scrape(server).series)


def test_a_replaced_backend_is_named_and_its_failures_counted(server, metrics) -> None:
    metrics.started(PLAN, BACKEND, first_tile=0)
    assert scrape(server)("backend_events_total", backend="openvino", event="hung") == 0
    other = type(BACKEND)(**(vars(BACKEND) | {"name": "onnxruntime", "library": "onnxruntime 2"}))
    for what, name, now in ((What.HUNG, "openvino", BACKEND), (What.OPENED, "onnxruntime", other)):
        event = BackendEvent(at_utc="", backend=name, what=what, detail="", tiles_in_flight=2)
        metrics.backend_changed(event, now)
    told = scrape(server)
    assert told("backend_events_total", backend="openvino", event="hung") == 1
    assert told("backend_events_total", backend="onnxruntime", event="opened") == 1
    running = [dict(labels) for name, labels in told.series if name == "gemmnet_backend_info"]
    assert running == [
        {"backend": "onnxruntime", "library": "onnxruntime 2", "device": "CPU", "graph": "fp32", "precision": "f32"}
    ]


def test_every_series_is_there_from_the_start_and_none_is_added_in_flight(server, metrics) -> None:
    metrics.started(PLAN, BACKEND, first_tile=0)
    metrics.tile_done(tile_report())
    before = set(scrape(server).series)
    rng = random.Random(0)
    verdicts = [ALIVE, *(Verdict(state=state, fault=fault) for state in State for fault in Fault)]
    for index in range(500):
        metrics.tile_done(
            tile_report(
                index,
                frame=f"frame {index}",
                scenarios=tuple(rng.sample(list(Scenario), rng.randint(0, 3))),
                verdicts={sensor: rng.choice(verdicts) for sensor in Sensor},
                latency_s=rng.expovariate(1),
            )
        )
    assert set(scrape(server).series) == before
    assert len(before) < 350


def test_names_follow_prometheus_s_conventions(server, metrics) -> None:
    metrics.started(PLAN, BACKEND, first_tile=0)
    for family in scrape(server).families:
        if family.name.startswith("process_"):
            continue
        assert re.fullmatch(r"gemmnet(_[a-z]+)+", family.name)
        assert family.documentation
        names = {sample.name for sample in family.samples}
        if family.type == "counter":
            assert names == {f"{family.name}_total"}
        assert not re.search("milli|_ms|minutes|percent|_created", " ".join(names))
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_memory_and_open_files_of_the_process_are_told(server) -> None:
    told = scrape(server).series
    assert told["process_open_fds", frozenset()] > 2
    assert told["process_resident_memory_bytes", frozenset()] > 1e7


def test_health_turns_503_when_tiles_are_due_and_none_comes(server, run_status, clock) -> None:
    run_status.started(PLAN, BACKEND, first_tile=0)
    run_status.tile_done(tile_report(0, Scenario.MISSING_NDSM, verdicts={Sensor.RGIR: ALIVE, Sensor.NDSM: FROZEN}))
    clock.now += 9
    status, told = health(server)
    assert (status, told["status"], told["phase"]) == (200, "ok", "running"), "a dead sensor does not end a flight"
    assert told["tiles"] == {"done": 1, "planned": None, "dropped": 0}
    assert told["last_tile_age_s"] == 9
    assert told["sensors"]["ndsm"] == {
        "state": "dead",
        "fault": "frozen",
        "detail": "the bytes of the tile before",
    }
    clock.now += 2
    status, told = health(server)
    assert (status, told["status"]) == (503, "stalled")
    assert told["reason"] == ("no sign of life for 11 s (limit 10 s): 1 tiles, missing_ndsm, ndsm dead (frozen)")
    assert scrape(server)("stalled_seconds") == 11
    run_status.waiting(True)
    clock.now += 1000
    assert health(server)[0] == 200
    assert scrape(server)("stalled_seconds") == 0


def test_health_turns_503_when_the_run_fails(server, run_status) -> None:
    run_status.started(PLAN, BACKEND, first_tile=0)
    assert scrape(server)("run_phase", phase="running") == 1
    run_status.failed("OutputError: no space left on device")
    assert health(server) == (
        503,
        health(server)[1] | {"status": "failed", "reason": "failed: OutputError: no space left on device"},
    )
    assert scrape(server)("run_phase", phase="failed") == 1


def test_other_paths_point_to_the_right_ones(server) -> None:
    status, _, text = get(server, "/")
    assert status == 404
    assert "/metrics or /healthz" in text


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":9102", "127.0.0.1", 9102),
        ("9102", "127.0.0.1", 9102),
        ("0.0.0.0:80", "0.0.0.0", 80),
        ("[::1]:9102", "::1", 9102),
        ("localhost:0", "localhost", 0),
    ],
)
def test_addresses_default_to_this_machine_alone(text, host, port) -> None:
    address = parse_address(text)
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize("text", ["", ":", "host:", "host", ":65536", "::1:9102", ":-1", "http://host:1/x"])
def test_what_is_no_address_is_refused(text) -> None:
    with pytest.raises(UsageError, match=r"--metrics takes \[HOST\]:PORT"):
        parse_address(text)


def test_nobody_but_this_machine_is_listened_to_by_default(server) -> None:
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["", "203.0.113.1", "no.such.host.invalid"])
def test_an_address_that_cannot_be_had_is_a_usage_error(host, server, metrics, run_status) -> None:
    where = parse_address(f"{host}:{server.address.port}")
    with pytest.raises(UsageError, match=rf"cannot listen on {re.escape(str(where))} \(.+\): name another"):
        Endpoint(where, metrics, run_status)


def test_clients_that_dawdle_give_way_to_those_who_ask(server) -> None:
    idle = []
    for _ in range(3 * MAX_CLIENTS):
        idle.append(socket.create_connection(server.server_address, timeout=5))
        idle[-1].sendall(b"GET /heal")
    for _ in range(3):
        assert health(server)[0] == 200
    assert sum("process_request" in thread.name for thread in threading.enumerate()) <= MAX_CLIENTS + 1
    for client in idle:
        client.close()


def test_a_request_is_over_after_its_time_however_it_drips(server, monkeypatch) -> None:
    monkeypatch.setattr(endpoint, "REQUEST_LIMIT_S", 0.3)
    client = socket.create_connection(server.server_address, timeout=5)

    def drip() -> None:
        for _ in range(200):
            client.sendall(b"X")
            time.sleep(0.05)

    with pytest.raises(OSError, match=r"[Rr]eset|[Pp]ipe"):
        drip()
    client.close()


def test_a_client_that_hangs_up_leaves_no_trace(server, capfd) -> None:
    for request in (b"GET /metrics HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03\x01nonsense\r\n\r\n"):
        client = socket.create_connection(server.server_address, timeout=20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset instead of goodbye
        client.sendall(request)
        client.close()
    assert health(server)[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_watched_run_is_told_to_all_and_its_end_to_whoever_asks(monkeypatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    watches: list[Watchers] = []

    def fail() -> None:
        with watched(metrics=":0", deadline_ms=1e3, stall_s=60.0) as watch:
            watches.append(watch)
            for observer in watch.observers:
                observer.started(PLAN, BACKEND, first_tile=0)
                observer.tile_done(tile_report())
                observer.backend_changed(
                    BackendEvent(at_utc="", backend="openvino", what=What.ERROR, detail="", tiles_in_flight=1), BACKEND
                )
                observer.waiting(True)
            assert watch.status.describe() == "1 tiles, full, waiting for the next frame"
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        fail()
    (watch,) = watches
    assert watch.status.describe() == "failed: OSError: disk gone"
    assert watch.metrics is not None
    told = Scraped(watch.metrics.exposition()[1].decode())
    assert told("tiles_total", scenario="full") == 1
    assert told("backend_events_total", backend="openvino", event="error") == 1
    assert not any(thread.name == "metrics" for thread in threading.enumerate()), "nobody listens any more"


def test_the_observers_need_no_prometheus_unless_metrics_are_asked_for() -> None:
    script = (
        "import sys\n"
        "sys.modules['prometheus_client'] = None\n"
        "from engine.contract.errors import UsageError\n"
        "from engine.telemetry.observe import Watchers, watched\n"
        "with watched(metrics=None, deadline_ms=None, stall_s=60.0): pass\n"
        "try:\n"
        "    with watched(metrics=':0', deadline_ms=None, stall_s=60.0): pass\n"
        "except UsageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install prometheus-client" in done.stdout


def test_what_is_scraped_after_a_run_is_what_run_json_says(toy_bundle, write_scene, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    request = request_for(
        toy_bundle,
        write_scene(flight_scene(200, 230)),
        tmp_path / "map",
        watch=True,
        inject=parse_faults("ndsm:error@7-11,rgir:dead@9-10"),
        deadline_ms=60_000,
    )
    with watched(metrics=":0", deadline_ms=60_000, stall_s=60) as watch:
        run = run_told(request, Observers(watch.observers))
        assert watch.metrics is not None
        told = Scraped(watch.metrics.exposition()[1].decode())
    scenarios = {name: run["latency_ms"]["by_scenario"][name]["tiles"] for name in (*Scenario, "none")}
    assert {name: told("tiles_total", scenario=name) for name in scenarios} == scenarios
    assert {name: told("tile_latency_seconds_count", scenario=name) for name in scenarios} == scenarios
    inferences = run["result"]["inferences"]
    assert {name: told("inferences_total", scenario=name) for name in inferences} == inferences
    assert sum(told("switches_total", scenario=name) for name in Scenario) == run["result"]["switch_count"] > 0
    assert told("tiles_planned") == run["tiling"]["tiles"]
    assert told("tiles_lost_total", reason="no_sensor") == run["tiles_lost"] > 0
    assert told("deadline_misses_total") == run["deadline"]["misses"]
    for sensor, faults in run["health"]["faults"].items():
        assert {name: told("sensor_faulty_tiles_total", sensor=sensor, fault=name) for name in faults} == faults
    assert told(
        "build_info",
        version=own_version(),
        python=platform.python_version(),
        bundle="toy",
        bundle_sha256=toy_bundle.digest,
    )
