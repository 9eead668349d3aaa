import numpy as np
import pytest

from engine.contract.sensors import Sensor
from train.data import synthetic
from train.data.procedural import ProceduralSource, fill, scene_folder
from train.data.rasters import DataError
from train.data.scenes import Scene
from train.data.sources import open_source


def test_filling_a_cache_makes_only_what_is_missing_and_scenes_read_back_as_generated(tmp_path):
    cache = tmp_path / "cache"
    fill(cache, range(2), size_px=64, workers=1)
    (cache / ".scene-leftover").mkdir()  # of an interrupted run
    made = scene_folder(cache, 1).stat().st_mtime_ns
    fill(cache, range(3), size_px=64, workers=1)
    assert scene_folder(cache, 1).stat().st_mtime_ns == made
    expected = synthetic.generate(seed=2, size_px=64)
    scene = Scene(folder=scene_folder(cache, 2))
    np.testing.assert_array_equal(scene.bands(Sensor.RGIR), expected.rgir)
    np.testing.assert_array_equal(scene.labels(), expected.labels)
    np.testing.assert_allclose(scene.bands(Sensor.NDSM), expected.ndsm, atol=0.02)


def test_scenes_in_real_colours_have_a_folder_and_a_name_of_their_own(tmp_path):
    plain, real = (open_source(text, tmp_path) for text in ("synthetic:3", "synthetic-real:3"))
    assert (plain.name, real.name) == ("synthetic", "synthetic-real")
    assert plain.folder == tmp_path != real.folder
    assert "in real colours" in real.describe("train")
    fill(real.folder, [1], size_px=64, workers=1, real_colours=True)
    assert not np.array_equal(
        Scene(folder=scene_folder(real.folder, 1)).bands(Sensor.RGIR), synthetic.generate(seed=1, size_px=64).rgir
    )


def test_a_cache_of_another_generator_version_is_reported(tmp_path, caplog):
    (tmp_path / "generator.sha256").write_text("of an older version")
    fill(tmp_path, [], workers=1)
    assert "another version" in caplog.text


def test_parts_share_no_seed(tmp_path):
    source = ProceduralSource(cache=tmp_path, count=900, validation_count=200, test_count=200)
    parts = [set(source._seeds(part)) for part in ("train", "validation", "test")]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 1300


@pytest.mark.parametrize("text", ["", "synthetic", "synthetic:0", "synthetic:x", "vaihingen", "moon:/data"])
def test_a_source_that_is_none_is_refused_with_the_grammar(tmp_path, text):
    with pytest.raises(DataError, match="vaihingen:DIR"):
        open_source(text, tmp_path)
