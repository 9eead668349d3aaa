"""The README's tables say what the results say, and the check notices when they do not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.readme import PAGES, main
from benchmarks.tables import RESULTS, TABLES

PAGE = (
    "# Page\n\n<!-- table: throughput -->\nold\n<!-- /table -->\n\nBetween.\n\n<!-- table: soak -->\n<!-- /table -->\n"
)
CONDITIONS = "processor,cores,memory_gib,load_at_start,libraries,commit,command,date"
MACHINE = "Some CPU,2,23.5,0.25,numpy 2.0; openvino 2026.1,abc1234,python -m x --y,2026-01-02"
THROUGHPUT = (
    "mpx,sensors,end_to_end_mpx_per_s,stream_tiles_per_s,stream_over_loop,stream_over_saturated,peak_rss_mib,"
    f"{CONDITIONS}\n4.0,rgir+ndsm,2.13,23.45,1.049,0.951,430.4,{MACHINE}\n"
)
SOAK = (
    "minute,rss_mib,descriptors_max,tiles,switches,lost,p50_ms,p99_ms,rss_slope_mib_per_h,rate_hz\n"
    "0,400,17,300,0,0,100,200,,5.0\nall,440.4,18,600,2,1,110.4,289.1,-7.59,5.0\n"
)


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "README.md").write_text(PAGE)
    (tmp_path / "throughput.csv").write_text(THROUGHPUT)
    (tmp_path / "soak.csv").write_text(SOAK)
    return tmp_path


def run(place: Path, *options: str) -> int:
    return main(["--readme", str(place / "README.md"), "--results", str(place), *options])


def test_blocks_are_rewritten_and_the_rest_is_left(place, capsys) -> None:
    assert run(place) == 0
    assert "throughput, soak rewritten" in capsys.readouterr().out
    text = (place / "README.md").read_text()
    assert "| 4 Mpx | rgir, ndsm | 2.1 Mpx/s | 23.4 tiles/s | 1.05 | 0.95 | 430 MiB |" in text
    assert "| 1 min at 5 Hz | 600 | 1 | 2 | 110 / 289 ms | 440 MiB, -7.6 MiB/h | 18 |" in text
    facts = "Some CPU, 2 cores, 24 GiB, load average 0.2, openvino 2026.1, commit abc1234, 2026-01-02."
    assert f"From `python -m x --y` ([throughput.csv](benchmarks/results/throughput.csv)): {facts}\n" in text
    assert re.sub(r"(<!-- table: [\w-]+ -->\n).*?(<!-- /table)", r"\1\2", text, flags=re.DOTALL) == PAGE.replace(
        "old\n", ""
    )
    assert run(place) == 0
    assert (place / "README.md").read_text() == text
    assert sorted(path.name for path in place.iterdir()) == ["README.md", "soak.csv", "throughput.csv"]


def test_check_names_what_differs_and_writes_nothing(place, capsys) -> None:
    assert run(place) == 0
    assert run(place, "--check") == 0
    before = (place / "README.md").read_text()
    (place / "soak.csv").write_text(SOAK.replace("289.1", "301"))
    capsys.readouterr()
    assert run(place, "--check") == 1
    told = capsys.readouterr().err
    assert "table soak differs" in told
    assert "throughput" not in told
    assert (place / "README.md").read_text() == before


def test_a_missing_result_names_the_command_that_makes_it(place, capsys) -> None:
    (place / "soak.csv").unlink()
    assert run(place) == 2
    assert "run `python -m benchmarks.soak`" in capsys.readouterr().err
    assert (place / "README.md").read_text() == PAGE


def test_a_result_of_an_older_version_names_the_column(place, capsys) -> None:
    (place / "soak.csv").write_text(SOAK.replace("rate_hz", "rate"))
    assert run(place) == 2
    assert "must have 'rate_hz' for table soak" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("page", "named"),
    [
        ("<!-- table: speed -->\n<!-- /table -->\n", "received 'speed'"),
        ("<!-- table: soak -->\n", "table soak must end with a line <!-- /table -->"),
        ("<!-- table: soak -->\n<!-- table: throughput -->\n<!-- /table -->\n", "table soak must end"),
    ],
)
def test_a_block_that_cannot_be_made_is_an_error(place, capsys, page, named) -> None:
    (place / "README.md").write_text(page)
    assert run(place) == 2
    assert named in capsys.readouterr().err


def test_scenarios_stand_side_by_side_in_one_order(place) -> None:
    rows = [("missing_rgir", 3), ("full", 1), ("missing_ndsm", 2)]
    (place / "README.md").write_text("<!-- table: accuracy -->\n<!-- /table -->\n")
    head = "backend,precision,arithmetic,scenario,mf1_percent,miou_percent,drop_mf1_points,same_class_percent\n"
    lines = [f"openvino,int8,f32,{scenario},{n}0.04,{n}5,-0.{n}14,9{n}" for scenario, n in rows]
    (place / "accuracy.csv").write_text(head + "\n".join(lines))
    assert run(place) == 0
    expected = "| 10.0 / 20.0 / 30.0 | 15.0 / 25.0 / 35.0 | -0.11 / -0.21 / -0.31 | 91.00 / 92.00 / 93.00 |"
    assert f"| openvino | int8 | f32 {expected}" in (place / "README.md").read_text()


def test_a_peer_that_was_left_out_of_a_scenario_has_a_dash_there(place) -> None:
    (place / "README.md").write_text("<!-- table: peers -->\n<!-- /table -->\n")
    head = "group,scenario,peer,precision,single_stream_ms,single_stream_over_engine,offline_ms,offline_over_engine"
    lines = [f"{head},agreement,raster_s"]
    lines += [f"tile,{scenario},MONAI,fp32,{n}00,{n}.5,{n}0,{n}.25,0.99{n}," for n, scenario in enumerate(ORDER[:2], 1)]
    lines += ["raster,full,geoai,fp32,,,,,0.9,7.5"]
    (place / "peers.csv").write_text("\n".join(lines))
    assert run(place) == 0
    text = (place / "README.md").read_text()
    assert "| MONAI | fp32 | 100 / 200 / - | 1.50 / 2.50 / - | 10 / 20 / - | 1.25 / 2.25 / - | 99.10 |" in text
    assert "geoai" not in text


def test_table1_is_a_mean_over_seeds_with_its_range(place) -> None:
    (place / "README.md").write_text("<!-- table: table1 -->\n<!-- /table -->\n")
    lines = ["# python -m train.benchmark --steps 7", "preset,system,seed,scenario,parameters,gmac,mean_f1,mean_iou"]
    for seed in (0, 1):
        lines += [f"nano,A,{seed},{s},2500000,{4.25 + n},{0.5 + 0.1 * seed},0.3" for n, s in enumerate(ORDER)]
    (place / "table1.csv").write_text("\n".join(lines))
    assert run(place) == 0
    text = (place / "README.md").read_text()
    cell = "55.0 (50.0..60.0) / 30.0"
    assert f"| nano | A | 2.5 | 4.2 / 5.2 / 6.2 | {cell} | {cell} | {cell} |" in text
    assert "From `python -m train.benchmark --steps 7`" in text


ORDER = ("full", "missing_ndsm", "missing_rgir")


@pytest.mark.parametrize("name", sorted(name for name, made in TABLES.items() if (RESULTS / made.file).exists()))
def test_every_result_of_the_repository_makes_a_short_table(tmp_path, name: str) -> None:
    (tmp_path / "README.md").write_text(f"<!-- table: {name} -->\n<!-- /table -->\n")
    assert main(["--readme", str(tmp_path / "README.md")]) == 0
    lines = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("|")]
    assert 3 <= len(lines) <= 25
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_the_pages_of_the_repository_are_up_to_date(capsys) -> None:
    assert sum(page.read_text().count("<!-- table: ") for page in PAGES) > 10
    assert main(["--check"]) == 0, capsys.readouterr().err
