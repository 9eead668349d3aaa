"""The same network in PyTorch and TensorRT on a CUDA device. Written against their documentation, never executed.

A tile goes from host memory to classes in host memory: H2D, compute and D2H, as trtexec defines latency
(https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/command-line-programs.html). fp16 is PyTorch's autocast,
which keeps normalisation and softmax in float32 as our fp16 graphs do.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor

from benchmarks.peers.libraries import EnginePeer, Opener
from benchmarks.peers.peer import Classes, Peer
from benchmarks.peers.subject import Subject
from engine.backends.base import Inputs, Output
from engine.contract.errors import BackendUnavailableError
from engine.contract.sensors import Scenario, Sensor
from export import build as export_build
from export.scenarios import inputs_of

CAPTURE_WARM_UP = 3
"""Calls on a side stream before a capture, as https://docs.pytorch.org/docs/stable/notes/cuda.html asks for."""


class CudaPeer(Peer):
    """PyTorch in fp16 autocast on the first device; ``mode`` is that of ``torch.compile``, None for eager."""

    def __init__(self, subject: Subject, scenario: Scenario, mode: str | None) -> None:
        self.library = f"torch {torch.__version__}"
        module = deepcopy(subject.modules[scenario]).to("cuda")
        if mode is not None:
            torch.compiler.reset()
        self._run = module if mode is None else torch.compile(module, mode=mode, dynamic=False)
        self._sensors = inputs_of(scenario)

    def infer(self, inputs: Inputs) -> Classes:
        """See :meth:`Peer.infer`."""
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            classes = self._run(*(self._host(inputs, sensor).to("cuda") for sensor in self._sensors))[0]
            found: Classes = classes[0].cpu().numpy()
        return found

    @staticmethod
    def _host(inputs: Inputs, sensor: Sensor) -> Tensor:
        return torch.from_numpy(inputs[sensor])[None]


class CudaGraphPeer(CudaPeer):
    """Eager kernels captured once and launched with one call (https://docs.pytorch.org/docs/stable/notes/cuda.html)."""

    def __init__(self, subject: Subject, scenario: Scenario) -> None:
        super().__init__(subject, scenario, mode=None)
        tile_px = subject.bundle.manifest.tile_px
        specs = [subject.bundle.manifest.sensor(sensor) for sensor in self._sensors]
        self._static = [
            torch.zeros(1, len(spec.bands), tile_px, tile_px, dtype=getattr(torch, spec.dtype), device="cuda")
            for spec in specs
        ]
        # the cache of autocast would hand memory of the capture to later calls
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, cache_enabled=False):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(CAPTURE_WARM_UP):
                    self._run(*self._static)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._classes = self._run(*self._static)[0]

    def infer(self, inputs: Inputs) -> Classes:
        """See :meth:`Peer.infer`."""
        with torch.inference_mode():
            for static, sensor in zip(self._static, self._sensors, strict=True):
                static.copy_(self._host(inputs, sensor))
            self._graph.replay()
            found: Classes = self._classes[0].cpu().numpy()
        return found


def _tensorrt(subject: Subject, scenario: Scenario) -> Peer:
    """The engine on TensorRT, building the plans that are not there yet."""
    export_build.build(export_build.parser().parse_args(["--bundle", str(subject.bundle.root)]))
    return EnginePeer(subject, scenario, "auto", backend="tensorrt")


class CudaOnnxRuntimePeer(Peer):
    """The fp32 graph in ONNX Runtime's CUDA provider, in a plain call."""

    def __init__(self, subject: Subject, scenario: Scenario) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailableError(f"onnxruntime-gpu is not installed ({error})") from error
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise BackendUnavailableError(
                "this onnxruntime has no CUDA provider: pip install onnxruntime-gpu in its place"
            )
        self.library = f"onnxruntime {onnxruntime.__version__}"
        exact = {"use_tf32": "0"}
        path = subject.bundle.graph(scenario, "fp32")
        self._session = onnxruntime.InferenceSession(path, providers=[("CUDAExecutionProvider", exact)])

    def infer(self, inputs: Inputs) -> Classes:
        """See :meth:`Peer.infer`."""
        feed = {sensor.value: values[None] for sensor, values in inputs.items()}
        found: Classes = self._session.run([Output.CLASSES.value], feed)[0][0]
        return found


GPU_PEERS: Mapping[tuple[str, str], Opener] = {
    ("PyTorch eager, CUDA", "fp16"): lambda subject, scenario: CudaPeer(subject, scenario, None),
    ("torch.compile max-autotune, CUDA", "fp16"): lambda subject, scenario: CudaPeer(subject, scenario, "max-autotune"),
    ("PyTorch CUDA graph", "fp16"): CudaGraphPeer,
    ("ONNX Runtime, CUDA", "fp32"): CudaOnnxRuntimePeer,
    ("engine, TensorRT", "auto"): _tensorrt,
}


def gpu_peers() -> Mapping[tuple[str, str], Opener]:
    """Those of a CUDA device.

    Raises:
        BackendUnavailableError: PyTorch sees none.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            "no CUDA device that PyTorch sees: on one, fp16 eager, torch.compile max-autotune, CUDA graphs and "
            "TensorRT are compared as well"
        )
    return GPU_PEERS
