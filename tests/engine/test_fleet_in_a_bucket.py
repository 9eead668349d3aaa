"""Rasters from a bucket, maps into it, over a network that fails; a real S3 server on this machine."""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from engine import run as command
from engine.contract.bundle import Bundle
from engine.contract.errors import UsageError
from engine.contract.sensors import Scenario, Sensor
from engine.fleet.__main__ import build_parser
from engine.fleet.book import Book
from engine.fleet.lists import read_units
from engine.fleet.stores import store_at
from engine.fleet.units import Unit
from engine.fleet.worker import UnitState, Worker
from engine.request import PATTERN
from engine.runner import run
from tests.conftest import make_scene
from tests.engine.runs import request_for

obstore = pytest.importorskip("obstore", reason="obstore is not installed: pip install 'gemmnet-edge[fleet]'")
pytest.importorskip("flask_cors", reason="moto's server is not installed: pip install 'moto[s3]' flask flask-cors")
MAPS = ("classes.tif", "confidence.tif", "provenance.tif")


@contextmanager
def failing_network(server: int, every: int) -> Iterator[tuple[int, list[int]]]:
    """A port that leads to the server, and tears every so many-th connection in the middle of its first request.

    What is put where ``/full/`` stands in its name finds no room: the answer is that of MinIO on a full disk.
    """
    torn: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def pump(source: socket.socket, target: socket.socket, most: int | None) -> None:
            with suppress(OSError):
                while piece := source.recv(1 << 16 if most is None else most):
                    if piece.startswith(b"PUT") and b"/full/" in piece.partition(b"\r")[0]:
                        body = b"<Error><Code>XMinioStorageFull</Code><Message>Storage is full</Message></Error>"
                        source.sendall(b"HTTP/1.1 507 Full\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                        source.shutdown(socket.SHUT_WR)
                        while source.recv(1 << 16):
                            pass
                        return
                    target.sendall(piece)
                    if most is not None:
                        torn.append(len(piece))
                        for each in (source, target):  # a reset, not a polite end
                            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                            each.close()
                        return
            for each in (source, target):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

        def serve() -> None:
            count = 0
            with suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    count += 1
                    onward = socket.create_connection(("127.0.0.1", server))
                    most = 64 if count % every == 0 else None
                    threading.Thread(target=pump, args=(client, onward, most), daemon=True).start()
                    threading.Thread(target=pump, args=(onward, client, None), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1], torn
        listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A bucket ``maps``, named by the environment; what is yielded tells of torn connections."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with ExitStack() as stack:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        stack.callback(server.stop)
        _, port = server.get_host_and_port()
        for method, path in (("POST", "moto-api/reset"), ("PUT", "maps")):  # buckets outlive their server
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", method=method)
            urllib.request.urlopen(asked).close()
        proxy, torn = stack.enter_context(failing_network(port, every=7))
        told = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
        told |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy}", "AWS_ALLOW_HTTP": "true"}
        told |= {"AWS_S3_ENDPOINT": f"127.0.0.1:{port}", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"}
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        yield torn


@pytest.mark.slow
def test_maps_in_a_bucket_are_those_in_a_folder_though_connections_are_torn(
    toy_bundle: Bundle, write_scene, tmp_path: Path, network: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    from obstore.store import from_url

    bucket = from_url("s3://maps")
    here, there = ["rgir"], ["rgir"]
    for seed in range(3):
        (rgir, _) = write_scene(make_scene(70, 90, seed=seed), f"scene{seed}").values()
        obstore.put(bucket, f"in/scene{seed}.tif", rgir)
        here.append(str(rgir))
        there.append(f"/vsis3/maps/in/scene{seed}.tif")
    (tmp_path / "here.csv").write_text("\n".join(here))
    (tmp_path / "there.csv").write_text("\n".join([*there, "/vsis3/maps/in/gone.tif"]))
    model = ["--bundle", str(toy_bundle.root), "--precision", "fp32", "--quiet"]
    assert command.main(["--list", str(tmp_path / "here.csv"), "--output", str(tmp_path / "out"), *model]) == 0
    remote = ["--list", str(tmp_path / "there.csv"), "--output", "s3://maps/out", *model]
    assert command.main(remote) == 9
    assert len(network) > 2
    assert "gone" in capsys.readouterr().err.splitlines()[0]

    def summary() -> dict[str, int]:
        return json.loads(bytes(obstore.get(bucket, "out/fleet.json").bytes()))["states"]  # type: ignore[no-any-return]

    assert summary() == {"mapped": 3, "there": 0, "failed": 1}
    for seed in range(3):
        for name in MAPS:
            content = bytes(obstore.get(bucket, f"out/scene{seed}/{name}").bytes())
            assert content == (tmp_path / "out" / f"scene{seed}" / name).read_bytes()
    assert not [each for some in obstore.list(bucket, "out/.fleet/") for each in some]
    for _ in range(3):  # a torn deletion is not sent again by itself
        with suppress(obstore.exceptions.GenericError):
            obstore.delete(bucket, "out/scene1/classes.tif")
            break
    obstore.put(bucket, "in/scene2.tif", Path(here[1]))
    assert command.main(remote) == 9
    assert summary() == {"mapped": 1, "there": 1, "failed": 2}  # of which one was made of another raster


def test_a_claim_in_a_bucket_is_the_first_ones_until_it_is_not_renewed(
    network: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.fleet import bucket

    mine, theirs = bucket.BucketStore("s3://maps/out"), bucket.BucketStore("s3://maps/out")
    with mine.claim("k") as first, theirs.claim("k") as second:
        assert first is not None
        assert second is None
        monkeypatch.setattr(bucket, "LEASE_S", -1.0)
        with theirs.claim("k") as late:
            assert late is not None
            assert late.died == 1
    monkeypatch.undo()


def test_a_prefix_in_a_bucket_is_a_list_of_the_rasters_right_below_it(network: list[int]) -> None:
    from obstore.store import from_url

    bucket = from_url("s3://maps")
    for name in ("in/rgir_2.tif", "in/ndsm_2.tif", "in/rgir_10.tif", "in/notes.txt", "in/deeper/rgir_3.tif"):
        for _ in range(3):
            with suppress(obstore.exceptions.GenericError):
                obstore.put(bucket, name, b"")
                break
    two, ten = read_units("s3://maps/in/", sensor=None, pattern=PATTERN)
    assert (two.name, dict(two.rasters)["ndsm"]) == ("2", "s3://maps/in/ndsm_2.tif")
    assert (ten.name, set(dict(ten.rasters))) == ("10", {"rgir"})
    with pytest.raises(UsageError, match="names no raster"):
        read_units("s3://maps/nothing", sensor=None, pattern=PATTERN)
    with pytest.raises(UsageError, match=r"s3://nowhere/in cannot be (read|used)") as caught:
        read_units("s3://nowhere/in", sensor=None, pattern=PATTERN)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_bucket_that_is_full_or_grants_nothing_is_a_line_and_nothing_is_half_written(
    toy_bundle: Bundle,
    write_scene,
    tmp_path: Path,
    network: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from obstore.store import from_url

    (rgir, _) = write_scene(make_scene(70, 90, seed=1), "scene1").values()
    (tmp_path / "list.csv").write_text(f"rgir,name\n{rgir},full\n{rgir},fine\n")
    options = ["--list", str(tmp_path / "list.csv"), "--bundle", str(toy_bundle.root), "--quiet"]
    assert command.main([*options, "--output", "s3://maps/out"]) == 9
    failed, *_ = capsys.readouterr().err.splitlines()
    assert "full: s3://maps/out/full cannot be used" in failed
    assert "Storage is full" in failed
    bucket = from_url("s3://maps/out")
    there = {each["path"] for some in obstore.list(bucket) for each in some}
    assert not any(name.startswith("full/") for name in there)
    assert "fine/unit.json" in there

    monkeypatch.setattr(
        "moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0
    )  # from now on the key has to be one that exists
    assert command.main([*options, "--output", "s3://maps/out"]) == 4
    (told,) = capsys.readouterr().err.splitlines()
    assert "403" in told
    assert "check rights" in told


def test_a_bucket_that_is_not_there_is_one_line(
    toy_bundle: Bundle, tmp_path: Path, network: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("rgir\na.tif\nb.tif\n")
    options = ["--list", str(tmp_path / "list.csv"), "--bundle", str(toy_bundle.root), "--quiet"]
    assert command.main([*options, "--output", "s3://nowhere/out"]) == 4
    (told,) = capsys.readouterr().err.splitlines()
    assert "s3://nowhere/out" in told
    assert "check rights" in told
    assert command.main([*options, "--output", "nothing://nowhere"]) == 2


@pytest.mark.slow
def test_blocks_of_a_large_raster_go_through_the_bucket_and_are_deleted(
    toy_bundle: Bundle, write_scene, tmp_path: Path, network: list[int]
) -> None:
    from obstore.store import from_url

    (rgir, _) = write_scene(make_scene(260, 90, seed=5), "large").values()
    options = build_parser().parse_args(["--bundle", str(toy_bundle.root), "--precision", "fp32", "--list", "x"])
    worker = Worker(options, store_at("s3://maps/out"), Scenario, block_mpx=0.01)
    with Book([Unit(name="large", rasters=(("rgir", str(rgir)),))], tmp_path, tell=lambda *_: None) as book:
        while (unit := book.take()) is not None:
            book.settle(unit, worker.map(unit))
        assert (book.states[UnitState.MAPPED], book.retries) == (1, 0)
    there = {each["path"] for some in obstore.list(from_url("s3://maps/out")) for each in some}
    assert all(name.startswith("large/") for name in there), there
    run(request_for(toy_bundle, {Sensor.RGIR: rgir}, tmp_path / "alone"))
    for name in MAPS:
        content = bytes(obstore.get(from_url("s3://maps/out"), f"large/{name}").bytes())
        assert content == (tmp_path / "alone" / name).read_bytes()
