"""How QGIS is to draw a map: a ``.qml`` beside the GeoTIFF, with the names that a palette in TIFF cannot hold.

QGIS reads ``classes.qml`` by itself when it opens ``classes.tif``. The elements are those that
``QgsPalettedRasterRenderer::writeXml`` writes
(https://github.com/qgis/QGIS/blob/master/src/core/raster/qgspalettedrasterrenderer.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree

STYLED = ("classes", "provenance")
"""The maps that have a style; confidence is grey by itself."""

_DOCTYPE = b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def paletted_style(labels: Mapping[int, str], colours: Mapping[int, tuple[int, int, int]]) -> bytes:
    """A QGIS style file, UTF-8: one entry of the legend per label.

    Args:
        labels: by pixel value.
        colours: red, green, blue in 0..255, of at least those values.
    """
    root = ElementTree.Element("qgis", version="3.0.0", styleCategories="Symbology")
    renderer = ElementTree.SubElement(
        ElementTree.SubElement(root, "pipe"),
        "rasterrenderer",
        {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""},
    )
    palette = ElementTree.SubElement(renderer, "colorPalette")
    for value, label in labels.items():
        colour = "#{:02x}{:02x}{:02x}".format(*colours[value])
        ElementTree.SubElement(palette, "paletteEntry", value=str(value), color=colour, alpha="255", label=label)
    return _encoded(root)


def categorised_style(attribute: str, colours: Mapping[str, tuple[int, int, int]]) -> bytes:
    """A QGIS style file of polygons, UTF-8: one entry of the legend per value of an attribute.

    The elements are those of ``QgsCategorizedSymbolRenderer::save`` and ``QgsSymbolLayerUtils::saveSymbols``
    (https://github.com/qgis/QGIS/tree/master/src/core/symbology), which QGIS 3 reads in all versions.

    Args:
        attribute: of the polygons.
        colours: red, green, blue in 0..255, by value.
    """
    root = ElementTree.Element("qgis", version="3.0.0", styleCategories="Symbology")
    renderer = ElementTree.SubElement(
        root, "renderer-v2", {"type": "categorizedSymbol", "attr": attribute, "forceraster": "0", "enableorderby": "0"}
    )
    categories = ElementTree.SubElement(renderer, "categories")
    symbols = ElementTree.SubElement(renderer, "symbols")
    for number, (value, rgb) in enumerate(colours.items()):
        ElementTree.SubElement(
            categories, "category", value=value, label=value, symbol=str(number), render="true", type="string"
        )
        symbol = ElementTree.SubElement(symbols, "symbol", type="fill", name=str(number), alpha="1")
        layer = ElementTree.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "pass": "0"})
        drawn = {"color": ",".join(map(str, (*rgb, 255))), "style": "solid", "outline_style": "no"}
        for name, told in drawn.items():
            ElementTree.SubElement(layer, "prop", k=name, v=told)
    return _encoded(root)


def _encoded(root: ElementTree.Element) -> bytes:
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8")
    return _DOCTYPE + text + b"\n"
