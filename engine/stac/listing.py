"""The items of a STAC collection, by their addresses; none is opened. Read by pystac, of the extra ``stac``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.contract.errors import RasterOpenError, UsageError
from engine.stac.reading import read_json


def items_in(name: str) -> Iterator[tuple[str, str]]:
    """Where each item lies, and why not where that cannot be told.

    Args:
        name: of the JSON of a collection, a catalogue (its children too), a feature collection of items, or an item: a
            file or a URL.

    Raises:
        UsageError: pystac is missing.
        RasterOpenError: it cannot be read, or is none of them.
    """
    try:
        import pystac
    except ImportError as error:
        raise UsageError("`stac` is read by pystac: `pip install 'gemmnet-edge[stac]'`") from error
    told = _read(name)
    if told.get("type") == "FeatureCollection":
        features = told.get("features")
        for number, feature in enumerate(features if isinstance(features, list) else (), 1):
            href = next((link.get("href") for link in _links(feature) if link.get("rel") == "self"), None)
            yield (_beside(pystac, str(href), name), "") if href else ("", f"feature {number} has no link to itself")
        return
    if told.get("type") == "Feature":
        yield name, ""
        return
    waiting, seen = [(name, told)], {name}
    while waiting:
        place, catalog = waiting.pop()
        for link in _links(catalog):
            href = _beside(pystac, str(link.get("href")), place)
            if link.get("rel") == "item":
                yield href, ""
            elif link.get("rel") == "child" and href not in seen:
                seen.add(href)
                try:
                    waiting.append((href, _read(href)))
                except RasterOpenError as error:
                    yield "", str(error)


def _links(told: object) -> list[dict[str, Any]]:
    """Of an object of STAC, whatever else it holds in their place."""
    links = told.get("links") if isinstance(told, dict) else None
    return [link for link in links if isinstance(link, dict)] if isinstance(links, list) else []


def _beside(pystac: Any, href: str, place: str) -> str:
    return str(pystac.utils.make_absolute_href(href, place))


def _read(name: str) -> dict[str, Any]:
    hint = "pass the JSON of a collection, a catalogue or a feature collection of items"
    told = read_json(name, hint=hint)
    if told.get("type") not in ("Catalog", "Collection", "FeatureCollection", "Feature"):
        raise RasterOpenError(f"`stac` {name} lists no items of STAC: {hint}")
    return told
