"""``run.json`` is written and read by one type, whose schema is a page."""

from __future__ import annotations

import json
from pathlib import Path

from engine.record import schema

PAGE = Path(__file__).parents[2] / "docs" / "run.schema.json"


def test_the_published_schema_is_that_of_the_record() -> None:
    assert json.loads(PAGE.read_text()) == schema(), f"write json.dumps(engine.record.schema(), indent=2) to {PAGE}"
