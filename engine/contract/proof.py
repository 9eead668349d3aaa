"""The proof that a bundle gives its golden tile on every processor: what :mod:`export` and :mod:`calib` publish after.

OpenVINO picks its kernels by the processor's instructions, and one of them has been wrong. A library loads once per
process, and neither room imports the engine; so the engine's own doctor is asked, as a command.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.contract.errors import BackendError, BundleError
from engine.contract.formats import MalformedError, from_json


def prove(root: Path, precisions: Sequence[str]) -> tuple[str, ...]:
    """Run the golden tile of a bundle in OpenVINO, with every instruction set that this processor can be told to have.

    Args:
        root: folder of a whole bundle; it need not be published yet.
        precisions: those to prove, as ``engine.doctor --precision`` takes them.

    Returns:
        The instruction sets beside the one in use; none on a processor that is no x86.

    Raises:
        BundleError: an answer is wrong; the message names scenario, precision, instruction set and layer.
        BackendError: the doctor could not be asked, or OpenVINO could not run a graph.
    """
    command = [sys.executable, "-m", "engine.doctor", "--json", "--tiles", "1", "--backend", "openvino"]
    command += ["--bundle", str(root), "--precision", ",".join(precisions), "--instruction-sets", "all"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    try:
        probes = from_json(done.stdout, dict[str, Any])["probes"]
    except (MalformedError, KeyError) as error:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BackendError(f"engine.doctor could not prove the bundle ({done.returncode}): {last}") from error
    for probe in probes:
        if probe["outcome"] != "works":
            told = probe["instruction_set"] or "the processor as it is"
            fault = BundleError if probe["outcome"] == "wrong" else BackendError
            raise fault(
                f"every graph must give the golden tile on every processor; {probe['scenario']} {probe['precision']} "
                f"does not with {told}: {probe['reason']}"
            )
    return tuple(dict.fromkeys(probe["instruction_set"] for probe in probes if probe["instruction_set"]))
