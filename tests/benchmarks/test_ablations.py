"""What a part of adapting earns: runs on small scenes, scored and not trained twice."""

import csv

from benchmarks import ablations
from tests.train.scenes import toy_scene
from tests.train.test_folder import scene
from train import run
from train.data.procedural import FIRST_SEED


def test_a_variant_is_trained_once_and_scored_beside_the_model_as_it_is(tmp_path, capsys):
    for seed in (0, 1, FIRST_SEED["validation"]):
        toy_scene(tmp_path / "cache", seed)
    words = "--preset nano --synthetic 2 --validation-scenes 1 --steps 1 --batch 2 --crop 64 --workers 0 --threads 1"
    known = tmp_path / "known"
    assert run.main([*words.split(), "--cache", str(tmp_path / "cache"), "--out", str(known)]) == 0
    for number, name in enumerate("ab"):
        scene(tmp_path / "mine", name, seed=number)
    given = (
        f"--target folder:{tmp_path}/mine --data {tmp_path}/mine --init {known}/best.safetensors --seeds 0 --steps 2"
    )
    given += f" --runs {tmp_path}/runs --out {tmp_path}/found.csv --variants"
    more = f"--warm-up 1 --batch 4 --crop 64 --workers 0 --source synthetic:2 --cache {tmp_path}/cache"
    assert ablations.main([*given.split(), "without ndvi", "--adapt", more]) == 0
    capsys.readouterr()
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert {row["variant"] for row in rows} == {"before", "without ndvi"}
    assert {row["scenario"] for row in rows} == {"full", "missing_ndsm", "missing_rgir"}
    made = (tmp_path / "runs" / "without-ndvi_0" / "last.safetensors").stat().st_mtime_ns
    assert ablations.main([*given.split(), "without ndvi", "--adapt", more]) == 0
    assert (tmp_path / "runs" / "without-ndvi_0" / "last.safetensors").stat().st_mtime_ns == made
    assert "| without ndvi |" in capsys.readouterr().out
    assert ablations.main([*given.split(), "without luck"]) == 2
