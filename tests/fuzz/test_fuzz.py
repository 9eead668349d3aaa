"""Whatever bytes a file holds: it is read, or refused by an error of ours in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.rasters.georeference import gdal_environment
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import CORPUS, TARGETS, check, once_failing


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with gdal_environment():
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_the_whole_example_is_read(name: str) -> None:
    if name not in ("run record", "plan record", "signature"):  # these are only beginnings
        TARGETS[name].read(TARGETS[name].example())


def test_every_input_that_failed_once_belongs_to_a_target() -> None:
    known = {path for name in TARGETS for path in once_failing(name)}
    assert len(known) >= 30
    assert known == {path for path in CORPUS.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [name for name in TARGETS if once_failing(name)])
def test_what_failed_once_is_refused(name: str) -> None:
    for path in once_failing(name):
        with pytest.raises(TARGETS[name].errors):
            TARGETS[name].read(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_content_is_read_or_refused(name: str, data: st.DataObject) -> None:
    check(name, data.draw(mutated(TARGETS[name].example())))
