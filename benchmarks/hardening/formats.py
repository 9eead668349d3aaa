"""Every foreign format: what is damaged, the command or function that reads it, and when it may be accepted."""

from __future__ import annotations

import csv
import json
import sys
import tomllib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAPS = ("classes.tif", "confidence.tif", "provenance.tif")
PRELOADED = ("benchmarks.hardening.formats", "engine.run", "engine.report", "engine.keys", "train.data.check")
Command = Callable[[Path], int]


def _nothing(_folder: Path) -> None:
    """There is nothing else to make ready."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """What is damaged, who reads it, and what is right."""

    files: tuple[str, ...]
    """Patterns in the ground; one of the files is damaged."""
    run: Command
    """Reads it, in a process of its own; returns the exit code."""
    refused: Collection[int]
    """Documented exit codes of a refusal."""
    right: Callable[[Path, Path], bool]
    """Whether what came out of a folder is right although its input is damaged; the second is the ground."""
    done: Collection[int] = (0,)
    ready: Callable[[Path], None] = _nothing
    """Called once the file is damaged."""
    told_on_stdout: bool = False
    """The command lists its findings there."""

    def target(self, folder: Path, seed: int) -> Path:
        """The file that an attempt damages."""
        found = sorted(path for pattern in self.files for path in folder.glob(pattern) if path.is_file())
        assert found, f"no {self.files} in {folder}"
        return found[seed % len(found)]


def engine_run(folder: Path, *more: str) -> int:
    """``python -m engine.run`` over the rasters of a folder."""
    from engine.run import main

    inputs = ["--rgir", str(folder / "rgir.tif"), "--ndsm", str(folder / "ndsm.tif")]
    always = ["--bundle", str(folder / "bundle"), "--output", str(folder / "map"), "--backend", "onnxruntime"]
    return main([*inputs, *always, "--precision", "fp32", "--threads", "1", "--quiet", *more])


def live_run(folder: Path, *more: str) -> int:
    """``python -m engine.run --live`` over the frames of a folder."""
    from engine.run import main

    always = ["--bundle", str(folder / "bundle"), "--output", str(folder / "flight"), "--backend", "onnxruntime"]
    always += ["--precision", "fp32", "--threads", "1", "--quiet", "--partner-wait", "100", "--idle-exit", "0.5"]
    return main(["--live", str(folder / "frames"), *always, "--sensors", "rgir,ndsm", *more])


def report(folder: Path) -> int:
    """``python -m engine.report``."""
    from engine.report.__main__ import main

    return main([str(folder)])


def _keys(folder: Path) -> int:
    from engine.keys import main

    return main(["verify", str(folder / "bundle"), "--keys", str(folder / "keys")])


def _check(folder: Path) -> int:
    from train.data.check import main

    return main([str(folder / "scenes")])


def _boundary(read: Callable[[], object]) -> int:
    from engine.contract.errors import EngineError

    try:
        read()
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:  # of a boundary that a command turns into an error of its own
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _plan(folder: Path) -> int:
    from engine.contract.bundle import Bundle
    from engine.contract.plan_cache import find_plan
    from engine.contract.plans import PlanHost
    from engine.contract.sensors import Scenario

    def read() -> None:
        host = PlanHost(library="tensorrt", library_version="10.3.0", device=None)
        content = find_plan(Bundle.load(folder / "bundle"), Scenario.FULL, "fp16", host).read()
        (folder / "plan.read").write_bytes(content)

    return _boundary(read)


def _training(folder: Path) -> int:
    import torch

    from train.checkpoint import load_state

    def read() -> None:
        state = load_state(folder / "resume.pt", torch.device("cpu"))
        (folder / "state.read").write_text(repr(sorted((name, _plain(value)) for name, value in state.items())))

    return _boundary(read)


def _policy(folder: Path) -> int:
    from engine.contract import trust

    def read() -> None:
        policy = trust.installed_policy(folders=[folder / "etc"])
        (folder / "policy.read").write_text(f"{policy.require_signature} {policy.keys} {policy.minimum_number}")
        trust.check_number("toy", 7, folder / "bundle", policy)

    return _boundary(read)


def _plain(value: Any) -> object:
    return value.tolist() if hasattr(value, "tolist") else value


# --- may it be accepted? answered without the project's own readers


def same_maps(folder: Path, ground: Path) -> bool:
    """The maps are those of the run that nothing happened to."""
    return all((folder / "map" / name).read_bytes() == (ground / "whole" / name).read_bytes() for name in MAPS)


def _same(*names: str) -> Callable[[Path, Path], bool]:
    return lambda folder, ground: all((folder / name).read_bytes() == (ground / name).read_bytes() for name in names)


def _same_lines(pattern: str) -> Callable[[Path, Path], bool]:
    def same(folder: Path, ground: Path) -> bool:
        return all(
            (folder / path.relative_to(ground)).read_text().splitlines() == path.read_text().splitlines()
            for path in ground.glob(pattern)
        )

    return same


def _text(path: Path) -> str:
    return path.read_bytes().decode()


def _is_json(name: str) -> Callable[[Path, Path], bool]:
    """It is JSON and has what the whole one has."""

    def right(folder: Path, ground: Path) -> bool:
        try:
            return set(json.loads(_text(folder / name))) >= set(json.loads(_text(ground / name)))
        except ValueError:
            return False

    return right


def _shape(value: object) -> object:
    if isinstance(value, dict):
        return {name: _shape(each) for name, each in value.items()}
    return None


def _is_toml(name: str) -> Callable[[Path, Path], bool]:
    """It is TOML, and no name in it is one that the whole file does not have."""

    def right(folder: Path, ground: Path) -> bool:
        try:
            found, whole = (_shape(tomllib.loads(_text(each / name))) for each in (folder, ground))
        except ValueError:
            return False
        return _within(found, whole)

    return right


def _within(found: object, whole: object) -> bool:
    if not isinstance(found, dict) or not isinstance(whole, dict):
        return True
    return set(found) <= set(whole) and all(_within(value, whole[name]) for name, value in found.items())


def _is_csv(name: str) -> Callable[[Path, Path], bool]:
    def right(folder: Path, ground: Path) -> bool:
        try:
            rows = list(csv.reader(_text(folder / name).splitlines()))
        except (ValueError, csv.Error):
            return False
        head = _text(ground / name).splitlines()[0].split(",")
        return rows[0] == head and all(len(row) == len(head) for row in rows)

    return right


def _rasters_whole(folder: Path, ground: Path) -> bool:
    """GDAL reads every pixel of both, and the maps are as large."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        for name in ("rgir.tif", "ndsm.tif"):
            with rasterio.open(folder / name) as file:
                file.read()
        with rasterio.open(folder / "rgir.tif") as file, rasterio.open(folder / "map" / "classes.tif") as mapped:
            return bool((file.width, file.height) == (mapped.width, mapped.height))
    except (RasterioError, ValueError, OSError):
        return False


