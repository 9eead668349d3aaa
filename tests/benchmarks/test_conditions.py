"""What a row of a result says about its machine, and that a result file is whole."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys

import pytest

from benchmarks.conditions import ROOT, clock_mhz, conditions, threads_per_core, write_csv
from engine.contract.errors import OutputError


def test_a_row_tells_machine_libraries_commit_and_command() -> None:
    told = conditions("onnxruntime")
    assert told["cores"] == len(os.sched_getaffinity(0))
    assert told["processor"]
    assert float(str(told["memory_gib"])) > 0.1
    assert float(str(told["load_at_start"])) >= 0
    assert re.search(r"numpy \d+\.\d+", str(told["libraries"])), "numpy is imported here"
    assert re.search(r"onnxruntime \d+\.\d+", str(told["libraries"])), "named by the caller"
    assert str(told["command"]).startswith("python ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", str(told["date"]))
    assert not {"threads", "precision", "backend", "device", "rounds", "tiles"} & set(told), "these are the row's own"


def test_the_command_can_be_typed_again() -> None:
    code = "import sys; sys.argv[1:] = ['--mpx', '2,200', '--out', 'a b']; from benchmarks import conditions"
    code += "; print(conditions.conditions()['command'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "python -c --mpx 2,200 --out 'a b'"


def test_clocks_are_read_where_the_kernel_tells_and_unknown_where_not(tmp_path) -> None:
    assert (clock_mhz(tmp_path), threads_per_core(tmp_path)) == (None, None)
    (tmp_path / "proc").mkdir()
    cpuinfo = "processor : 0\ncpu MHz\t\t: 2000.4\nsiblings : 8\ncpu cores : 4\n\nprocessor : 1\ncpu MHz\t\t: 3000.0\n"
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    assert (clock_mhz(tmp_path), threads_per_core(tmp_path)) == (2500, 2)
    for core, khz in enumerate((1500000, 1700000)):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{khz}\n")
    assert clock_mhz(tmp_path) == 1600


def test_rows_with_other_columns_share_a_file(tmp_path) -> None:
    path = tmp_path / "new" / "result.csv"
    write_csv(path, [{"a": 1, "b": 2}, {"a": 3, "c": "x, y"}])
    assert list(csv.DictReader(path.open())) == [{"a": "1", "b": "2", "c": ""}, {"a": "3", "b": "", "c": "x, y"}]


def test_a_row_that_fails_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    class Stubborn:
        def __str__(self) -> str:
            raise KeyboardInterrupt

    path = tmp_path / "result.csv"
    write_csv(path, [{"a": "old"}])
    with pytest.raises(KeyboardInterrupt):
        write_csv(path, [{"a": "new"}, {"a": Stubborn()}])
    assert [file.name for file in tmp_path.iterdir()] == ["result.csv"]
    assert list(csv.DictReader(path.open())) == [{"a": "old"}]


def test_a_folder_that_cannot_be_is_explained(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_csv(tmp_path / "file" / "result.csv", [{"a": 1}])
