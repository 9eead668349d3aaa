"""What each format's command works in: folders in which everything is whole, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

from benchmarks.hardening.formats import engine_run, live_run
from engine import keys
from engine.contract.errors import BackendError, InterruptedRunError
from engine.contract.sensors import Sensor
from engine.contract.trust import installed_policy, remember_number
from engine.job import TileReport
from engine.observer import Observer
from engine.rasters.georeference import gdal_environment

SIDE_PX = (150, 200)
STOP_AFTER = 7


def grounds(root: Path, names: Iterable[str]) -> dict[str, Path]:
    """The folder for each format, made below ``root``.

    Raises:
        BackendError: a command does not work on whole inputs.
    """
    made: dict[str, Path] = {}
    found = {}
    for name in names:
        make = next(make for make, formats in _KINDS.items() if name in formats)
        kind = make.__name__.strip("_")
        if kind not in made:
            made[kind] = root / kind
            made[kind].mkdir(parents=True)
            make(made[kind])
        found[name] = made[kind]
    return found


def _expect(code: int, what: str) -> None:
    if code:
        raise BackendError(f"{what} ends with exit code {code} on whole inputs: mend that first")


def _bundle(folder: Path) -> Any:
    from tests.conftest import write_toy_bundle

    return write_toy_bundle(folder / "bundle")


def _rasters(folder: Path, *, seed: int = 1, suffix: str = "") -> None:
    from tests.conftest import make_scene

    rasters, _ = make_scene(*SIDE_PX, holes=False, seed=seed)
    for sensor, values in rasters.items():
        profile = {"driver": "GTiff", "crs": "EPSG:2154", "transform": from_origin(650000, 6860000, 0.2, 0.2)}
        profile |= {"height": SIDE_PX[0], "width": SIDE_PX[1], "count": len(values), "dtype": values.dtype}
        profile |= {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
        with rasterio.open(folder / f"{sensor}{suffix}.tif", "w", **profile) as file:
            file.write(values)
            if sensor is Sensor.NDSM:
                file.nodata = -9999


def _raster(folder: Path) -> None:
    _bundle(folder)
    _rasters(folder)
    (folder / "limits.toml").write_text('[ndsm]\nmax_height_m = 80\nstuck = "off"\n[rgir.noise]\nhard = 60\n')


def _finished(folder: Path) -> None:
    _raster(folder)
    _expect(engine_run(folder), "engine.run")
    for path in (folder / "map").iterdir():
        shutil.move(path, folder / path.name)
    (folder / "map").rmdir()


class _Stops(Observer):
    """Stops a run as Ctrl-C does."""

    def __init__(self) -> None:
        self._tiles = 0

    def tile_done(self, report: TileReport) -> None:
        self._tiles += 1
        if self._tiles == STOP_AFTER:
            raise KeyboardInterrupt


def _stopped(folder: Path) -> None:
    from engine.options import request_of
    from engine.run import build_parser
    from engine.runner import run

    _raster(folder)
    _expect(engine_run(folder), "engine.run")
    (folder / "map").rename(folder / "whole")
    words = ["--rgir", str(folder / "rgir.tif"), "--ndsm", str(folder / "ndsm.tif"), "--backend", "onnxruntime"]
    words += ["--bundle", str(folder / "bundle"), "--output", str(folder / "map"), "--precision", "fp32"]
    try:
        with gdal_environment():
            run(request_of(build_parser().parse_args([*words, "--threads", "1"])), _Stops())
    except InterruptedRunError:
        return
    raise BackendError(f"the run was not stopped after {STOP_AFTER} tiles: it has too few")


def _frames(folder: Path) -> None:
    _bundle(folder)
    (folder / "frames").mkdir()
    for seed, stamp in enumerate(("bad", "good")):
        _rasters(folder / "frames", seed=seed, suffix=f"_{stamp}")
    _expect(live_run(folder), "engine.run --live")
    (folder / "flight").rename(folder / "flown")


def _sidecars(folder: Path) -> None:
    _frames(folder)
    for path in list((folder / "frames").iterdir()):
        sensor, stamp = path.stem.split("_")
        name = "bad" if (sensor, stamp) == ("rgir", "bad") else f"{stamp}_{sensor}"
        told = f'{{"sensor": "{sensor}", "stamp": "{stamp}", "file": "{path.name}"}}'
        (folder / "frames" / f"{name}.json").write_text(told)


def _flown(folder: Path) -> None:
    _frames(folder)
    (folder / "flown").rename(folder / "flight")


def _signed(folder: Path) -> None:
    bundle = _bundle(folder)
    _expect(keys.main(["release", str(bundle.root), "--keys", str(folder / "keys")]), "engine.keys release")


def _installation(folder: Path) -> None:
    (folder / "etc").mkdir()
    (folder / "etc" / "trust.toml").write_text(
        'require_signature = true\nkeys = "keys"\nminimum_number = 7\nstate = "."\n'
    )
    policy = installed_policy(folders=[folder / "etc"])
    for name, number in (("toy", 7), ("other", 12)):
        remember_number(name, number, policy)


def _planned(folder: Path) -> None:
    from benchmarks.hardening.formats import _plan
    from tests.engine.plans import build, under_three_names

    build(under_three_names(folder / "bundle"))
    _expect(_plan(folder), "find_plan")


def _labelled(folder: Path) -> None:
    for name in ("north", "south"):
        scene = folder / "scenes" / name
        scene.mkdir(parents=True)
        _rasters(scene)
        with rasterio.open(scene / "rgir.tif") as file:
            profile = {**file.profile, "count": 1}
        with rasterio.open(scene / "labels.tif", "w", **profile) as file:
            file.write(np.random.default_rng(0).integers(0, 2, (1, *SIDE_PX), np.uint8))
    (folder / "scenes" / "dataset.toml").write_text(
        'rgir_bands = [1, 2, 3]\nndsm_scale_m = 1.0\n[split]\nvalidation = ["north"]\n'
        '[[class]]\nname = "water"\nrgb = [0, 0, 255]\ncounted = false\n[[class]]\nname = "land"\nrgb = [0, 255, 0]\n'
    )


def _trained(folder: Path) -> None:
    import torch

    from benchmarks.hardening.formats import _training
    from train.checkpoint import save_state

    generator = torch.Generator().manual_seed(0)
    weights = {f"layer.{n}": torch.rand((40, 30), generator=generator) for n in range(4)}
    save_state(folder / "resume.pt", {"done_steps": 7, "best_score": 0.5, "model": weights, "rng": torch.arange(100)})
    _expect(_training(folder), "load_state")


_KINDS: dict[Callable[[Path], None], tuple[str, ...]] = {
    _raster: ("manifest", "golden tiles", "TIFF", "health limits"),
    _finished: ("run.json", "tiles.csv"),
    _stopped: ("journal", "unfinished maps"),
    _frames: ("frame",),
    _sidecars: ("sidecar",),
    _flown: ("frame log",),
    _signed: ("signed manifest", "signature", "public key"),
    _installation: ("trust policy", "bundle numbers"),
    _planned: ("plan record", "plan"),
    _labelled: ("dataset.toml",),
    _trained: ("resume.pt",),
}