def _golden_whole(folder: Path, ground: Path) -> bool:
    with np.load(ground / "bundle" / "golden.npz") as whole, np.load(folder / "bundle" / "golden.npz") as found:
        return all(np.array_equal(whole[name], found[name]) for name in whole)


def _rehash(folder: Path) -> None:
    """The manifest tells the hash of the damaged file: it is not the hash that must find it."""
    path = folder / "bundle" / "manifest.json"
    from engine.contract.files import FileRef

    told = json.loads(path.read_text())
    ref = FileRef.of(folder / "bundle" / "golden.npz", folder / "bundle")
    told["golden"] = {"path": ref.path, "size_bytes": ref.size_bytes, "sha256": ref.sha256}
    path.write_text(json.dumps(told))


def _good_frame(folder: Path, ground: Path) -> bool:
    """The frame whose files nobody touched is mapped as ever."""
    return all(
        (folder / "flight" / "good" / name).read_bytes() == (ground / "flown" / "good" / name).read_bytes()
        for name in MAPS
    )


def _flight_kept(folder: Path, ground: Path) -> bool:
    """Every frame that was mapped before is there, and the log tells of it."""
    stamps = [json.loads(line)["stamp"] for line in _text(folder / "flight" / "frames.jsonl").splitlines()]
    before = [json.loads(line)["stamp"] for line in _text(ground / "flight" / "frames.jsonl").splitlines()]
    return stamps[: len(before)] == before and all((folder / "flight" / stamp / MAPS[0]).exists() for stamp in before)


