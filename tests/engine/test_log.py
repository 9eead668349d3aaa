"""Log lines as a collector reads them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from engine.contract.sensors import Sensor
from engine.run import build_parser
from engine.telemetry.log import JsonFormatter, configure


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield root
    root.handlers, root.level = handlers, level


def line_of(message: object, *arguments: object, **given: object) -> dict:
    logger = logging.Logger("engine.health.monitor")
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonFormatter().format(record))

    logger.addHandler(Keep())
    logger.warning(message, *arguments, **given)
    (line,) = lines
    assert "\n" not in line
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_line_carries_time_level_logger_message_and_the_events_fields() -> None:
    line = line_of("%s is dead", Sensor.NDSM, extra={"event": "sensor_state", "tile": 120, "sensor": Sensor.NDSM})
    told = datetime.fromisoformat(line.pop("ts"))
    assert abs(datetime.now(UTC) - told) < timedelta(minutes=1)
    assert line == {
        "level": "warning",
        "logger": "engine.health.monitor",
        "message": "ndsm is dead",
        "event": "sensor_state",
        "tile": 120,
        "sensor": "ndsm",
    }
    assert list(line)[:3] == ["level", "logger", "message"]


def test_what_another_library_marks_records_with_is_not_told() -> None:
    assert "_theirs" not in line_of("kept", extra={"_theirs": 1, "tile": 2})


def test_a_field_cannot_replace_the_lines_own_names() -> None:
    line = line_of("kept", extra={"level": "harmless", "ts": 0, "logger": "other"})
    assert (line["level"], line["logger"], line["message"]) == ("warning", "engine.health.monitor", "kept")
    assert line["ts"] != 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(1.5), 1.5),
        (np.arange(3), [0, 1, 2]),
        (float("nan"), None),
        (np.float64("inf"), None),
        (Path("/maps"), "/maps"),
        ({Sensor.RGIR: (1, 2)}, {"rgir": [1, 2]}),
        (KeyError("x"), "'x'"),
        ("half a\nline", "half a\nline"),
        ("\udce9.tif", "\\udce9.tif"),
    ],
)
def test_every_value_becomes_json(value: object, expected: object) -> None:
    assert line_of("values", extra={"value": value})["value"] == expected


def test_a_value_that_contains_itself_does_not_lose_the_line() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert line_of("loop", extra={"value": loop})["message"] == "loop"


def test_an_exception_is_told_in_the_same_line() -> None:
    try:
        raise OSError("disk gone")
    except OSError:
        line = line_of("write failed", exc_info=True)
    assert line["message"] == "write failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("OSError: disk gone")


@pytest.mark.parametrize("form", ["text", "json"])
def test_configure_writes_to_standard_error_from_its_level_on(form, root_logger, capsys) -> None:
    configure("text", level=logging.DEBUG)
    configure(form, level=logging.INFO)
    logger = logging.getLogger("engine.somewhere")
    logger.debug("unheard")
    logger.info("heard", extra={"tile": 3})
    told = capsys.readouterr()
    assert told.out == ""
    if form == "text":
        assert told.err == "INFO heard\n"
    else:
        assert json.loads(told.err)["tile"] == 3
    assert sys.stderr is root_logger.handlers[0].stream


@pytest.mark.parametrize(("level", "told"), [("debug", ["all of it", "gist"]), ("info", ["gist"]), ("error", [])])
def test_only_our_own_loggers_tell_all_at_debug(level: str, told: list[str], root_logger, capsys) -> None:
    configure("text", level=level.upper())
    for name in ("engine.backends.words", "rasterio.env"):
        logging.getLogger(name).debug("all of it")
    logging.getLogger("engine.backends.words").info("gist")
    assert [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()] == told
    configure("text", level=logging.INFO)
    assert not logging.getLogger("engine.run").isEnabledFor(logging.DEBUG)


def test_the_command_takes_a_level() -> None:
    assert build_parser().parse_args(["--log-level", "debug"]).log_level == "debug"
    assert build_parser().parse_args([]).log_level == "info"
