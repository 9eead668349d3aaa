"""Pictures of the maps with the places where the engine was switched; long strips are folded like lines of text."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from engine.contract.bundle import NODATA_CLASS, ClassSpec
from engine.contract.page import tag
from engine.contract.sensors import PROVENANCE_RGB, Provenance
from engine.grid import Window
from engine.rasters.map_reader import MapReader

WIDE_PX = 1040
SMALL_PX = 520
STRETCHED = 4.0
"""A map longer than so many times its width is folded."""

Colouring = Callable[[NDArray[np.uint8]], Image.Image]
"""Values of one map to a picture in which what is not mapped is transparent."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A spot on a map, in its pixels."""

    row: float
    col: float
    label: str
    colour: str
    title: str


def picture(maps: MapReader, name: str, colouring: Colouring, *, marks: Sequence[Mark] = (), side_px: int) -> Markup:
    """One map, ``side_px`` wide; folded where it is a strip. Marks without a label are dots."""
    pieces = list(_pieces(maps.height, maps.width))
    upright = maps.height > maps.width
    drawn = []
    for piece in pieces:
        scale = side_px / (len(pieces) * piece.width if upright and len(pieces) > 1 else piece.width)
        if piece.height * scale > side_px:
            scale = side_px / piece.height
        height, width = max(1, round(piece.height * scale)), max(1, round(piece.width * scale))
        height, width = min(height, piece.height), min(width, piece.width)
        image = colouring(maps.small(name, piece, height, width))
        drawn.append(tag("div", _embedded(image, name), _spots(piece, marks), class_="piece"))
    return tag("div", drawn, class_="pieces side" if upright and len(pieces) > 1 else "pieces")


def thumbnail(maps: MapReader, colouring: Colouring, *, alt: str, side_px: int = 160) -> Markup:
    """The classes of a whole frame, small."""
    scale = min(1.0, side_px / max(maps.height, maps.width))
    height, width = max(1, round(maps.height * scale)), max(1, round(maps.width * scale))
    whole = Window(row=0, col=0, height=maps.height, width=maps.width)
    return _embedded(colouring(maps.small("classes", whole, height, width)), alt)


def by_class(classes: Sequence[ClassSpec]) -> Colouring:
    """Classes in their own colours."""
    return _paletted({index: spec.rgb for index, spec in enumerate(classes)}, unmapped=NODATA_CLASS)


def by_provenance() -> Colouring:
    """Which sensors a pixel was mapped from."""
    return _paletted({source: PROVENANCE_RGB[source] for source in Provenance}, unmapped=Provenance.NONE)


def by_confidence() -> Colouring:
    """From black, no confidence, to white."""
    return _paletted({value: (value, value, value) for value in range(1, 256)}, unmapped=0)


def _paletted(colours: dict[int, tuple[int, int, int]], *, unmapped: int) -> Colouring:
    palette = [component for value in range(256) for component in colours.get(value, (0, 0, 0))]

    def colouring(values: NDArray[np.uint8]) -> Image.Image:
        image = Image.fromarray(np.ascontiguousarray(values))
        image.putpalette(palette)
        image.info["transparency"] = int(unmapped)
        return image

    return colouring


def _pieces(height: int, width: int) -> Iterator[Window]:
    """The whole, or parts of a strip along its length, so that all together are about as high as wide."""
    long, short = max(height, width), min(height, width)
    count = 1 if long <= STRETCHED * short else max(2, math.floor(math.sqrt(0.75 * long / short)))
    ends = [round(long * number / count) for number in range(count + 1)]
    for start, stop in itertools.pairwise(ends):
        if width >= height:
            yield Window(row=0, col=start, height=height, width=stop - start)
        else:
            yield Window(row=start, col=0, height=stop - start, width=width)


def _spots(piece: Window, marks: Sequence[Mark]) -> Iterator[Markup]:
    for mark in marks:
        down, right = (mark.row - piece.row) / piece.height, (mark.col - piece.col) / piece.width
        if 0 <= down < 1 and 0 <= right < 1:
            yield tag(
                "span",
                mark.label,
                class_="mark" if mark.label else "mark dot",
                style=f"top:{100 * down:.2f}%;left:{100 * right:.2f}%;background:{mark.colour}",
                title=mark.title,
            )


def _embedded(image: Image.Image, alt: str) -> Markup:
    with io.BytesIO() as buffer:
        image.save(buffer, format="PNG", optimize=True)
        encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return tag("img", src=f"data:image/png;base64,{encoded}", alt=alt, width=image.width, height=image.height)
