"""Do rasters fit the model and each other? The look that :mod:`engine.run` takes before it maps them, by itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from engine.backends.base import Output
from engine.backends.options import BackendOptions
from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError
from engine.contract.sensors import Scenario, Sensor
from engine.frames import RasterOpener
from engine.health.audit import auditor_of
from engine.health.preflight import SAMPLED_TILES, Advice, examine
from engine.rasters.georeference import gdal_environment
from engine.rasters.names import RasterName
from engine.stitcher import Tiling


def look(
    bundle_path: Path,
    paths: Mapping[Sensor, RasterName],
    *,
    rgir_bands: tuple[int, int, int] | None = None,
    ndsm_scale_m: float | None = None,
) -> tuple[Advice, ...]:
    """What is wrong with rasters as a whole.

    Args:
        bundle_path: of the model.
        paths: a raster for each sensor there is.
        rgir_bands, ndsm_scale_m: see :class:`engine.request.RunRequest`.

    Raises:
        BundleError: the bundle cannot be trusted.
        InputError: a raster cannot be used, or they do not fit together.
    """
    bundle = Bundle.load(bundle_path)
    manifest = bundle.manifest
    opener = RasterOpener(
        specs={sensor: manifest.sensor(sensor) for sensor in paths},
        tile_px=manifest.tile_px,
        rgir_bands=rgir_bands,
        ndsm_scale_m=ndsm_scale_m,
    )
    with gdal_environment(), ExitStack() as stack:
        rasters = stack.enter_context(opener.open(paths))
        auditor = None
        if len(paths) == len(Sensor):
            try:
                options = BackendOptions(hint="latency")
                backend = options.open(bundle, scenarios=Scenario, wanted=(Output.CLASSES,))
            except BackendError:  # the doctor tells of that elsewhere; cheap signs do without
                pass
            else:
                auditor = auditor_of(stack.enter_context(backend), manifest)
        limits = {sensor: manifest.health[sensor] for sensor in paths}
        tiling = Tiling.of(manifest, halo_px=None, blend="none", gsd="auto")
        return examine(
            rasters,
            limits,
            tile_px=manifest.tile_px,
            window_px=tiling.laid(rasters.grid.height, rasters.grid.width, rasters.grid.gsd_m)[0],
            auditor=auditor,
            tiles=SAMPLED_TILES,
        )
