"""What is to be mapped, as units: a CSV of raster names, a folder of rasters, a prefix in a bucket, a STAC collection.

::

    rgir,ndsm                        rgir,dsm,dtm,name
    rgir_0001.tif,ndsm_0001.tif      b.tif,b_dsm.tif,b_dtm.tif,north
    rgir_0002.tif,                   c.tif,,,south

Names are relative to the list. An empty field is a sensor that is missing there. A unit is called as its column
``name`` says; else as its first raster is, without the word for the sensor. A broken line becomes a unit that says why,
and the others go on; so does a part of a collection that cannot be read. Items of a collection are not opened here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from engine.contract.errors import OutputError, RasterOpenError, UsageError
from engine.contract.formats import MalformedError, csv_rows, open_regular
from engine.contract.sensors import Sensor
from engine.fleet.units import RASTER_OPTIONS, Unit
from engine.live.frame_name import Pattern, check_stamp, stamp_order
from engine.rasters.names import RasterName, raster_name
from engine.stac.listing import items_in

SUFFIXES = frozenset({".tif", ".tiff", ".vrt", ".jp2", ".img"})
"""Of the files that are looked at where a folder has the rasters of one sensor alone."""
_SENSOR_WORD = re.compile(r"(?i)(?:^|[_\W]+)(?:rgir|ndsm|dsm|dtm)(?=$|[_\W])")


def read_units(source: RasterName, *, sensor: Sensor | None, pattern: Pattern) -> list[Unit]:
    """The units of a list, a folder, a collection or a bucket.

    Args:
        source: the file of the list or of a STAC collection, the folder, or a URL.
        sensor: whose rasters a folder or bucket has, whatever their names; None goes by the pattern.
        pattern: of the names of files in a folder or bucket.

    Raises:
        UsageError: it is none of them, cannot be read, or holds no unit.
    """
    if isinstance(source, Path):
        source = source.absolute()  # others may read it from elsewhere
    what = _kind(source)
    try:
        if what == "STAC collection":
            units = _in_collection(str(source))
        elif isinstance(source, str):
            units = _among(_in_bucket(source), sensor, pattern)
        elif what == "folder":
            units = _among(((path.name, str(path)) for path in source.iterdir()), sensor, pattern)
        else:
            units = _in_list(source)
        found = list(_distinct(units))
    except (OutputError, RasterOpenError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(
            f"the list {source} cannot be read ({error.strerror}): pass a CSV, a folder, a STAC collection or a bucket"
        ) from error
    except MalformedError as error:
        raise UsageError(f"the list {source} cannot be used: {error}") from error
    if not found:
        hint = (
            "add some"
            if what in ("list", "STAC collection")
            else f"name files as {pattern.text}, or pass --pattern or --sensors rgir"
        )
        raise UsageError(f"the {what} {source} names no raster: {hint}")
    return found


def _kind(source: RasterName) -> str:
    if str(source).casefold().endswith((".json", ".geojson")):
        return "STAC collection"
    if isinstance(source, str):
        return "bucket"
    return "folder" if source.is_dir() else "list"


def _in_list(path: Path) -> Iterator[tuple[int, Unit]]:
    """Units with their lines."""
    with open_regular(path) as content:
        for line, row in csv_rows(content, (), others=True):
            if isinstance(row, str):
                yield line, _broken(line, f"it {row}")
            elif not set(row) & set(RASTER_OPTIONS):
                raise MalformedError(
                    f"its first line names columns, of {', '.join(RASTER_OPTIONS)} and name; found {', '.join(row)}"
                )
            elif any(row.values()):
                yield line, _unit(line, row, path.parent)


def _unit(line: int, row: Mapping[str, str], folder: Path) -> Unit:
    rasters = tuple(
        (option, _beside(folder, text)) for option in RASTER_OPTIONS if (text := row.get(option, "").strip())
    )
    if not rasters:
        return _broken(line, "it names no raster")
    name = row.get("name", "").strip() or _name_of(rasters[0][1])
    try:
        check_stamp(name)
    except ValueError as error:
        return _broken(line, str(error).replace("a stamp", "a name"))
    return Unit(name=name, rasters=rasters)


def _beside(folder: Path, text: str) -> str:
    """A raster's name, where a relative one counts from the list."""
    name = raster_name(text)
    return str(folder / name) if isinstance(name, Path) else text


def _name_of(text: str) -> str:
    """``rgir_0001.tif`` and ``0001-RGIR.tif`` are 0001, ``0001/rgir.tif`` as well."""
    folder, _, file = text.rpartition("/")
    stem = re.sub(r"\.\w+$", "", file)
    stem = _SENSOR_WORD.sub("", stem).strip("_-. ") or folder.rpartition("/")[2]
    return re.sub(r"[^\w.:+-]", "_", stem)


def _in_collection(name: str) -> Iterator[tuple[int, Unit]]:
    """A unit for each item."""
    for number, (item, fault) in enumerate(items_in(name), 1):
        yield number, Unit(name=_item_name(item), rasters=(("stac", item),)) if not fault else _broken(number, fault)


def _item_name(item: str) -> str:
    """``scenes/0001.json`` is 0001, ``scenes/0001/item.json`` as well."""
    folder, _, file = item.partition("?")[0].rpartition("/")
    stem = re.sub(r"\.\w+$", "", file)
    return re.sub(r"[^\w.:+-]", "_", folder.rpartition("/")[2] if stem == "item" else stem)


def _in_bucket(url: str) -> Iterator[tuple[str, str]]:
    """Name and URL of each object."""
    try:
        from engine.fleet.bucket import listed
    except ImportError as error:
        raise UsageError(
            f"{url} needs obstore, which cannot be imported ({error}): pip install 'gemmnet-edge[fleet]'"
        ) from error
    return listed(url)


def _among(files: Iterable[tuple[str, str]], sensor: Sensor | None, pattern: Pattern) -> Iterator[tuple[int, Unit]]:
    """Units of files that are called so and lie there, in the order of their names."""
    found: dict[str, dict[str, str]] = {}
    for name, place in files:
        if sensor is not None:
            stem, dot, suffix = name.rpartition(".")
            if f"{dot}{suffix}".casefold() in SUFFIXES:
                found[stem] = {sensor.value: place}
        elif (told := pattern.match(name)) is not None:
            found.setdefault(told[1], {})[told[0].value] = place
    for number, name in enumerate(sorted(found, key=stamp_order), 1):
        rasters = found[name]
        yield (
            number,
            Unit(name=name, rasters=tuple((each, rasters[each]) for each in RASTER_OPTIONS if each in rasters)),
        )


def _distinct(units: Iterator[tuple[int, Unit]]) -> Iterator[Unit]:
    """A name that comes twice would be two maps in one folder."""
    lines: dict[str, int] = {}
    for line, unit in units:
        first = lines.setdefault(unit.name.casefold(), line)
        if first != line:
            yield _broken(line, f"its name {unit.name!r} is that of line {first}: give both one in a column `name`")
        else:
            yield unit


def _broken(line: int, why: str) -> Unit:
    return Unit(name=f"line-{line}", broken=f"line {line} of the list cannot be used: {why}")
