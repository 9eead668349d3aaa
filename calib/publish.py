"""INT8 graphs into a bundle, which is valid at every moment in between; before that, the proof on a copy."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import external_data_helper, numpy_helper

from engine.contract.bundle import Bundle, Manifest, Precision, save_manifest
from engine.contract.errors import OutputError, writing
from engine.contract.files import FileRef
from engine.contract.proof import prove
from engine.contract.sensors import Scenario

PRECISION: Precision = "int8"
WEIGHTS_NAME = "weights.int8.bin"
EXTERNAL_ABOVE_BYTES = 1024
"""Smaller initializers stay in the graph: scales that runtimes read while they parse."""
ALIGNMENT_BYTES = 64


def prove_on_copy(
    bundle: Bundle, graphs: Mapping[Scenario, onnx.ModelProto], tools: Mapping[str, str]
) -> tuple[str, ...]:
    """Publish into a copy of the bundle and see whether its golden tile comes out right; the bundle stays as it is.

    Returns:
        The instruction sets that OpenVINO ran with, beside the processor's own.

    Raises:
        BundleError: an int8 graph is wrong with one of them.
        BackendError: OpenVINO could not run a graph.
        OutputError: the copy cannot be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        with writing(Path(scratch), "free space for a copy of the bundle there, or set TMPDIR"):
            copy = shutil.copytree(bundle.root, Path(scratch) / "bundle", ignore=shutil.ignore_patterns("plans"))
        return prove(publish(Bundle.load(copy), graphs, tools).root, (PRECISION,))


def publish(bundle: Bundle, graphs: Mapping[Scenario, onnx.ModelProto], tools: Mapping[str, str]) -> Bundle:
    """Add ``{scenario}.int8.onnx`` and their weights to a bundle, or replace those that are there.

    Weights that the bundle holds already, in fp16 for the layers that stay floating, are referred to where they are;
    the others share one file, each content once.

    Args:
        bundle: verified.
        graphs: for every scenario, weights inside.
        tools: versions to note in the manifest.

    Raises:
        OutputError: the bundle's folder cannot be written.
        IntegrityError: it changed meanwhile.
    """
    root = bundle.root
    bare = without_int8(bundle.manifest)
    try:
        save_manifest(bare, root)  # names none of the new files until they are whole
        known = _stored(root, bare)
        refs = {}
        with (root / WEIGHTS_NAME).open("wb") as weights:
            for scenario, graph in graphs.items():
                path = root / f"{scenario}.{PRECISION}.onnx"
                path.write_bytes(_slim(graph, known, weights).SerializeToString(deterministic=True))
                refs[scenario] = FileRef.of(path, root)
        for ref in refs.values():
            onnx.checker.check_model(root / ref.path, full_check=True)
        whole = replace(
            bare,
            graphs={scenario: {**by, PRECISION: refs[scenario]} for scenario, by in bare.graphs.items()},
            weights=(*bare.weights, FileRef.of(root / WEIGHTS_NAME, root)),
            tools={**bare.tools, **tools},
        )
        save_manifest(whole, root)
    except OSError as error:
        raise OutputError(f"int8 graphs could not be written to {root}: {error}") from error
    return Bundle.load(root)


def without_int8(manifest: Manifest) -> Manifest:
    """The manifest of the floating graphs alone."""
    return replace(
        manifest,
        graphs={
            scenario: {precision: ref for precision, ref in by.items() if precision != PRECISION}
            for scenario, by in manifest.graphs.items()
        },
        weights=tuple(ref for ref in manifest.weights if ref.path != WEIGHTS_NAME),
    )


def int8_files(manifest: Manifest) -> tuple[FileRef, ...]:
    """What INT8 adds to a bundle."""
    graphs = (by[PRECISION] for by in manifest.graphs.values() if PRECISION in by)
    return (*graphs, *(ref for ref in manifest.weights if ref.path == WEIGHTS_NAME))


def _stored(root: Path, manifest: Manifest) -> dict[bytes, tuple[str, int]]:
    """By content: (file, offset) of every initializer that lies in a weights file of the bundle."""
    found: dict[bytes, tuple[str, int]] = {}
    for ref in (ref for by in manifest.graphs.values() for ref in by.values()):
        for tensor in onnx.load(root / ref.path, load_external_data=False).graph.initializer:
            if external_data_helper.uses_external_data(tensor):
                info = external_data_helper.ExternalDataInfo(tensor)
                with (root / info.location).open("rb") as stream:
                    stream.seek(info.offset or 0)
                    content = stream.read(info.length)
                found[hashlib.sha256(content).digest()] = info.location, info.offset or 0
    return found


def _slim(graph: onnx.ModelProto, known: dict[bytes, tuple[str, int]], weights: BinaryIO) -> onnx.ModelProto:
    """A copy whose large initializers lie in weights files; adds to ``known`` what it writes."""
    slim = onnx.ModelProto()
    slim.CopyFrom(graph)
    for tensor in slim.graph.initializer:
        content = numpy_helper.to_array(tensor).tobytes()
        if len(content) <= EXTERNAL_ABOVE_BYTES:
            continue
        key = hashlib.sha256(content).digest()
        if key not in known:
            weights.write(bytes(-weights.tell() % ALIGNMENT_BYTES))
            known[key] = WEIGHTS_NAME, weights.tell()
            weights.write(content)
        location, offset = known[key]
        tensor.raw_data = content
        external_data_helper.set_external_data(tensor, location, offset, len(content))
        for stored in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(stored)
    return slim
