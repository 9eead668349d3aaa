"""Average the weights of two checkpoints of one network, such as a model and the same trained further on other data.

    python -m train.average runs/old/best.safetensors runs/new/last.safetensors --weight 0.5 --out runs/both.safetensors
    python -m train.average demo runs/new/last.safetensors --weight 0.55 --part generator.rgir=1 --out both.safetensors

What was learnt last pushes out what was learnt before; halfway between both, much of either is kept (Wortsman et al.
2022, https://arxiv.org/abs/2109.01903). It works where the second started from the first, and costs no training. Score
the result: `python -m train.evaluate`.

Exit codes: 0 done, 2 options or checkpoints that do not fit, 4 --out cannot be written.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from engine.contract.errors import EngineError, one_line, writing
from train import checkpoint


def averaged(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], weight: float, parts: Mapping[str, float]
) -> dict[str, Tensor]:
    """Each tensor as (1 - w) of the first and w of the second, in float32; integers are the second's.

    Args:
        first: by name.
        second: of the same names and shapes.
        weight: w, 0 to 1.
        parts: another w for the tensors whose names begin so; the longest match counts.

    Raises:
        ValueError: names or shapes differ, a weight is out of range, or a part matches nothing.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in side.items()} for side in (first, second)]
    if shapes[0] != shapes[1]:
        odd = sorted(name for name in {*shapes[0], *shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
        raise ValueError(f"both checkpoints must hold one network; {len(odd)} tensors differ, such as {odd[0]}")
    for name, value in {"--weight": weight, **parts}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"weights lie in 0 to 1, received {name}={value}")
    unmatched = [part for part in parts if not any(name.startswith(part) for name in second)]
    if unmatched:
        raise ValueError(f"--part must begin names of tensors, and {unmatched[0]} begins none")
    found = {}
    for name, tensor in second.items():
        matching = max((part for part in parts if name.startswith(part)), key=len, default=None)
        share = weight if matching is None else parts[matching]
        if tensor.dtype.is_floating_point:
            found[name] = first[name].float().lerp(tensor.float(), share)
        else:
            found[name] = tensor
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train.average", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=checkpoint.named, help="checkpoint, or demo")
    parser.add_argument("second", type=checkpoint.named, help="checkpoint whose settings and notes are kept")
    parser.add_argument("--weight", type=float, default=0.5, metavar="W", help="of the second (0.5)")
    parser.add_argument("--part", action="append", default=[], metavar="NAME=W", help="another weight for a part")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parse(argv)
    try:
        parts = {name: float(value) for name, _, value in (part.partition("=") for part in options.part)}
        (first, _), (second, info) = checkpoint.load(options.first), checkpoint.load(options.second)
        weights = averaged(first.state_dict(), second.state_dict(), options.weight, parts)
        # Scores and temperatures were those of the second alone.
        words = shlex.join(["python", "-m", "train.average", *(sys.argv[1:] if argv is None else argv)])
        info = replace(
            info, metrics={}, other_metrics={}, temperatures={}, confidence=(), command=f"{info.command} && {words}"
        )
        with writing(options.out):
            checkpoint.save(options.out, weights, info)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
