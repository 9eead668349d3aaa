"""How a raster is named: a file of this machine, or one of GDAL's own names, which is not a path.

``/vsicurl/https://host/a.tif?url=b//c``, ``/vsizip//absolute.zip/a.tif``, ``s3://bucket/a.tif`` and
``NETCDF:"a.nc":height`` mean another thing, or nothing, once a ``Path`` has folded their slashes: they stay text.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

RasterName = Path | str
"""A file of this machine (``Path``), or a name that GDAL understands, kept as it was typed (``str``)."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVER = re.compile(r"[A-Za-z][A-Za-z0-9_]+:.")
"""A subdataset, as in ``NETCDF:a.nc:height``; one letter would be a Windows drive."""


def raster_name(text: str) -> RasterName:
    """What a user typed as the name of a raster. It may be used as the ``type`` of an option."""
    if text.startswith(("/vsi", "<VRTDataset", "<GDAL_WMS")) or _URL.match(text):
        return text
    if _DRIVER.match(text) and not os.path.lexists(text):
        return text
    return Path(text)


def local_file(name: RasterName) -> Path | None:
    """The file of this machine, or None for a name that only GDAL understands.

    Text that is a path counts as one, and a ``Path`` that once was GDAL's name does not.
    """
    if isinstance(name, str):
        name = raster_name(name)
    return None if isinstance(name, str) or str(name).startswith("/vsi") else name


def would_wait(name: RasterName) -> bool:
    """Whether a name is that of a pipe, a socket or a device: whoever opens it may wait or read for ever."""
    path = local_file(name)
    try:
        return path is not None and stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR)
    except (OSError, ValueError):
        return False


def gdal_name(name: RasterName) -> str:
    """What is handed to GDAL.

    A caller that made a ``Path`` of one of GDAL's names has lost a slash of its URL; that one is put back.

    Raises:
        ValueError: the name cannot be written in UTF-8, which is how GDAL takes names.
    """
    text = str(name)
    if isinstance(name, Path):
        text = re.sub(r"^(/vsi\w+/\w+:)/(?=[^/])", r"\1//", text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("its name is not valid UTF-8: rename it") from error
    return text


def short_name(name: RasterName) -> str:
    """The last part of a name, for logs."""
    return name.name if isinstance(name, Path) else name.rpartition("/")[2] or name
