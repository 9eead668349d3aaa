"""The Dockerfiles as far as they can be read: no Docker runs in CI."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from engine.run import build_parser

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def instructions(path: Path) -> list[list[str]]:
    """Every instruction as words, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return [line.split() for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def test_there_is_one_for_a_processor_and_one_for_a_jetson() -> None:
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "jetson.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_copied_is_there_and_in_the_context(path: Path) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for instruction, *words in instructions(path)
        if instruction == "COPY" and not words[0].startswith("--from=")
        for source in words[:-1]
    ]
    assert {"pyproject.toml", "README.md", "LICENSE", "engine"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists()
        assert source in kept
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(copied), "setuptools reads them"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_extras_that_are_installed_exist(path: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = re.findall(r'install --no-cache-dir "\.\[([\w,]+)\]"', path.read_text())
    assert set(wanted.split(",")) <= set(extras)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_says_that_it_was_never_executed_and_its_examples_parse(path: Path) -> None:
    comment = "\n".join(
        line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")
    )
    assert "Never executed." in comment
    runs = [line for line in comment.replace("\\\n", " ").splitlines() if re.search(r"gemmnet-edge\S* --\w", line)]
    assert runs
    for run in runs:
        words = re.split(r"gemmnet-edge\S* ", run, maxsplit=1)[1].split()
        build_parser().parse_args(words)
