"""Which raster each sensor has, by what a caller names: rasters, height models, a STAC item."""

from __future__ import annotations

from engine.contract.errors import UsageError
from engine.contract.sensors import Sensor
from engine.rasters.height_models import HeightModels
from engine.rasters.names import RasterName, raster_name
from engine.rasters.raster import RasterInput
from engine.stac.assets import rasters_of

Bands = tuple[int, int, int]


def rasters_given(
    *,
    rgir: RasterInput | None = None,
    ndsm: RasterInput | None = None,
    dsm: RasterName | None = None,
    dtm: RasterName | None = None,
    ground: str | None = None,
    stac: str | None = None,
    rgir_bands: Bands | None = None,
) -> tuple[dict[Sensor, RasterInput], Bands | None]:
    """The rasters by sensor, and the numbers of the bands that hold near-infrared, red and green.

    Args:
        rgir, ndsm: rasters.
        dsm, dtm: names of two whose difference is ``ndsm``, in metres.
        ground: ``"auto"`` finds the ground below ``dsm`` where there is no ``dtm``.
        stac: an item's JSON, a file or a URL, in place of all of these.
        rgir_bands: those that are asked for; None takes what an item says.

    Raises:
        UsageError: they contradict each other, or a library is missing.
        InputError: the item cannot be used.
    """
    given = {sensor: each for sensor, each in ((Sensor.RGIR, rgir), (Sensor.NDSM, ndsm)) if each is not None}
    if ground not in (None, "auto"):
        raise UsageError(f"`ground` takes auto, received {ground!r}")
    if ground is not None and dsm is None:
        raise UsageError("`ground` is looked for below a surface model: add `dsm`")
    if dsm is not None or dtm is not None:
        if ndsm is not None:
            raise UsageError("`dsm` and `dtm` are subtracted to make what `ndsm` names: pass those two, or `ndsm`")
        if ground is not None and dtm is not None:
            raise UsageError("`ground` finds what `dtm` already is: leave one of them away")
        if dsm is None or (dtm is None and ground is None):
            lacking, hint = ("`dsm`", "") if dsm is None else ("`dtm`", ", or ground=auto to find it")
            raise UsageError(f"height above ground is `dsm` minus `dtm`, received one of them: add {lacking}{hint}")
        given[Sensor.NDSM] = HeightModels(dsm=_name(dsm), dtm=None if dtm is None else _name(dtm))
    if stac is None:
        return given, rgir_bands
    for sensor, each in given.items():
        name = "dsm" if isinstance(each, HeightModels) else sensor.value
        raise UsageError(f"`stac` names the rasters itself: leave `{name}` away")
    given, bands = rasters_of(str(stac))
    return given, rgir_bands or bands


def _name(given: RasterName) -> RasterName:
    return raster_name(given) if isinstance(given, str) else given
