"""``gemmnet``: one name for every command."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine import run
from engine.commands import COMMANDS, main

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_the_help_lists_every_command(capsys) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"    {name} " in told
        assert command.help in told
    assert main([]) == 0


def test_every_command_is_there_and_every_extra_is_known() -> None:
    for command in COMMANDS.values():
        spec = find_spec(command.module)
        assert spec is not None, command.module
        assert spec.origin is not None
        assert "def main(" in Path(spec.origin).read_text(), command.module
        assert set(filter(None, command.extra.split(","))) <= set(EXTRAS)


def test_a_command_runs_as_its_module_does(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: gemmnet run ")
    assert "    gemmnet run --rgir ortho.tif --ndsm height.tif --output map" in told
    assert "python -m engine.run" not in told
    with pytest.raises(SystemExit):
        run.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m engine.run ")
    assert main(["run", "--rate", "0"]) == 2
    assert "--rate must be a positive number" in capsys.readouterr().err


def test_an_unknown_command_is_named_with_those_there_are(capsys) -> None:
    assert main(["fly"]) == 2
    assert "run, fleet, doctor" in capsys.readouterr().err


def test_a_missing_extra_is_named_with_its_install_command() -> None:
    script = "import sys; sys.modules['torch'] = None; from engine.commands import main; sys.exit(main(['train']))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'gemmnet-edge[train]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_asking_for_help_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'rasterio', 'torch', 'openvino'} & set(sys.modules)"
    script = f"import sys; from engine.commands import main; main([]); print(sorted({heavy}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout
