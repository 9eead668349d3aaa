"""Averages of two checkpoints."""

import pytest
import torch

from train import average
from train.average import averaged


def test_each_tensor_lies_between_the_two_by_its_own_weight():
    first = {"a.w": torch.zeros(2), "a.b.w": torch.zeros(2), "steps": torch.tensor(3)}
    second = {"a.w": torch.full((2,), 4.0), "a.b.w": torch.full((2,), 8.0), "steps": torch.tensor(5)}
    found = averaged(first, second, 0.25, {"a": 0.5, "a.b": 1.0})
    assert found["a.w"].tolist() == [2, 2]
    assert found["a.b.w"].tolist() == [8, 8]  # the longer name counts
    assert found["steps"] == 5
    assert averaged(first, second, 0.25, {})["a.w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("second", "weight", "parts", "words"),
    [
        ({"a": torch.zeros(3)}, 0.5, {}, "one network; 1 tensors differ, such as a"),
        ({"a": torch.zeros(2)}, 1.5, {}, "weights lie in 0 to 1"),
        ({"a": torch.zeros(2)}, 0.5, {"a": -1}, "weights lie in 0 to 1"),
        ({"a": torch.zeros(2)}, 0.5, {"b": 1}, "b begins none"),
    ],
)
def test_what_does_not_fit_is_refused(second, weight, parts, words):
    with pytest.raises(ValueError, match=words):
        averaged({"a": torch.zeros(2)}, second, weight, parts)


def test_the_command_writes_a_checkpoint_without_the_scores_of_its_parents(tmp_path, capsys):
    from train import checkpoint

    out = tmp_path / "both.safetensors"
    assert average.main(["demo", "demo", "--out", str(out)]) == 0
    model, info = checkpoint.load(out)
    parent, _ = checkpoint.load(checkpoint.named("demo"))
    for name, tensor in parent.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)
    assert not info.metrics
    assert not info.temperatures
    assert "train.average demo demo" in info.command
    assert average.main(["demo", str(tmp_path / "none.safetensors"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
