"""What labels mean: classes with names and colours, and how colour-coded label images become class indices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.contract.bundle import ClassSpec

IGNORE_INDEX = 255
"""Label of pixels whose class is unknown: no loss, no metric."""


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """The classes of a data set; a class's index is its place.

    Raises:
        ValueError: names or colours repeat, there are none or too many, or ``counted`` names no class.
    """

    classes: tuple[ClassSpec, ...]
    counted: tuple[int, ...]
    """Indices over which mF1 and mIoU are taken; ISPRS leaves clutter out."""
    ignored_rgb: tuple[tuple[int, int, int], ...] = ((0, 0, 0),)
    """Colours that mean unknown."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) < IGNORE_INDEX:
            raise ValueError(f"1 to {IGNORE_INDEX - 1} classes are allowed, received {len(self.classes)}")
        for what, values in (
            ("names", [spec.name for spec in self.classes]),
            ("colours", [*(spec.rgb for spec in self.classes), *self.ignored_rgb]),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"class {what} must differ, received {values}")
        if not self.counted or not set(self.counted) <= set(range(len(self.classes))):
            raise ValueError(f"counted classes must be among 0..{len(self.classes) - 1}, received {self.counted}")

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by index."""
        return tuple(spec.name for spec in self.classes)

    def palette(self) -> NDArray[np.uint8]:
        """uint8 [256, 3]: colour by label; black where there is no class."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.classes)] = [spec.rgb for spec in self.classes]
        return table


ISPRS_LABELS = LabelSet(
    classes=(
        ClassSpec(name="impervious surface", rgb=(255, 255, 255)),
        ClassSpec(name="building", rgb=(0, 0, 255)),
        ClassSpec(name="low vegetation", rgb=(0, 255, 255)),
        ClassSpec(name="tree", rgb=(0, 255, 0)),
        ClassSpec(name="car", rgb=(255, 255, 0)),
        ClassSpec(name="clutter", rgb=(255, 0, 0)),
    ),
    counted=(0, 1, 2, 3, 4),
)
"""The six classes of the ISPRS 2-D semantic labelling contest; clutter is not counted."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Class indices of a colour-coded image, and what did not fit."""

    labels: NDArray[np.uint8]
    """uint8 [H, W], 255 where unknown or unmatched."""
    unmatched: int
    """Pixels whose colour is no class's and not an ignored one."""
    inexact: int
    """Pixels that were matched after rounding only; a lossy re-encoding shows here."""
    example_rgb: tuple[int, int, int] | None
    """An unmatched colour."""


def decode_colours(rgb: NDArray[np.uint8], labels: LabelSet, *, threshold: bool = False) -> Decoded:
    """Class index of each pixel of a colour-coded label image.

    Args:
        rgb: uint8 [3, H, W].
        labels: whose colours are looked up.
        threshold: first round each channel to 0 or 255 at 127. All ISPRS colours are corners of the colour cube, so
            that this repairs lossy files (Potsdam 4_12) and a mis-coded car yellow (6_7).

    Raises:
        ValueError: ``rgb`` is not uint8 [3, H, W].
    """
    if rgb.ndim != 3 or rgb.shape[0] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"a label image must be uint8 [3, H, W], received {rgb.dtype} {rgb.shape}")
    rounded = np.where(rgb > 127, np.uint8(255), np.uint8(0)) if threshold else rgb
    code = _code(rounded)
    known = [*((spec.rgb, index) for index, spec in enumerate(labels.classes))]
    known += [(colour, IGNORE_INDEX) for colour in labels.ignored_rgb]
    codes = np.array([_code(np.array(colour, np.uint8)) for colour, _ in known], np.uint32)
    order = np.argsort(codes)
    place = np.minimum(np.searchsorted(codes[order], code), len(codes) - 1)
    matched = codes[order][place] == code
    indices = np.array([index for _, index in known], np.uint8)[order]
    first = np.argwhere(~matched)[:1]
    return Decoded(
        labels=np.where(matched, indices[place], np.uint8(IGNORE_INDEX)),
        unmatched=int((~matched).sum()),
        inexact=int((matched & (rounded != rgb).any(axis=0)).sum()) if threshold else 0,
        example_rgb=tuple(int(v) for v in rgb[:, first[0][0], first[0][1]]) if len(first) else None,  # type: ignore[arg-type]
    )


def _code(rgb: NDArray[np.uint8]) -> NDArray[np.uint32]:
    wide = rgb.astype(np.uint32)
    return np.asarray((wide[0] << 16) | (wide[1] << 8) | wide[2])
