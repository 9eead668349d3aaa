"""The version of this package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """The version that is installed; ``source`` where none is."""
    try:
        return version("gemmnet-edge")
    except PackageNotFoundError:
        return "source"
