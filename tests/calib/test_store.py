"""Results are kept by content, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from calib.store import TensorStore, key_of
from engine.contract.errors import OutputError


def test_a_result_is_computed_once(store: TensorStore) -> None:
    calls = []

    def compute() -> dict[str, int]:
        calls.append(1)
        return {"a": len(calls)}

    assert [store.value("kind", key_of("x"), dict[str, int], compute) for _ in range(2)] == [{"a": 1}, {"a": 1}]
    assert TensorStore(store.root).value("kind", key_of("x"), dict[str, int], compute) == {"a": 1}
    assert store.value("kind", key_of("y"), dict[str, int], compute) == {"a": 2}


def test_bytes_are_kept_too(store: TensorStore) -> None:
    assert store.blob("graph", key_of("x"), lambda: b"one") == b"one"
    assert store.blob("graph", key_of("x"), lambda: b"two") == b"one"


def test_keys_tell_parts_apart() -> None:
    assert len({key_of("ab", "c"), key_of("a", "bc"), key_of("abc"), key_of(b"ab", "c"), key_of("c", "ab")}) == 4


def test_a_result_that_cannot_be_read_is_computed_anew(store: TensorStore) -> None:
    store.value("kind", key_of("x"), int, lambda: 1)
    (path,) = store.root.iterdir()
    path.write_bytes(path.read_bytes() + b"{")
    assert store.value("kind", key_of("x"), int, lambda: 2) == 2
    assert store.value("kind", key_of("x"), int, lambda: 3) == 2


def test_an_interrupted_computation_leaves_nothing(store: TensorStore) -> None:
    def stopped() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.value("kind", key_of("x"), int, stopped)
    assert not list(store.root.iterdir())


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--work must be a folder"):
        TensorStore(tmp_path / "file" / "work")
