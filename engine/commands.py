"""gemmnet: every command of the project under one name.

    gemmnet run --rgir ortho.tif --ndsm height.tif     as python -m engine.run
    gemmnet train --synthetic 600                      as python -m train.run
    gemmnet COMMAND --help                             the options of a command

Commands:
{commands}

A command is imported when it is asked for, and what it needs besides is named when it is missing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.contract.command import called
from engine.contract.errors import UsageError
from engine.version import own_version


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        module: holds its ``main(arguments) -> exit code``.
        help: what it does, in a line.
        extra: of this package, which brings the libraries it needs; empty where none is needed.
    """

    module: str
    help: str
    extra: str = ""


COMMANDS: Mapping[str, Command] = {
    "run": Command(module="engine.run", help="map rasters, or frames that land in a folder"),
    "fleet": Command(module="engine.fleet.__main__", help="map many rasters on many machines", extra="fleet"),
    "doctor": Command(module="engine.doctor.__main__", help="what works on this machine, and why the rest does not"),
    "report": Command(module="engine.report.__main__", help="write the page of a finished run again"),
    "view": Command(module="engine.view.__main__", help="show a finished run's map in a browser", extra="view"),
    "keys": Command(module="engine.keys", help="keys, signatures and trust for bundles", extra="signed"),
    "stac": Command(module="engine.stac.__main__", help="items of maps and models for a STAC catalogue"),
    "polygons": Command(module="engine.polygons.__main__", help="turn a map into polygons"),
    "acceptance": Command(module="engine.acceptance.__main__", help="every fault on every sensor, and what the map is"),
    "calibrate-health": Command(module="engine.health.calibrate", help="fit the audits of sensors to a model"),
    "export": Command(module="export.run", help="a checkpoint to a bundle of graphs", extra="export"),
    "calibrate": Command(module="calib.run", help="8-bit graphs within an accuracy budget", extra="calib"),
    "pack": Command(
        module="export.packages.__main__", help="a bundle for Triton, QGIS's Deepness or Hugging Face", extra="export"
    ),
    "build": Command(module="export.build", help="TensorRT plans of a bundle's graphs", extra="export,rtx"),
    "audit": Command(module="export.audit", help="what plans really compute in", extra="export,rtx"),
    "train": Command(module="train.run", help="train a model", extra="train"),
    "evaluate": Command(module="train.evaluate", help="score a checkpoint", extra="train"),
    "compare": Command(module="train.benchmark", help="train and score several models alike", extra="train"),
    "check-data": Command(module="train.data.check", help="inspect a data set before training", extra="train"),
    "synthetic": Command(module="train.data.synthetic.__main__", help="write procedural scenes", extra="train"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"gemmnet-edge {own_version()}")
        return 0
    command = COMMANDS.get(name)
    if command is None:
        print(f"error: gemmnet takes a command, one of {', '.join(COMMANDS)}; received {name!r}", file=sys.stderr)
        return UsageError.exit_code
    try:
        module = importlib.import_module(command.module)
    except ImportError as error:
        package = f"gemmnet-edge[{command.extra}]" if command.extra else "gemmnet-edge"
        print(
            f"error: gemmnet {name} needs a library that cannot be imported ({error}): pip install '{package}'",
            file=sys.stderr,
        )
        return UsageError.exit_code
    with called(f"gemmnet {name}"):
        return int(module.main(given[1:]) or 0)


def usage() -> str:
    """What ``gemmnet --help`` prints."""
    width = max(map(len, COMMANDS))
    listed = (
        f"    {name:<{width}}  {each.help}{f'  [{each.extra}]' if each.extra else ''}"
        for name, each in COMMANDS.items()
    )
    assert __doc__ is not None
    return __doc__.format(commands="\n".join(listed)).rstrip()


def script() -> None:
    """The installed command."""
    from engine.backends.resilient import leave  # for --help it would be much to import

    leave(main())


if __name__ == "__main__":
    script()
