"""The page and what it asks for, as a Starlette application; everything is read, nothing is changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from engine.contract.bundle import NODATA_CLASS
from engine.contract.errors import EngineError
from engine.contract.page import COLOURS
from engine.contract.sensors import PROVENANCE_LABELS, Provenance, Sensor
from engine.grid import Window
from engine.output import REPORT_NAME
from engine.rasters.map_reader import MAPS
from engine.view.canvas import LiveCanvas
from engine.view.events import Events
from engine.view.flight import ShownFlight, ShownFrame
from engine.view.guard import Guard
from engine.view.pixels import BASE, InputPixels, MapPixels, square, version

STATIC = Path(__file__).parent / "static"
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The report carries its own style and pictures, and no script."""
MOST_WAITING = 400
"""Pictures that may be asked for and not yet drawn; a browser asks again."""

_T = TypeVar("_T")


class MapSite:
    """What is behind the routes.

    Args:
        flight: what is told; used in the event loop alone.
        canvas: of the frame under way; None when all maps are files.
        drivers: of GDAL that may open inputs; None trusts their names.
        base: a base layer, see :class:`engine.rasters.backdrop.BaseLayer`; empty: none, and no network.
        ended: set when the run's page ends.
    """

    def __init__(
        self,
        flight: ShownFlight,
        canvas: LiveCanvas | None,
        drivers: Sequence[str] | None,
        ended: asyncio.Event,
        base: str = "",
    ) -> None:
        self.flight = flight
        flight.base = base
        self._maps, self._inputs = MapPixels(flight.output, canvas), InputPixels(drivers, base)
        # a dataset of GDAL belongs to one thread at a time, and a slow input must not keep the map waiting
        self._map_thread, self._input_thread = (ThreadPoolExecutor(1, name) for name in ("maps", "inputs"))
        self._waiting = 0
        self.events = Events(flight, ended)

    def app(self, token: str | None) -> ASGIApp:
        """The application; see :class:`engine.view.guard.Guard` for the token."""
        routes = [
            Route("/", self._page),
            Route("/static/colours.css", self._colours),
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/events", self.events),
            Route("/state", self._state),
            Route("/tiles/{frame:int}/{layer}/{level:int}/{x:int}/{y:int}", self._tile),
            Route("/pixel/{frame:int}/{row:int}/{col:int}", self._pixel),
            Route("/report", self._report),
        ]
        return Guard(Starlette(routes=routes), token)

    async def _page(self, _request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def _colours(self, _request: Request) -> Response:
        return FileResponse(COLOURS, media_type="text/css")

    async def _state(self, _request: Request) -> Response:
        return JSONResponse(self.flight.snapshot())

    async def _report(self, _request: Request) -> Response:
        """The report, which carries its own style and pictures."""
        path = self.flight.output / REPORT_NAME
        if not path.is_file():
            raise HTTPException(404, f"no {REPORT_NAME}: write it with `python -m engine.report`")
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    async def _tile(self, request: Request) -> Response:
        frame, name = self._frame(request), request.path_params["layer"]
        level, x, y = (request.path_params[part] for part in ("level", "x", "y"))
        window = square(frame, level, x, y)
        sensor = Sensor(name) if name in set(Sensor) else None
        if window is None or (sensor is None and name not in (*MAPS, BASE)) or (sensor and sensor not in frame.inputs):
            raise HTTPException(404, "there is no such square of this map")
        age = 0 if sensor or name == BASE else version(frame, window)
        tag = f'"{self.flight.identity}-{age}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        started = self.flight.started
        if sensor is not None:
            picture = await self._drawn(self._input_thread, self._inputs.picture, frame, sensor, window, 1 << level)
        elif name == BASE:
            picture = await self._drawn(self._input_thread, self._inputs.base, frame, window, 1 << level)
        elif started is None:
            raise HTTPException(404, "the run has not begun")
        else:
            arguments = (frame, name, window, 1 << level, age, started.classes)
            picture = await self._drawn(self._map_thread, self._maps.picture, *arguments)
        return Response(picture.content, media_type=picture.media_type, headers=headers)

    async def _pixel(self, request: Request) -> Response:
        """What the maps say in one place."""
        frame, row, col = self._frame(request), request.path_params["row"], request.path_params["col"]
        started = self.flight.started
        if started is None or row >= frame.grid.height or col >= frame.grid.width:
            raise HTTPException(404, "there is no such pixel in this map")
        step = 1 if frame.published else frame.shape.step
        window = Window(row=row - row % step, col=col - col % step, height=1, width=1)

        def values() -> list[int]:
            return [int(self._maps.values(frame, name, window, 1)[0, 0]) for name in MAPS]

        index, confidence, source = await self._drawn(self._map_thread, values)
        named = index != NODATA_CLASS and index < len(started.classes)
        told = {
            "class": started.classes[index].name if named else None,
            "confidence": round(confidence / 2.55) if named else None,
            "mapped_from": PROVENANCE_LABELS[Provenance(source)] if source < len(Provenance) else None,
        }
        return JSONResponse(told, headers={"Cache-Control": "no-store"})

    def _frame(self, request: Request) -> ShownFrame:
        number = request.path_params["frame"]
        if number >= len(self.flight.frames):
            raise HTTPException(404, "there is no such frame")
        frame: ShownFrame = self.flight.frames[number]
        return frame

    async def _drawn(self, thread: ThreadPoolExecutor, draw: Callable[..., _T], *arguments: object) -> _T:
        if self._waiting >= MOST_WAITING:
            raise HTTPException(503, "too many pictures are asked for", {"Retry-After": "1"})
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, lambda: draw(*arguments))
        except EngineError as error:
            raise HTTPException(404, str(error)) from error
        finally:
            self._waiting -= 1
