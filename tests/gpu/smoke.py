"""The TensorRT backend on a real device without TensorRT: driver, pycuda, streams, capture, pinned memory, teardown.

    python -m tests.gpu.smoke --device                    which device, driver and pycuda there are
    python -m tests.gpu.smoke                             600 tiles with CUDA graphs, without, and with them again
    python -m tests.gpu.smoke --tiles 30 --rounds 2       few enough for compute-sanitizer
    python -m tests.gpu.smoke --provoke                   error 700 in flight, and what the runtime makes of it
    python -m tests.gpu.smoke --raster --mpx 64           reading, composing and writing beside an engine of no time

Engines are those of :mod:`tests.gpu.copying_tensorrt`: they copy, so every answer is known byte by byte.

Exit codes: 0 all is well; 1 a wrong answer, memory that did not come back, or an error that was not survived; 6 no
device.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.conditions import conditions, write_csv
from engine import demo
from engine.backends.base import Inputs, Output
from engine.backends.options import BackendOptions
from engine.backends.resilient import ResilientBackend, What
from engine.contract.bundle import Bundle
from engine.contract.errors import EngineError
from engine.contract.plan_cache import CACHE_NAME
from engine.contract.plans import Device
from engine.contract.sensors import Scenario, Sensor
from tests.gpu.copying_tensorrt import PRECISION, CopyingTensorRt, answer_to, save_plans

WANTED = (Output.CLASSES, Output.CONFIDENCE)
GROWTH_MIB = 8
"""What drivers allocate late for themselves."""
ANSWER_LIMIT_S = 120


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu.smoke", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=demo.BUNDLE, help="for tile sizes alone (default: the demo's)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--device", action="store_true", help="say what there is, and no more")
    what.add_argument(
        "--provoke", action="store_true", help="a sticky error; the process cannot use the GPU afterwards"
    )
    what.add_argument("--raster", action="store_true", help="engine.run on a raster")
    parser.add_argument("--tiles", type=int, default=600, metavar="N", help="in each of three runs (600)")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="copies there and back per tile (40)")
    parser.add_argument("--scratch", type=int, default=64, metavar="MIB", help="memory they move through (64)")
    parser.add_argument("--mpx", type=float, default=64, metavar="N", help="size of the raster (64)")
    parser.add_argument("--out", type=Path, metavar="CSV", help="write the figures")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        device = current_device()
        if options.device:
            return 0
        bundle = Bundle.load(options.bundle)
        trt = CopyingTensorRt(
            bundle.manifest.tile_px, scratch_bytes=options.scratch << 20, rounds=0 if options.raster else options.rounds
        )
        with tempfile.TemporaryDirectory() as folder, trt.installed():
            save_plans(bundle, Path(folder) / CACHE_NAME, device)
            if options.raster:
                problems, rows = raster(bundle, Path(folder), options.mpx)
            elif options.provoke:
                problems, rows = provoke(bundle, Path(folder) / CACHE_NAME, trt)
            else:
                problems, rows = fly(bundle, Path(folder) / CACHE_NAME, options.tiles)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.out:
        about = {"device": str(device), "rounds": options.rounds, "scratch_mib": options.scratch}
        write_csv(options.out, [{**row, **about, **conditions()} for row in rows])
    for problem in problems:
        print(f"problem: {problem}")
    return 1 if problems else 0


def current_device() -> Device:
    """The device, after it has said who it is, and after a context was made and left on it.

    Raises:
        BackendUnavailableError: there is none, or pycuda is missing.
    """
    from engine.contract.errors import BackendUnavailableError

    try:
        import pycuda

        from engine.backends.device import cuda, first_device
    except ImportError as error:
        raise BackendUnavailableError(f"pycuda cannot be imported ({error})") from error
    device = first_device()
    driver = getattr(cuda, "get_driver_version", lambda: "unknown")()
    version = getattr(pycuda, "VERSION_TEXT", "unknown")
    print(f"{device}, power mode {device.power_mode}, CUDA driver {driver}, pycuda {version}, {free_mib()} MiB free")
    return device


def fly(bundle: Bundle, plans: Path, count: int) -> tuple[list[str], list[dict[str, object]]]:
    """Tiles of random scenarios, all in flight at once: with CUDA graphs, without, and with them again."""
    from engine.backends.tensorrt import TensorRtBackend

    rng = np.random.default_rng(0)
    tiles = [_tile(bundle, rng) for _ in range(7)]
    problems, rows, first_mib = [], [], None
    for graphs in (True, False, True):
        name = "CUDA graphs" if graphs else "kernel by kernel"
        with TensorRtBackend(bundle, Scenario, WANTED, precision=PRECISION, plans=plans, cuda_graphs=graphs) as backend:
            todo = [(list(Scenario)[rng.integers(3)], tiles[rng.integers(len(tiles))]) for _ in range(count)]
            began = time.perf_counter()
            answers = [backend.submit(scenario, _inputs(scenario, tile)) for scenario, tile in todo]
            wrong = 0
            for (scenario, tile), answer in zip(todo, answers, strict=True):
                outputs = answer.result(ANSWER_LIMIT_S)
                wrong += any(not np.array_equal(outputs[name], answer_to(scenario, tile)) for name in WANTED)
            ms = (time.perf_counter() - began) / count * 1e3
        gc.collect()
        left_mib = free_mib()
        first_mib = left_mib if first_mib is None else first_mib
        print(f"{name}: {wrong} of {count} tiles wrong, {ms:.3f} ms a tile, {left_mib} MiB free after closing")
        rows.append({"run": name, "tiles": count, "wrong": wrong, "ms_per_tile": round(ms, 4), "free_mib": left_mib})
        if wrong:
            problems.append(f"{wrong} of {count} tiles are wrong ({name})")
        if first_mib - left_mib > GROWTH_MIB:
            problems.append(f"{first_mib - left_mib} MiB did not come back ({name})")
    return problems, rows


def provoke(bundle: Bundle, plans: Path, trt: CopyingTensorRt) -> tuple[list[str], list[dict[str, object]]]:
    """A kernel that writes where it must not, in the middle of a flight with OpenVINO behind TensorRT."""
    from engine.backends.tensorrt import TensorRtBackend

    def first() -> TensorRtBackend:
        return TensorRtBackend(bundle, Scenario, WANTED, precision=PRECISION, plans=plans, cuda_graphs=False)

    rng = np.random.default_rng(1)
    tiles = [_tile(bundle, rng) for _ in range(12)]
    with BackendOptions(name="openvino", precision=PRECISION).open(
        bundle, scenarios=[Scenario.FULL], wanted=WANTED
    ) as openvino:
        expected = [openvino.infer(Scenario.FULL, tile)[Output.CLASSES] for tile in tiles]
    chain = {
        "tensorrt": first,
        "openvino": lambda: BackendOptions(name="openvino", precision=PRECISION).open(
            bundle, scenarios=[Scenario.FULL], wanted=WANTED
        ),
    }
    problems = []
    with ResilientBackend(first, chain, watchdog_s=ANSWER_LIMIT_S) as backend:
        before = backend.infer(Scenario.FULL, tiles[0])[Output.CLASSES]
        if not np.array_equal(before, answer_to(Scenario.FULL, tiles[0])):
            problems.append("the device answered wrongly before anything was provoked")
        trt.arm()
        answers = [backend.submit(Scenario.FULL, tile) for tile in tiles]
        for number, (answer, right) in enumerate(zip(answers, expected, strict=True)):
            same = (answer.result(ANSWER_LIMIT_S)[Output.CLASSES] == right).mean()
            if same < 0.999:
                problems.append(f"tile {number} in flight was answered by something else than OpenVINO ({same:.3f})")
        events = backend.events
    for event in events:
        print(f"{event.backend} {event.what}: {event.detail}")
    if [(event.backend, event.what) for event in events] != [("tensorrt", What.LOST), ("openvino", What.OPENED)]:
        problems.append("the runtime must give the device up at once and go on with OpenVINO")
    elif "700" not in events[0].detail or "restart the process" not in events[0].detail:
        problems.append("the runtime must name the error and say that only a new process cures it")
    return problems, [{"backend": event.backend, "what": str(event.what), "detail": event.detail} for event in events]


def raster(bundle: Bundle, folder: Path, mpx: float) -> tuple[list[str], list[dict[str, object]]]:
    """``engine.run`` with engines that take no time: what reading, composing and writing allow on this machine."""
    from benchmarks.rasters import write_raster
    from engine.run import main as run_engine

    copy = folder / "bundle"
    shutil.copytree(bundle.root, copy, ignore=shutil.ignore_patterns(CACHE_NAME))
    (folder / CACHE_NAME).rename(copy / CACHE_NAME)
    rgir, ndsm = (write_raster(folder, mpx)[1][sensor] for sensor in (Sensor.RGIR, Sensor.NDSM))
    import engine.backends

    engine.backends.options.check_golden_tile = lambda *_arguments, **_names: None  # copies are not what was exported
    words = [
        "--bundle",
        str(copy),
        "--backend",
        "tensorrt",
        "--precision",
        PRECISION,
        "--sensors",
        "rgir,ndsm",
        "--blend",
        "none",
    ]
    words += ["--rgir", str(rgir), "--ndsm", str(ndsm), "--output", str(folder / "map"), "--quiet"]
    code = run_engine(words)
    if code:
        return [f"engine.run ended with {code}"], []
    told = json.loads((folder / "map" / "run.json").read_text())["performance"]
    print(f"{told['tiles_per_s']:.1f} tiles/s, {told['mpx_per_s']:.1f} Mpx/s from end to end on {mpx:g} Mpx")
    return [], [{"mpx": mpx, "tiles_per_s": told["tiles_per_s"], "mpx_per_s": told["mpx_per_s"]}]


def free_mib() -> int:
    """Free memory of the device, asked in a thread of its own as :class:`engine.backends.device.CudaDevice` demands."""
    from engine.backends.device import CudaDevice

    found: list[int] = []

    def ask() -> None:
        with CudaDevice() as gpu:
            gpu.synchronize()
            found.append(gpu.free_bytes() >> 20)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found[0]


def _tile(bundle: Bundle, rng: np.random.Generator) -> dict[Sensor, np.ndarray]:
    side = bundle.manifest.tile_px
    return {
        Sensor.RGIR: rng.integers(0, 256, (3, side, side), np.uint8),
        Sensor.NDSM: rng.uniform(-1, 30, (1, side, side)).astype(np.float32),
    }


def _inputs(scenario: Scenario, tile: dict[Sensor, np.ndarray]) -> Inputs:
    return {sensor: tile[sensor] for sensor in scenario.sensors}


if __name__ == "__main__":
    sys.exit(main())
