"""A folder for the Hugging Face Hub: a bundle that needs no other file, its checkpoint, a card and a licence.

The Hub's cache is a folder of symbolic links into another one. OpenVINO refuses weights that lie outside a graph's
folder once links are followed, so every graph here carries its own. ``engine.load(snapshot_download("me/model"))``
opens it, and so does any runtime that is given one of the graphs.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import onnx

from engine.contract.bundle import Bundle, Precision, save_manifest
from engine.contract.errors import UsageError
from engine.contract.files import FileRef
from engine.contract.sensors import Scenario
from export.packages.graphs import whole_graph

TAGS = ("remote-sensing", "earth-observation", "land-cover", "semantic-segmentation", "onnx", "openvino", "gemmnet")


def write_folder(
    bundle: Bundle,
    folder: Path,
    *,
    licence: str | None,
    licence_name: str | None,
    licence_file: Path | None,
    checkpoint: Path | None,
    card: Path | None,
) -> None:
    """Write the folder.

    Args:
        bundle: to be published.
        folder: empty.
        licence: as the Hub names it, such as ``mit`` or ``cc-by-4.0``; ``other`` for one that it does not list.
        licence_name: of ``other``, which needs its text as well.
        licence_file: its text.
        checkpoint: for those who train further.
        card: Markdown that tells of the model; None writes one from the manifest.

    Raises:
        UsageError: the licence is missing, or a file cannot be read.
        BundleError: a file of the bundle is not what the manifest says.
    """
    if licence is None or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UsageError(f"a model is published under a licence, received {licence}: pass one such as --license mit")
    if (licence == "other") != (licence_name is not None) or (licence == "other" and licence_file is None):
        raise UsageError(
            "a licence that the Hub does not list has a name and a text, others have no name: "
            "pass --license other --license-name NAME --license-file FILE"
        )
    if licence_name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence_name):
        raise UsageError(f"--license-name takes lower-case letters, digits, dots and dashes, received {licence_name!r}")
    try:
        for source, name in ((licence_file, "LICENSE"), (checkpoint, "model.safetensors")):
            if source is not None:
                shutil.copyfile(source, folder / name)
        body = _card(bundle) if card is None else card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"what is to be published must be readable: {error}") from error
    if body.startswith("---\n"):
        raise UsageError(f"{card} begins with metadata of its own, which are written here: leave them away")
    tags = "\n".join(f"- {tag}" for tag in TAGS)
    named = "" if licence_name is None else f"license_name: {licence_name}\nlicense_link: LICENSE\n"
    head = (
        f"---\nlicense: {licence}\n{named}library_name: onnx\npipeline_tag: image-segmentation\ntags:\n{tags}\n---\n\n"
    )
    (folder / "README.md").write_text(head + body, encoding="utf-8")
    manifest = bundle.manifest
    graphs = {
        scenario: {
            precision: _write_graph(bundle, folder, scenario, precision) for precision in manifest.graphs[scenario]
        }
        for scenario in Scenario
    }
    replaced = {ref.path for each in manifest.graphs.values() for ref in each.values()}
    replaced |= {ref.path for ref in manifest.weights}
    for ref in manifest.files():
        if ref.path not in replaced:
            target = folder / ref.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(ref.read(bundle.root))
    save_manifest(replace(manifest, graphs=graphs, weights=()), folder)
    Bundle.load(folder)


def _write_graph(bundle: Bundle, folder: Path, scenario: Scenario, precision: Precision) -> FileRef:
    target = folder / bundle.manifest.graphs[scenario][precision].path
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(whole_graph(bundle, scenario, precision), target)
    return FileRef.of(target, folder)


def _card(bundle: Bundle) -> str:
    manifest = bundle.manifest
    scores = "\n".join(
        f"| {each.scenario} | {each.input} | {100 * each.mean_f1:.1f} | {100 * each.overall_accuracy:.1f} |"
        for each in manifest.training.scores
    )
    measured = (
        f"\n| scenario | missing sensor fed by | mF1 | accuracy |\n|---|---|---|---|\n{scores}\n" if scores else ""
    )
    if manifest.training.confidence:
        believed = "\n".join(
            f"| {each.scenario} | {each.data} | {100 * each.error_before:.1f} | "
            f"{'' if each.error_after is None else f'{100 * each.error_after:.1f}'} |"
            for each in manifest.training.confidence
        )
        measured += (
            "\nCalibration error of the confidence, percent, without and with the temperature in the graphs:\n\n"
            f"| scenario | scenes | without | with |\n|---|---|---|---|\n{believed}\n"
        )
    names = ", ".join(each.name for each in manifest.classes)
    finest, coarsest = manifest.gsd_m
    return f"""# {manifest.name}

Land cover ({names}) from near-infrared, red and green, from height above ground, or from both: one graph for each case.
Trained for {finest:g} to {coarsest:g} m a pixel, tiles of {manifest.tile_px} px.

```python
import engine
from huggingface_hub import snapshot_download

with engine.load(snapshot_download("OWNER/NAME")) as model:
    model.segment(rgir="ortho.tif", ndsm="height.tif").save("map")
```

| file | what it is |
|---|---|
| `manifest.json` | classes, bands, hashes; what `engine.load` reads |
| `full*.onnx` | both sensors |
| `missing_ndsm*.onnx`, `missing_rgir*.onnx` | one of them |
| `model.safetensors` | the checkpoint, where there is one |

Trained on: {manifest.training.dataset}. Scored on: {manifest.training.held_out}.
{measured}"""
