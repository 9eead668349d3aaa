"""What each exported graph computes: one mask-free module per scenario, raw sensor units in, a map out.

Inputs are those that ``engine.contract`` names: ``rgir`` uint8 [N, 3, T, T] in NIR-R-G order and ``ndsm`` float32
[N, 1, T, T] in metres, finite. Outputs, in this order:

- ``classes`` uint8 [N, T, T], the most probable class;
- ``confidence`` uint8 [N, T, T], its probability x 255, rounded;
- ``probabilities`` float32 [N, C, T, T], summing to 1 over C.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.contract.sensors import Scenario, Sensor
from train.system import System

OUTPUTS = ("classes", "confidence", "probabilities")

BANDS = {Sensor.RGIR: 3, Sensor.NDSM: 1}


def inputs_of(scenario: Scenario) -> tuple[Sensor, ...]:
    """The inputs of a scenario's graph, in the order its module takes them."""
    return tuple(sensor for sensor in Sensor if sensor in scenario.sensors)


def answer(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, C, T, T] -> (classes, confidence, probabilities), see the module docstring.

    Classes become bytes by way of float32, which holds them exactly: TensorRT promises UINT8 of floating point alone
    (https://docs.nvidia.com/deeplearning/tensorrt/api/python_api/infer/FoundationalTypes/DataType.html).

    The softmax is spelled out: on [1, 6, 512, 512] and two CPU threads ONNX Runtime took 32 ms for its Softmax op
    over the channel axis and 5 ms for this form, which OpenVINO fuses back into one Softmax.
    """
    exponentials = (logits - logits.amax(dim=1, keepdim=True)).exp()
    probabilities = exponentials / exponentials.sum(dim=1, keepdim=True)
    # One op for value and index.
    largest, classes = probabilities.topk(1, dim=1)
    confidence = (largest * 255).round()
    return classes.squeeze(1).float().to(torch.uint8), confidence.squeeze(1).to(torch.uint8), probabilities


class FullGraph(nn.Module):
    """Both sensors alive; no generator."""

    def __init__(self, model: System) -> None:
        super().__init__()
        self.model = model

    def forward(self, rgir: Tensor, ndsm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw sensor units -> (classes, confidence, probabilities)."""
        return answer(self.model.forward_full(rgir, ndsm))


class MissingNdsmGraph(nn.Module):
    """RGIR alone; the nDSM generator is embedded."""

    def __init__(self, model: System) -> None:
        super().__init__()
        self.model = model

    def forward(self, rgir: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw sensor units -> (classes, confidence, probabilities)."""
        logits, _ = self.model.forward_missing_ndsm(rgir)
        return answer(logits)


class MissingRgirGraph(nn.Module):
    """nDSM alone; the RGIR generator is embedded."""

    def __init__(self, model: System) -> None:
        super().__init__()
        self.model = model

    def forward(self, ndsm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw sensor units -> (classes, confidence, probabilities)."""
        logits, _ = self.model.forward_missing_rgir(ndsm)
        return answer(logits)


_MODULES: dict[Scenario, type[nn.Module]] = {
    Scenario.FULL: FullGraph,
    Scenario.MISSING_NDSM: MissingNdsmGraph,
    Scenario.MISSING_RGIR: MissingRgirGraph,
}


def scenario_module(model: System, scenario: Scenario) -> nn.Module:
    """The module of one scenario, in evaluation mode, sharing the model's parameters, its temperature taken in."""
    return _MODULES[scenario](model.tempered(scenario)).eval()
