"""What the hardening benchmark counts as what, and that it does find what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.hardening import attempts
from benchmarks.hardening.attempts import AttemptOutcome, attempt
from benchmarks.hardening.damage import damaged
from benchmarks.hardening.formats import FORMATS, Format
from benchmarks.hardening.ground import _KINDS


def test_damage_is_damage_and_the_same_for_the_same_number() -> None:
    for content in (b'{"a": [1, 2, 3]}', b"", bytes(range(256)) * 50):
        found = [damaged(content, seed) for seed in range(100)]
        assert content not in found
        assert found == [damaged(content, seed) for seed in range(100)]
        assert len(set(found)) > 10


def test_every_format_has_its_ground() -> None:
    assert sorted(FORMATS) == sorted(name for names in _KINDS.values() for name in names)


@pytest.mark.parametrize(
    ("code", "said", "right", "outcome"),
    [
        (5, "error: no\n", True, AttemptOutcome.REFUSED),
        (5, "error: no\nbecause\n", True, AttemptOutcome.SEVERAL_LINES),
        (5, "", True, AttemptOutcome.SEVERAL_LINES),
        (3, "error: no\n", True, AttemptOutcome.WRONG_CODE),
        (1, "Traceback (most recent call last):\nKeyError: 1\n", True, AttemptOutcome.TRACEBACK),
        (0, "", True, AttemptOutcome.ACCEPTED),
        (0, "", False, AttemptOutcome.WRONG),
        (-11, "", True, AttemptOutcome.CRASH),
        (None, "", True, AttemptOutcome.HANG),
    ],
)
def test_what_counts_as_what(
    code: int | None, said: str, right: bool, outcome: AttemptOutcome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(FORMATS, "made up", Format(files=("a",), run=lambda _: 0, refused=(5,), right=lambda *_: right))
    assert attempts._judged("made up", tmp_path, tmp_path, code, said) is outcome


@pytest.mark.slow
def test_inputs_are_tried_in_processes_of_their_own(tmp_path: Path) -> None:
    """The real reader of a policy, and the deadline."""
    from benchmarks.hardening.ground import grounds

    ground = grounds(tmp_path, ["trust policy"])["trust policy"]
    outcomes = {attempt("trust policy", ground, seed, keep=tmp_path / "wrong").outcome for seed in range(4)}
    assert outcomes <= {AttemptOutcome.REFUSED, AttemptOutcome.ACCEPTED}
    assert not (tmp_path / "wrong").exists()
    hurried = attempt("trust policy", ground, 0, deadline_s=0.0, keep=tmp_path / "wrong")
    assert hurried.outcome is AttemptOutcome.HANG
    assert [path.name for path in (tmp_path / "wrong").iterdir()] == ["trust-policy-0-trust.toml"]
