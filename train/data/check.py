"""Inspect a data set before training: what is missing, misaligned or mis-coded, and what to do about it.

    python -m train.data.check /data/Vaihingen
    python -m train.data.check /data/scenes --kind folder

The kind is told from the file names unless ``--kind`` says it. Every file of every tile is read once; nothing is
written. For a folder of your own scenes, ``train/data/folder.py`` explains the layout and ``dataset.toml``, as in

    [split]
    validation = ["north"]

    [[class]]
    name = "water"
    rgb = [0, 0, 255]

Exit codes: 0 usable, 1 something must be repaired first, 2 no data set there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from engine.contract.command import command_parser
from train.data.folder import FILES, FolderSource
from train.data.isprs import CITIES, City, Part, TileFiles, find_tiles, read_tile
from train.data.labels import ISPRS_LABELS, LabelSet, decode_colours
from train.data.rasters import DataError, Raster

Severity = Literal["error", "warning", "note"]

SHIFT_LIMIT_PX = 4
"""Heights whose buildings fit the labels best when moved further than this are called misaligned."""
SHIFT_GAIN = 1.05
"""... provided the fit is better by this factor."""


@dataclass(frozen=True, kw_only=True)
class DataFinding:
    """One thing to know about a data set."""

    severity: Severity
    where: str
    message: str


def check_city(root: Path, city: City) -> Iterator[DataFinding]:
    """Findings tile by tile.

    Raises:
        DataError: nothing under ``root`` belongs to the city.
    """
    tiles = find_tiles(root, city)
    part_of: dict[str, Part] = {tile: part for part, names in city.splits.items() for tile in names}
    for tile, files in tqdm(tiles.items(), desc=f"checking {city.name}", unit="tile"):
        where = f"{tile} ({part_of[tile]})"
        lacking = [name for name in ("rgir", "ndsm", "labels") if getattr(files, name) is None]
        for name in lacking:
            yield DataFinding(severity="error", where=where, message=f"has no {name} file: download it")
        if lacking:
            continue
        if files.labels_eroded is None:
            yield DataFinding(severity="note", where=where, message="has no _noBoundary labels: they will be computed")
        try:
            arrays = read_tile(files)
        except DataError as error:
            yield DataFinding(severity="error", where=where, message=str(error))
            continue
        yield from _label_file(where, files)
        yield from _arrays(where, arrays, ISPRS_LABELS)


def check_folder(root: Path) -> Iterator[DataFinding]:
    """Findings scene by scene.

    Raises:
        DataError: there is no scene, or ``dataset.toml`` does not fit.
    """
    source = FolderSource(root=root, cache=root)  # the cache is not touched: nothing is prepared here
    try:
        finest, coarsest = source.gsd_m
        yield DataFinding(
            severity="note", where="all", message=f"ground sampling distance {finest:g} to {coarsest:g} m"
        )
    except DataError as error:
        yield DataFinding(severity="error", where="all", message=str(error))
    scenes = sorted(path.name for path in root.iterdir() if any((path / f"{name}.tif").exists() for name in FILES))
    for scene in tqdm(scenes, desc="checking scenes", unit="scene"):
        present = [name for name in FILES if (root / scene / f"{name}.tif").exists()]
        for name in FILES:
            if name not in present:
                use = "trains the generators alone" if name == "labels" else "is used for the other sensor alone"
                yield DataFinding(severity="note", where=scene, message=f"has no {name}.tif: it {use}")
        if present == ["labels"]:
            yield DataFinding(severity="error", where=scene, message="has labels but no sensor: add one or remove it")
            continue
        try:
            arrays = source.read_scene(scene)
        except DataError as error:
            yield DataFinding(severity="error", where=scene, message=str(error))
            continue
        yield from _arrays(scene, arrays, source.labels)


def _label_file(where: str, files: TileFiles) -> Iterator[DataFinding]:
    """Colours that are repaired on reading, and colours that are not."""
    assert files.labels is not None
    with Raster(files.labels) as raster:
        rgb, _ = raster.read((1, 2, 3))
    decoded = decode_colours(rgb, ISPRS_LABELS, threshold=True)
    if decoded.inexact:
        share = 100 * decoded.inexact / decoded.labels.size
        yield DataFinding(
            severity="note", where=where, message=f"{share:.2g} % of the label colours are inexact: they are rounded"
        )
    if decoded.unmatched:
        message = f"{decoded.unmatched} label pixels such as {decoded.example_rgb} are no class: they count as unknown"
        yield DataFinding(severity="warning", where=where, message=message)


def _arrays(where: str, arrays: Mapping[str, NDArray[Any]], labels: LabelSet) -> Iterator[DataFinding]:
    height, truth, rgir = arrays.get("ndsm"), arrays.get("labels"), arrays.get("rgir")
    if rgir is not None and float(rgir.std()) < 1:
        yield DataFinding(severity="error", where=where, message="the image is one colour: copy it again")
    if height is not None:
        metres = height.astype(np.float32)
        unknown = float(np.isnan(metres).mean())
        low, high = (float(value) for value in np.nanpercentile(metres, (0.1, 99.9)))
        if unknown:
            severity: Severity = "warning" if unknown > 0.01 else "note"
            yield DataFinding(
                severity=severity, where=where, message=f"{100 * unknown:.2g} % of the heights are unknown"
            )
        if low < -5 or high > 200:
            message = (
                f"heights from {low:.1f} to {high:.1f} m are not above ground: pass an nDSM, not a surface model, or "
                "set ndsm_scale_m"
            )
            yield DataFinding(severity="error", where=where, message=message)
        elif high < 0.5:
            message = f"no height above {high:.2f} m: check the unit (ndsm_scale_m)"
            yield DataFinding(severity="warning", where=where, message=message)
    if truth is None:
        return
    known = truth[truth < len(labels.classes)]
    if not known.size:
        yield DataFinding(severity="error", where=where, message="no pixel has a class: check the labels")
        return
    if height is not None and "building" in labels.names:
        shift = misalignment(height[0].astype(np.float32), truth == labels.names.index("building"))
        if shift is not None:
            message = f"heights fit the building labels best when moved by {shift} px (down, right): align them"
            yield DataFinding(severity="warning", where=where, message=message)


def misalignment(height: NDArray[np.float32], building: NDArray[np.bool_]) -> tuple[int, int] | None:
    """By how many pixels (down, right) heights have to be moved to fit building outlines; None where they fit.

    The cross-correlation of height and building mask, in the frequency domain, searched within 32 px.

    Args:
        height: float32 [H, W], metres, NaN where unknown.
        building: bool [H, W].
    """
    if not 0.02 < float(building.mean()) < 0.8:
        return None  # too little to go by
    signal = np.clip(np.nan_to_num(height, nan=0.0), 0, 6)
    mask = building.astype(np.float32)
    spectrum = np.fft.rfft2(mask - mask.mean()) * np.conj(np.fft.rfft2(signal - signal.mean()))
    fit = np.fft.irfft2(spectrum, s=building.shape)
    reach = min(32, *(side // 4 for side in building.shape))
    moves = np.arange(-reach, reach + 1)
    near = fit[np.ix_(moves, moves)]
    best = np.unravel_index(int(near.argmax()), near.shape)
    down, right = int(moves[best[0]]), int(moves[best[1]])
    here = float(near[reach, reach])
    if max(abs(down), abs(right)) <= SHIFT_LIMIT_PX or float(near[best]) <= SHIFT_GAIN * here:
        return None
    return down, right


def kind_of(root: Path) -> str:
    """``vaihingen``, ``potsdam`` or ``folder``, by the names of the files.

    Raises:
        DataError: none of them.
    """
    reasons = []
    for name, city in CITIES.items():
        try:
            find_tiles(root, city)
        except DataError as error:
            reasons.append(str(error))
        else:
            return name
    if next(root.glob("*/rgir.tif"), None) or next(root.glob("*/ndsm.tif"), None):
        return "folder"
    raise DataError(f"{root} is no data set: {reasons[0]}; or put rgir.tif and ndsm.tif into one folder per scene")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = command_parser("train.data.check", __doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the data set")
    parser.add_argument("--kind", choices=(*CITIES, "folder"), help="which layout (told from the file names)")
    options = parser.parse_args(argv)
    try:
        kind = options.kind or kind_of(options.root)
        findings = list(check_city(options.root, CITIES[kind]) if kind in CITIES else check_folder(options.root))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    for finding in findings:
        print(f"{finding.severity:8}{finding.where}: {finding.message}")
    errors = sum(finding.severity == "error" for finding in findings)
    verdict = f"{errors} must be repaired" if errors else "usable"
    print(f"{kind} in {options.root}: {verdict}, {len(findings)} findings")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