FORMATS: dict[str, Format] = {
    "manifest": Format(
        files=("bundle/manifest.json",), run=engine_run, refused=(5, 6), right=_is_json("bundle/manifest.json")
    ),
    "signed manifest": Format(
        files=("bundle/manifest.json",), run=_keys, refused=(5,), right=_same("bundle/manifest.json")
    ),
    "signature": Format(files=("bundle/*.sig",), run=_keys, refused=(5,), right=_same_lines("bundle/*.sig")),
    "public key": Format(files=("keys/*.pub",), run=_keys, refused=(5,), right=_same_lines("keys/*.pub")),
    "trust policy": Format(files=("etc/trust.toml",), run=_policy, refused=(5,), right=_is_toml("etc/trust.toml")),
    "bundle numbers": Format(
        files=("etc/numbers.json",), run=_policy, refused=(5,), right=_is_json("etc/numbers.json")
    ),
    "golden tiles": Format(
        files=("bundle/golden.npz",), run=engine_run, refused=(5, 6), right=_golden_whole, ready=_rehash
    ),
    "plan record": Format(files=("bundle/plans/full-*.json",), run=_plan, refused=(5, 6), right=_same("plan.read")),
    "plan": Format(files=("bundle/plans/full-*.plan",), run=_plan, refused=(5, 6), right=_same("plan.read")),
    "journal": Format(
        files=("map/.unfinished/journal.json",),
        run=lambda folder: engine_run(folder, "--resume"),
        refused=(7,),
        right=same_maps,
    ),
    "unfinished maps": Format(
        files=("map/.unfinished/tiles.csv", "map/.unfinished/frame/*"),
        run=lambda folder: engine_run(folder, "--resume"),
        refused=(7,),
        right=same_maps,
    ),
    "frame log": Format(
        files=("flight/frames.jsonl",),
        run=lambda folder: live_run(folder, "--resume"),
        refused=(4, 7),
        right=_flight_kept,
    ),
    "sidecar": Format(
        files=("frames/bad.json",),
        run=lambda folder: live_run(folder, "--pattern", "sidecar"),
        refused=(),
        done=(0, 8),
        right=_good_frame,
    ),
    "frame": Format(
        files=("frames/rgir_bad.tif", "frames/ndsm_bad.tif"), run=live_run, refused=(), done=(0, 8), right=_good_frame
    ),
    "TIFF": Format(
        files=("rgir.tif", "ndsm.tif"),
        run=lambda folder: engine_run(folder, "--sensors", "rgir,ndsm"),
        refused=(3, 8),
        right=_rasters_whole,
    ),
    "run.json": Format(files=("run.json",), run=report, refused=(2, 3), right=_is_json("run.json")),
    "tiles.csv": Format(files=("tiles.csv",), run=report, refused=(2, 3), right=_is_csv("tiles.csv")),
    "health limits": Format(
        files=("limits.toml",),
        run=lambda folder: engine_run(folder, "--dry-run", "--health", str(folder / "limits.toml")),
        refused=(2,),
        right=_is_toml("limits.toml"),
    ),
    "dataset.toml": Format(
        files=("scenes/dataset.toml",),
        run=_check,
        refused=(1, 2),
        right=_is_toml("scenes/dataset.toml"),
        told_on_stdout=True,
    ),
    "resume.pt": Format(files=("resume.pt",), run=_training, refused=(2,), right=_same("state.read")),
}
