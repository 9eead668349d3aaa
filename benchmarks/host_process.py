"""The two processes that :mod:`benchmarks.host` compares: the pipeline taken apart by stage, and GDAL alone."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import Any

import rasterio
from rasterio.enums import Resampling

from benchmarks.host import STAGES
from benchmarks.null import NullOptions
from engine.contract.sensors import Sensor
from engine.observer import Observer
from engine.rasters.georeference import CACHE_BYTES, gdal_environment, unreferenced_is_fine
from engine.rasters.map_reader import MAPS
from engine.rasters.spool_files import BLOCK_PX
from engine.record import peak_rss_mib
from engine.request import RasterFiles, RunRequest
from engine.runner import run


class Clock(Observer):
    """Processor seconds by stage, each thread's own time, and of the whole process while tiles are mapped."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inner = threading.local()
        self._lock = threading.Lock()
        for stage, functions in STAGES.items():
            for function in functions:
                module_name, _, path = function.partition(":")
                owner: Any = importlib.import_module(module_name)
                *owners, name = path.split(".")
                for each in owners:
                    owner = getattr(owner, each)
                bound = isinstance(owner.__dict__[name], classmethod)
                timed = self._timed(stage, getattr(owner, name).__func__ if bound else getattr(owner, name))
                setattr(owner, name, classmethod(timed) if bound else timed)

    def started(self, *_: Any, **__: Any) -> None:
        """The clock starts with the first tile."""
        self.spent.clear()
        self.cpu_s, self.began = -_processor_s(), time.perf_counter()

    def finished(self, record: Any) -> None:
        """And stops when the maps are in place."""
        self.cpu_s += _processor_s()
        self.record = record

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            before, self._inner.s = getattr(self._inner, "s", 0.0), 0.0
            began = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                spent = time.thread_time() - began
                with self._lock:
                    self.spent[stage] += spent - self._inner.s
                self._inner.s = before + spent

        return timed


def pipeline(asked: Mapping[str, Any]) -> dict[str, float]:
    """Map the rasters with a backend that answers at once."""
    clock = Clock()
    request = RunRequest(
        source=RasterFiles(paths={Sensor(name): Path(path) for name, path in asked["files"].items()}),
        bundle=Path(asked["bundle"]),
        output=Path(asked["output"]),
        backend=NullOptions(),
        watch=asked["health"],
        blend=asked["blend"],
        overwrite=True,
    )
    with gdal_environment():
        run(request, clock)
    performance = clock.record.performance
    return {
        "tiles": clock.record.tiling.tiles,
        "stream_s": performance.stream_s,
        "publish_s": performance.publish_s,
        "cpu_s": clock.cpu_s,
        "peak_rss_mib": peak_rss_mib(),
        **{stage: clock.spent[stage] for stage in STAGES},
        "rest": clock.cpu_s - sum(clock.spent.values()),
    }


def floor(asked: Mapping[str, Any]) -> dict[str, float]:
    """Decode every block of the rasters once, and write the maps that lie in the output folder anew."""
    cores = len(os.sched_getaffinity(0))
    maps = {name: Path(asked["output"]) / f"{name}.tif" for name in MAPS}
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), unreferenced_is_fine():
        pixels = {}
        for name, path in maps.items():
            with rasterio.open(path) as file:
                pixels[name] = file.read(1), file.profile
        began, cpu_s = time.perf_counter(), _processor_s()
        for path in asked["files"].values():
            with ThreadPoolExecutor(cores) as pool:
                list(pool.map(_decode, [path] * cores, range(cores), [cores] * cores))
        read_cpu_s = _processor_s() - cpu_s
        for name, (values, profile) in pixels.items():
            shape = {key: profile[key] for key in ("width", "height", "count", "dtype", "crs", "transform", "nodata")}
            factors = [2**level for level in range(1, 16) if max(values.shape) > BLOCK_PX * 2 ** (level - 1)]
            path = maps[name].with_name(f"floor_{name}.tif")
            with rasterio.open(path, "w", driver="GTiff", num_threads=cores, **_LIKE_COG, **shape) as file:
                file.write(values, 1)
            with rasterio.open(path, "r+", driver="GTiff", num_threads=cores) as file:
                file.build_overviews(factors, Resampling.nearest)
            path.unlink()
        return {
            "wall_s": time.perf_counter() - began,
            "cpu_s": _processor_s() - cpu_s,
            "read_cpu_s": read_cpu_s,
        }


_LIKE_COG = {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "compress": "zstd", "zstd_level": 1}


def _decode(path: str, first: int, step: int) -> None:
    """Every so many-th row of blocks."""
    with rasterio.open(path) as file:
        for (row, _), window in file.block_windows(1):
            if row % step == first:
                file.read(window=window)


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    print(json.dumps({"pipeline": pipeline, "floor": floor}[sys.argv[1]](json.loads(sys.argv[2]))))
