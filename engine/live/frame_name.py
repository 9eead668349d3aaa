"""Which sensor and which moment a file belongs to: told by its name, or by a JSON sidecar beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from string import Formatter

import msgspec

from engine.contract.errors import UsageError
from engine.contract.sensors import Sensor

_STAMP = r"\w[\w.:+-]{0,199}"
"""A stamp names a folder of results: it neither leaves its parent nor hides."""
_STAMP_BYTES = 200
_RESERVED = frozenset(
    [
        "classes.tif",
        "confidence.tif",
        "provenance.tif",
        "classes.qml",
        "provenance.qml",
        "quicklook.png",
        "report.html",
        "run.json",
        "tiles.csv",
        "frames.jsonl",
        "probabilities.tif",
        "item.json",
        "polygons.gpkg",
        "polygons.qml",
    ]
)
"""Names of files that lie beside the frames' folders."""
_OF_A_FLEET = r"(fleet|units|classes)\b.*\.(json|csv|vrt|html)"


def check_stamp(stamp: str) -> None:
    """See that a stamp can name a folder of results, wherever it comes from.

    Raises:
        ValueError: it cannot.
    """
    if not re.fullmatch(_STAMP, stamp) or len(stamp.encode(errors="replace")) > _STAMP_BYTES:
        raise ValueError(
            f"a stamp has letters, digits and _ . : + - after the first, {_STAMP_BYTES} bytes at most; received "
            f"{stamp[:80]!r}"
        )
    if stamp.casefold() in _RESERVED or re.fullmatch(_OF_A_FLEET, stamp.casefold()):
        raise ValueError(f"a stamp cannot be the name of a file of the results, received {stamp!r}")


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """How a file's name tells its sensor and stamp: ``{sensor}_{stamp}.tif``; upper or lower case for the sensor.

    Raises:
        UsageError: not both fields occur, exactly once each, or the pattern names a folder.
    """

    text: str

    def __post_init__(self) -> None:
        try:
            fields = sorted(name for _, name, _, _ in Formatter().parse(self.text) if name is not None)
        except ValueError as error:
            raise UsageError(f"`pattern` cannot be read ({error}); received {self.text!r}") from error
        if fields != ["sensor", "stamp"] or "/" in self.text:
            raise UsageError(
                "`pattern` names files of one folder and has the fields {sensor} and {stamp}, once each; "
                f"received {self.text!r}: write for example '{{sensor}}_{{stamp}}.tif'"
            )

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        groups = {"sensor": rf"(?P<sensor>(?i:{'|'.join(Sensor)}))", "stamp": rf"(?P<stamp>{_STAMP}?)", None: ""}
        return re.compile("".join(re.escape(text) + groups[name] for text, name, _, _ in Formatter().parse(self.text)))

    def match(self, name: str) -> tuple[Sensor, str] | None:
        """Sensor and stamp of a file; None where the name does not fit."""
        found = self._regex.fullmatch(name)
        return None if found is None else (Sensor(found["sensor"].lower()), found["stamp"])


class Sidecar(msgspec.Struct, frozen=True):
    """What a sidecar tells of the file beside it: ``{"sensor": "rgir", "stamp": "0001", "file": "a.tif"}``.

    Raises:
        ValueError: the file lies elsewhere, or the stamp cannot name a folder.
    """

    sensor: Sensor
    stamp: str
    file: str

    def __post_init__(self) -> None:
        if "/" in self.file or self.file in ("", ".", "..") or not self.file.isprintable():
            raise ValueError(f"a sidecar lies beside its file, received file {self.file[:80]!r}")
        check_stamp(self.stamp)


StampOrder = tuple[tuple[str | Decimal, ...], str]


def stamp_order(stamp: str) -> StampOrder:
    """Sorts stamps as people do: 9 before 10, 12.5 before 12.75."""
    texts_and_numbers = re.split(r"(\d+(?:\.\d+)?)", stamp, flags=re.ASCII)
    return tuple(Decimal(part) if place % 2 else part for place, part in enumerate(texts_and_numbers)), stamp
