"""Whose database of coordinate systems is used: the one that came with rasterio, not another program's.

``PROJ_DATA`` and ``PROJ_LIB`` name the folder of ``proj.db``. Installers of other programs set them for the whole
machine, and a database of another layout makes every coordinate system unknown
(https://rasterio.readthedocs.io/en/stable/faq.html).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

log = logging.getLogger(__name__)

VARIABLES = ("PROJ_DATA", "PROJ_LIB")


def ignore_foreign_proj_data() -> None:
    """Take ``PROJ_DATA`` and ``PROJ_LIB`` out of this process where rasterio cannot use what they name.

    Nothing happens where rasterio brought no database of its own: then the variables are meant for it. To be called
    before rasterio is imported, or before a ``rasterio.Env`` is entered.
    """
    if not any(name in os.environ for name in VARIABLES):
        return
    package = importlib.util.find_spec("rasterio")
    folders = [] if package is None else package.submodule_search_locations or []
    own = next((layout for folder in folders if (layout := _layout(Path(folder, "proj_data"))) is not None), None)
    if own is None:
        return
    for name in VARIABLES:
        folder = os.environ.get(name)
        if folder is not None and _layout(Path(folder)) != own:
            del os.environ[name]
            log.warning("%s=%s holds no proj.db that rasterio can use: its own is used instead", name, folder)


def _layout(folder: Path) -> tuple[str, ...] | None:
    """The layout version of ``proj.db`` in a folder; None where there is none."""
    path = folder / "proj.db"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT value FROM metadata WHERE key LIKE 'DATABASE.LAYOUT.VERSION.%' ORDER BY key"
            )
            return tuple(str(value) for (value,) in rows) or None
    except (sqlite3.Error, OSError, ValueError):
        return None
