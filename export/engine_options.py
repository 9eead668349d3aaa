"""Options that ``export.build`` and ``export.audit`` share, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import UsageError
from engine.contract.plans import AMPERE, BatchRange, Target
from engine.contract.sensors import Scenario
from export.arithmetic import MIN_SHARE
from export.cuda_device import current_device
from export.trt_library import TrtLibrary

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
DEFAULT_BATCH = "1,1,1"
"""The runtime sends one tile at a time; a larger maximum costs scratch memory for tiles that never come."""


def add_shared(options: argparse.ArgumentParser) -> None:
    """Which bundle, which graphs, which library, which folder, and what an engine must be."""
    options.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="bundle whose graphs are meant")
    options.add_argument("--precision", metavar="LIST", help="of fp32, fp16, int8 (default: all that the bundle holds)")
    options.add_argument("--cache", type=Path, metavar="DIR", help="folder of plans (default: plans under the bundle)")
    options.add_argument(
        "--library",
        choices=("auto", "tensorrt", "tensorrt_rtx"),
        default="auto",
        help="default: tensorrt where it is installed, else tensorrt_rtx",
    )
    for precision in ("fp16", "int8"):
        options.add_argument(
            f"--min-{precision}-share",
            type=float,
            default=MIN_SHARE[precision],
            metavar="SHARE",
            help=f"of its multiply-accumulates that an {precision} engine must do in {precision} or narrower "
            f"({MIN_SHARE[precision]})",
        )


def add_engine(options: argparse.ArgumentParser) -> None:
    """What a plan is built for."""
    engine = options.add_argument_group("engine")
    engine.add_argument(
        "--target",
        metavar="WHERE",
        help="device (this one only), ampere+ (compute capability 8.0 and later, for TensorRT-RTX those that it lists) "
        "or capabilities such as 86,89 "
        "(default: device for TensorRT, ampere+ for TensorRT-RTX)",
    )
    engine.add_argument(
        "--batch", default=DEFAULT_BATCH, metavar="MIN,OPT,MAX", help=f"tiles at a time (default: {DEFAULT_BATCH})"
    )
    engine.add_argument("--workspace", type=int, metavar="MIB", help="most scratch memory of a layer (no limit)")
    engine.add_argument(
        "--probabilities",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="plans with the output `probabilities`, which cross-fading reads (default); without it they write less, "
        "and serve `engine.run --blend none` alone",
    )


def min_shares(options: argparse.Namespace) -> Mapping[Precision, float]:
    """The least share of multiply-accumulates for each precision.

    Raises:
        UsageError: one is not a share.
    """
    shares = {**MIN_SHARE, "fp16": options.min_fp16_share, "int8": options.min_int8_share}
    wrong = [share for share in shares.values() if not 0 <= share <= 1]
    if wrong:
        raise UsageError(f"a share lies in [0, 1], received {wrong[0]}")
    return shares


def wanted_precisions(options: argparse.Namespace, bundle: Bundle, scenario: Scenario) -> list[Precision]:
    """The precisions of ``--precision``; without it, all that the bundle holds for the scenario.

    Raises:
        UsageError: the list names something else.
    """
    if options.precision is None:
        return [precision for precision in PRECISIONS if precision in bundle.manifest.graphs[scenario]]
    names = [name.strip() for name in options.precision.split(",") if name.strip()]
    if not names or set(names) - set(PRECISIONS):
        raise UsageError(f"--precision takes a list of {', '.join(PRECISIONS)}, received {options.precision!r}")
    return [precision for precision in PRECISIONS if precision in names]


def target_of(text: str | None, library: TrtLibrary) -> Target:
    """The devices that ``--target`` means for this library.

    Raises:
        UsageError: it cannot be read, or the library cannot build for it here.
        BackendUnavailableError: a device is needed and there is none.
    """
    if text is None:
        text = "device" if library.needs_device else "ampere+"
    if text == "ampere+":
        listed = tuple(known for known in library.compute_capabilities if known >= AMPERE)
        # TensorRT-RTX says "8.0 and later" and means those that it lists: 8.7 and 9.0 are not among them.
        return Target(scope="capabilities", compute_capabilities=listed) if listed else Target(scope="ampere_and_later")
    if text == "device":
        return Target.of(current_device())
    try:
        capabilities = tuple(sorted({int(number) for number in text.split(",")}))
    except ValueError as error:
        raise UsageError(
            f"--target takes device, ampere+ or compute capabilities such as 86,89; received {text!r}"
        ) from error
    if library.needs_device and capabilities != ((device := current_device()).compute_capability,):
        raise UsageError(
            f"TensorRT builds for the compute capability of the device it runs on, {device.compute_capability} of "
            f"{device.name}; received {text}: take --library tensorrt_rtx, or build on the target"
        )
    return Target(scope="capabilities", compute_capabilities=capabilities)


def batch_of(text: str) -> BatchRange:
    """The three numbers of ``--batch``.

    Raises:
        UsageError: they are not three numbers in order.
    """
    try:
        minimum, optimum, maximum = (int(number) for number in text.split(","))
        return BatchRange(minimum=minimum, optimum=optimum, maximum=maximum)
    except ValueError as error:
        raise UsageError(f"--batch takes three numbers such as 1,1,4; received {text!r}: {error}") from error


def workspace_of(mib: int | None) -> int | None:
    """The number of ``--workspace``.

    Raises:
        UsageError: it is not positive.
    """
    if mib is not None and mib < 1:
        raise UsageError(f"--workspace takes a positive number of MiB, received {mib}")
    return mib
