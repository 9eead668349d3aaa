"""Pack a bundle for where models are run.

    python -m export.packages --for triton --out repository                       the demo model for NVIDIA Triton
    python -m export.packages bundle --for deepness --out models                   for QGIS's plugin Deepness
    python -m export.packages bundle --for huggingface --license mit --checkpoint best.safetensors --out hub

Triton gets a model repository with the three graphs and `gemmnet`, which picks one by the sensors that a request
holds. Deepness gets a model of one input and one output for each scenario. Hugging Face gets a folder that
`engine.load` opens, also from its cache of symbolic links; a signature of the bundle does not count there, for the
graphs are other files.

Exit codes: 0 done; 2 options; 4 the folder cannot be written; 5 the bundle; 130 interrupted (nothing is written).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import EngineError, OutputError, UsageError

DEMO = Path(__file__).parents[2] / "engine" / "demo" / "bundle"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        pack(options)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ImportError as error:
        print(f"error: packing needs {error.name or error}: pip install 'gemmnet-edge[export]'", file=sys.stderr)
        return UsageError.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing is written", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m export.packages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path, default=DEMO, help="folder of the bundle (the demo model)")
    parser.add_argument("--for", dest="place", required=True, choices=("triton", "deepness", "huggingface"))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="fp32", help="of the graphs for triton and deepness (fp32)"
    )
    hub = parser.add_argument_group("huggingface")
    hub.add_argument("--license", metavar="ID", help="as the Hub names it, such as mit, cc-by-4.0 or other; required")
    hub.add_argument("--license-name", metavar="NAME", help="of --license other, which the Hub does not list")
    hub.add_argument("--license-file", type=Path, metavar="FILE", help="its text")
    hub.add_argument("--checkpoint", type=Path, metavar="FILE", help="best.safetensors of a training run")
    hub.add_argument("--card", type=Path, metavar="FILE", help="Markdown of the model (made from the manifest)")
    return parser


def pack(options: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        EngineError: it cannot be done; nothing was written.
    """
    from export.packages import deepness, huggingface, triton

    target: Path = options.out
    bundle = Bundle.load(options.bundle)
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OutputError(f"{target} is there and not empty, so it is left alone: choose another --out")
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
        try:
            folder = scratch / "new"
            folder.mkdir()
            if options.place == "triton":
                triton.write_repository(bundle, folder, options.precision)
            elif options.place == "deepness":
                deepness.write_models(bundle, folder, options.precision)
            else:
                huggingface.write_folder(
                    bundle,
                    folder,
                    licence=options.license,
                    licence_name=options.license_name,
                    licence_file=options.license_file,
                    checkpoint=options.checkpoint,
                    card=options.card,
                )
            folder.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error}): check free space and permissions") from error
    files = [path for path in target.rglob("*") if path.is_file()]
    print(f"{target}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
