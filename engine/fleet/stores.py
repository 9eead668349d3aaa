"""Which store an output names."""

from __future__ import annotations

from pathlib import Path

from engine.contract.errors import UsageError
from engine.fleet.store import FolderStore, Store
from engine.rasters.names import RasterName


def store_at(output: RasterName) -> Store:
    """The store that an output names.

    Args:
        output: a folder, or a URL such as ``s3://bucket/maps``.

    Raises:
        UsageError: it is no place that can be written to, or a library is missing.
    """
    if isinstance(output, Path):
        return FolderStore(output)
    try:
        from engine.fleet.bucket import BucketStore
    except ImportError as error:
        raise UsageError(
            f"--output {output} needs obstore, which cannot be imported ({error}): pip install 'gemmnet-edge[fleet]'"
        ) from error
    return BucketStore(output)
