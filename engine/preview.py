"""``quicklook.png``: inputs, classes with legend, confidence and provenance side by side.

The panels are sampled from tiles as they pass (every n-th pixel), so no raster is read twice. They lie in memory and
are kept in a file of the unfinished run, so that a resumed run shows the whole map. Nothing is mapped into memory: on a
disk that is full, a write to a mapped file with holes ends the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from engine.contract.atomic import write_whole
from engine.contract.bundle import NODATA_CLASS, ClassSpec
from engine.contract.errors import ResumeError
from engine.contract.formats import MalformedError, read_file
from engine.contract.sensors import PROVENANCE_LABELS, PROVENANCE_RGB, Provenance, Sensor
from engine.job import Job
from engine.journal import PixelCounts
from engine.map_block import MapBlock
from engine.resampling import nearest

PANEL_PX = 480
CANVASES_NAME = "preview.bin"
_BACKGROUND, _INK, _FAINT = (250, 250, 248), (30, 30, 30), (200, 200, 196)
_MARGIN, _HEADER, _LINE = 14, 34, 20


class Preview:
    """Canvases of at most :data:`PANEL_PX` pixels a side, filled while the raster streams by.

    Args:
        folder: where :meth:`flush` keeps them; None keeps them nowhere.
        height, width: of the raster.
        sensors: those that are used.
        resume: go on with the canvases in the folder.

    Raises:
        ResumeError: ``resume`` is set, and the file is missing or damaged.
    """

    def __init__(
        self, folder: Path | None, *, height: int, width: int, sensors: Iterable[Sensor], resume: bool = False
    ) -> None:
        self._step = max(1, -(-max(height, width) // PANEL_PX))
        shape = (-(-height // self._step), -(-width // self._step))
        self._sensors = frozenset(sensors)
        self._path = None if folder is None else folder / CANVASES_NAME
        self._rgir = np.zeros((3, *shape), np.uint8)
        self._ndsm = np.zeros(shape, np.float32)
        self._valid = np.zeros((2, *shape), np.bool_)
        self._maps = np.zeros((3, *shape), np.uint8)
        if resume and self._path is not None:
            self.restore(self._path)

    def add_job(self, job: Job) -> None:
        """Sample a tile's inputs."""
        window = job.tile.target
        rows, cols = job.tile.target.within(job.tile.reads)
        place, pick = window.every(self._step)
        reads = job.tile.reads
        for sensor, seen in job.observations.items():
            canvas = self._rgir if sensor is Sensor.RGIR else self._ndsm[None]
            valid = self._valid[list(Sensor).index(sensor)]
            height, width = seen.valid.shape
            if (height, width) == (reads.height, reads.width):
                canvas[:, *place] = seen.values[:, rows, cols][:, *pick]
                valid[place] = seen.valid[rows, cols][pick]
                continue
            at: tuple[Any, ...] = np.ix_(  # the tile was resampled
                nearest(range(reads.height)[rows][pick[0]], reads.height, height),
                nearest(range(reads.width)[cols][pick[1]], reads.width, width),
            )
            canvas[:, *place] = seen.values[(slice(None), *at)]
            valid[place] = seen.valid[at]

    def add_block(self, block: MapBlock) -> None:
        """Sample finished map pixels."""
        place, pick = block.window.every(self._step)
        for canvas, values in zip(self._maps, (block.classes, block.confidence, block.provenance), strict=True):
            canvas[place] = values[pick]

    def flush(self) -> None:
        """Write the canvases down, and wait until they are on the disk.

        Raises:
            OSError: the system refuses.
        """
        if self._path is None:
            return
        content = b"".join(canvas.tobytes() for canvas in self._canvases)
        write_whole(self._path, hashlib.sha256(content).digest() + content, durable=True)

    def restore(self, path: Path) -> None:
        """Take canvases that :meth:`flush` wrote.

        Raises:
            ResumeError: they are missing or damaged.
        """
        try:
            content = read_file(path)
        except (OSError, MalformedError) as error:
            raise ResumeError(f"{path} cannot be read ({error}): start over with overwrite=True") from error
        digest, content = content[:32], content[32:]
        if hashlib.sha256(content).digest() != digest or len(content) != sum(each.nbytes for each in self._canvases):
            raise ResumeError(f"{path} is damaged: start over with overwrite=True")
        for canvas in self._canvases:
            canvas[...] = np.frombuffer(content[: canvas.nbytes], canvas.dtype).reshape(canvas.shape)
            content = content[canvas.nbytes :]

    @property
    def _canvases(self) -> tuple[NDArray[Any], ...]:
        return self._rgir, self._ndsm, self._valid, self._maps

    def save(self, path: Path, *, model: str, classes: Sequence[ClassSpec], pixels: PixelCounts) -> None:
        """Draw the five panels. The caller names a temporary file and renames it.

        Args:
            path: of the picture.
            model: its name, for the title.
            classes: of the map.
            pixels: the whole map's, for the legends.
        """
        title = f"{model}   sensors: {' + '.join(sorted(self._sensors, reverse=True))}"
        class_map, confidence, source = (np.asarray(canvas) for canvas in self._maps)
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(classes)] = [spec.rgb for spec in classes]
        provenance_palette = np.array([PROVENANCE_RGB[p] for p in Provenance], np.uint8)
        rgir, ndsm, heights = self._input_panels()
        shown = class_map != NODATA_CLASS
        mean_confidence = f"mean {confidence[shown].mean() / 2.55:.0f} %" if shown.any() else "none"
        panels: list[tuple[str, NDArray[np.uint8] | None]] = [
            ("RGIR (NIR-R-G)", rgir),
            (f"nDSM ({heights})" if heights else "nDSM", ndsm),
            ("classes", palette[class_map]),
            (f"confidence ({mean_confidence})", np.repeat(confidence[..., None], 3, axis=2)),
            ("provenance", provenance_palette[source]),
        ]
        scale = max(1, PANEL_PX // max(class_map.shape))
        height, width = class_map.shape[0] * scale, max(class_map.shape[1] * scale, 200)
        lines = max(len(classes), len(Provenance)) + 1
        size = (
            _MARGIN + len(panels) * (width + _MARGIN),
            2 * _HEADER + height + _MARGIN + lines * _LINE,
        )
        sheet = Image.new("RGB", size, _BACKGROUND)
        draw = ImageDraw.Draw(sheet)
        font, bold = ImageFont.load_default(14), ImageFont.load_default(17)
        draw.text((_MARGIN, 8), title, _INK, bold)
        total = max(1, sum(pixels.classes))
        class_legend = [
            (spec.rgb, f"{spec.name}  {100 * pixels.classes[i] / total:.1f} %") for i, spec in enumerate(classes)
        ]
        source_legend = [
            (PROVENANCE_RGB[p], f"{PROVENANCE_LABELS[p]}  {100 * pixels.provenance[p] / total:.1f} %")
            for p in Provenance
        ]
        for i, (header, panel) in enumerate(panels):
            left, top = _MARGIN + i * (width + _MARGIN), 2 * _HEADER
            draw.text((left, top - 22), header, _INK, font)
            if panel is None:
                draw.rectangle((left, top, left + width - 1, top + height - 1), outline=_FAINT, fill=(238, 238, 236))
                draw.text((left + width // 2, top + height // 2), "sensor not used", _INK, font, anchor="mm")
            else:
                tile = Image.fromarray(panel).resize((panel.shape[1] * scale, height), Image.Resampling.NEAREST)
                sheet.paste(tile, (left, top))
            legend = class_legend if header == "classes" else source_legend if header == "provenance" else []
            for line, (rgb, text) in enumerate(legend):
                y = top + height + _MARGIN + line * _LINE
                draw.rectangle((left, y, left + 14, y + 14), fill=rgb, outline=_INK)
                draw.text((left + 22, y - 2), text, _INK, font)
        sheet.save(path, format="PNG", compress_level=1)  # a fifth of the time, a tenth larger

    def _input_panels(self) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None, str]:
        """RGIR and nDSM as RGB, invalid pixels black; and the height range that the grey values span."""
        rgir_valid, ndsm_valid = (np.asarray(mask) for mask in self._valid)
        rgir = ndsm = None
        heights = ""
        if Sensor.RGIR in self._sensors:
            rgir = np.moveaxis(np.where(rgir_valid, np.asarray(self._rgir), 0), 0, 2).astype(np.uint8)
        if Sensor.NDSM in self._sensors:
            metres = np.asarray(self._ndsm)
            top = max(1.0, float(np.percentile(metres[ndsm_valid], 99))) if ndsm_valid.any() else 1.0
            grey = np.where(ndsm_valid, 32 + np.clip(metres / top, 0, 1) * 223, 0).astype(np.uint8)
            ndsm = np.repeat(grey[..., None], 3, axis=2)
            heights = f"0 to {top:.0f} m"
        return rgir, ndsm, heights
