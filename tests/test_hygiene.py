"""The repository keeps its own rules: lint, types, documented commands, nothing of the machine it was made on."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "export" / "README.md", *(ROOT / "docs").glob("*.md")]
TEXT = "\n".join(page.read_text() for page in PAGES)
COMMANDS = ["engine.run", "engine.fleet", "engine.polygons", "engine.doctor", "engine.report", "engine.view"]
COMMANDS += ["engine.acceptance"]
COMMANDS += ["export.run", "export.build", "export.audit", "calib.run"]
COMMANDS += ["train.run", "train.evaluate", "train.benchmark", "train.data.check"]
COMMANDS += ["train.data.synthetic", "train.data.demo_scene"]
MEASURING = (
    "throughput",
    "false_alarms",
    "host",
    "latency",
    "agreement",
    "soak",
    "kill_resume",
    "fleet",
    "peers",
    "accuracy",
    "roofline",
    "sweep",
    "viewers",
)
COMMANDS += [f"benchmarks.{name}" for name in (*MEASURING, "readme")]


@pytest.mark.parametrize(
    "tool", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=["lint", "format", "types"]
)
def test_static_checks_pass(tool: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_is_documented_and_has_help_with_an_example(module: str, monkeypatch, capsys) -> None:
    """As ``python -m`` runs it, but in this process: forty of their own take a minute to import their libraries."""
    assert f"python -m {module}" in TEXT
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert re.search(rf"python -m {re.escape(module)} \S", told.split("\n", 1)[1]), "no example"


def test_every_module_of_the_pages_exists() -> None:
    for module in set(re.findall(r"python -m ((?:engine|export|calib|train|benchmarks)[\w.]*)", TEXT)):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_every_file_the_pages_point_to_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), target


def test_a_class_name_means_one_thing() -> None:
    defined: dict[str, list[str]] = {}
    for room in ("engine", "export", "calib", "train", "benchmarks"):
        for path in ROOT.joinpath(room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    defined.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: places for name, places in defined.items() if len(places) > 1} == {}
