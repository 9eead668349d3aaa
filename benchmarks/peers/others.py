"""What maps whole rasters by itself: MONAI, geoai, geo-inference, and a loop over a ``DataLoader``.

The first three bring their own grid and blend the probabilities of windows that overlap: by twice the engine's halo in
MONAI and geoai, by half a window in geo-inference, which knows no other. Everything else is their default. Blending
changes the map near seams, which the agreement shows.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
import torch

from benchmarks.peers.libraries import Opener, open_peer
from benchmarks.peers.loader import LoaderTiles
from benchmarks.peers.peer import Classes
from benchmarks.peers.subject import Subject
from benchmarks.peers.tilers import (
    RUN,
    CroppedTiles,
    EngineRun,
    OneInput,
    RasterPair,
    Tiler,
    TilerOpener,
    cropped,
    read_classes,
)
from engine.contract.bundle import NODATA_CLASS
from engine.contract.errors import BackendUnavailableError
from engine.contract.sensors import Scenario


class MonaiWindows(Tiler):
    """``monai.inferers.sliding_window_inference`` in PyTorch, raster in memory.

    Its defaults but for the overlap: constant blending, one window at a time. It keeps the probabilities of the whole
    raster. https://docs.monai.io/en/stable/inferers.html
    """

    def __init__(self, subject: Subject, scenario: Scenario, raster: RasterPair) -> None:
        try:
            import monai
            from monai.inferers import sliding_window_inference
        except ImportError as error:
            raise BackendUnavailableError(f"MONAI is not installed ({error}): pip install monai") from error
        self.library = f"monai {monai.__version__}"
        self._infer = sliding_window_inference
        self._model = OneInput(subject.modules[scenario], scenario).eval()
        self._pixels = torch.from_numpy(raster.stacked(scenario))[None]
        manifest = subject.bundle.manifest
        self._tile_px, self._overlap = manifest.tile_px, 2 * manifest.halo_px / manifest.tile_px

    def map(self) -> Classes:
        """See :meth:`Tiler.map`."""
        with torch.inference_mode():
            probabilities = self._infer(self._pixels, self._tile_px, 1, self._model, overlap=self._overlap)
            classes: Classes = probabilities.argmax(dim=1)[0].to(torch.uint8).numpy()
        return classes


class GeoaiTiles(Tiler):
    """``geoai.inference.predict_geotiff`` in PyTorch, from disk to disk like ``engine.run``.

    Its defaults but for tile and overlap: spline blending in float64, four tiles a batch. It keeps the sums of the
    whole raster. https://github.com/opengeos/geoai
    """

    def __init__(self, subject: Subject, scenario: Scenario, raster: RasterPair, folder: Path) -> None:
        try:
            import geoai
            from geoai.inference import predict_geotiff
            from geoai.utils import get_device  # noqa: F401 (what predict_geotiff imports itself, once it is called)
        except ImportError as error:
            raise BackendUnavailableError(
                f"geoai is not installed ({error}): pip install --no-deps geoai-py && pip install leafmap geopandas "
                "rioxarray, which leaves out torchvision that nothing here needs"
            ) from error
        self.library = f"geoai {geoai.__version__}"
        self._predict = predict_geotiff
        self._model = OneInput(subject.modules[scenario], scenario).eval()
        self._manifest = subject.bundle.manifest
        self._output = folder / f"geoai_{scenario}.tif"
        self._input = _stacked_on_disk(raster, scenario, folder)

    def map(self) -> Classes:
        """See :meth:`Tiler.map`."""
        self._predict(
            self._model,
            str(self._input),
            str(self._output),
            tile_size=self._manifest.tile_px,
            overlap=2 * self._manifest.halo_px,
            num_classes=len(self._manifest.classes),
            output_dtype="uint8",
            output_nodata=float(NODATA_CLASS),
            preprocess_fn=lambda pixels: pixels,
            postprocess_fn=lambda probabilities: probabilities.argmax(axis=0).astype(np.uint8),
            device="cpu",
            verbose=False,
        )
        return read_classes(self._output)


class GeoInferenceTiles(Tiler):
    """Natural Resources Canada's ``geo_inference`` on a traced model, from disk to disk like ``engine.run``.

    Its defaults but for the window: Dask reads, infers and writes; every pixel is inferred four times, in windows that
    overlap by half. https://github.com/NRCan/geo-inference
    """

    def __init__(self, subject: Subject, scenario: Scenario, raster: RasterPair, folder: Path) -> None:
        try:
            from geo_inference.geo_inference import GeoInference
        except ImportError as error:
            raise BackendUnavailableError(
                f"geo-inference is not installed ({error}): pip install --no-deps geo-inference ttach && pip install "
                "'dask[distributed]' dask-image rioxarray rtree colorlog hydra-core nvidia-ml-py pystac geopandas (it "
                "leaves out torchgeo, which nothing here needs)"
            ) from error
        from importlib.metadata import version

        self.library = f"geo-inference {version('geo-inference')}"
        self._tile_px = subject.bundle.manifest.tile_px
        self._input = _stacked_on_disk(raster, scenario, folder)
        self._folder = folder
        model, path = OneInput(subject.modules[scenario], scenario).eval(), folder / f"traced_{scenario}.pt"
        bands = sum(model.bands)
        with torch.inference_mode():
            torch.jit.trace(model, torch.zeros(1, bands, self._tile_px, self._tile_px)).save(str(path))
        self._infer = GeoInference(
            model=str(path), work_dir=str(folder), device="cpu", num_classes=len(subject.bundle.manifest.classes)
        )

    def map(self) -> Classes:
        """See :meth:`Tiler.map`."""
        with contextlib.redirect_stdout(io.StringIO()):
            name = self._infer(str(self._input), patch_size=self._tile_px)
        path = self._folder / name
        classes = read_classes(path)
        path.unlink()
        return classes


def _stacked_on_disk(raster: RasterPair, scenario: Scenario, folder: Path) -> Path:
    """The bands of all sensors in one file, which is what these take."""
    path, stacked = folder / f"stacked_{scenario}.tif", raster.stacked(scenario)
    if not path.exists():
        with rasterio.open(next(iter(raster.paths.values()))) as file:
            profile = {**file.profile, "count": len(stacked), "dtype": "float32", "nodata": None}
        with rasterio.open(path, "w", **profile) as file:
            file.write(stacked)
    return path


def tilers_of(peers: Mapping[tuple[str, str], Opener]) -> dict[tuple[str, str], TilerOpener]:
    """Every peer on cropped tiles, in their order, and after them what maps rasters by itself."""
    return {
        **{(cropped(name), precision): _cropped_tiles(opener) for (name, precision), opener in peers.items()},
        ("MONAI sliding window", "fp32"): lambda subject, scenario, raster, _: MonaiWindows(subject, scenario, raster),
        ("geoai, disk to disk", "fp32"): GeoaiTiles,
        ("geo-inference, disk to disk", "fp32"): GeoInferenceTiles,
        ("torch.compile, DataLoader workers, disk to disk", "fp32"): LoaderTiles,
        RUN: EngineRun,
    }


def _cropped_tiles(opener: Opener) -> TilerOpener:
    def open_it(subject: Subject, scenario: Scenario, raster: RasterPair, folder: Path) -> Tiler:
        del folder  # nothing goes to the disk
        return CroppedTiles(open_peer(opener, subject, scenario), subject, scenario, raster)

    return open_it
