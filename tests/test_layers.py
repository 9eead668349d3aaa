"""The import rule: who may import whom, checked in the source and in a clean process without the heavy libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"engine", "export", "calib", "train", "benchmarks"}
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "modelopt", "scipy", "safetensors")
HEAVY += ("prometheus_client", "shapely", "geopandas", "pyogrio", "pyarrow", "starlette", "uvicorn", "ray", "obstore")
BEHIND_AN_EXTRA = {"onnxruntime.py", "device.py", "tensorrt.py", "tensorrt_pipeline.py", "metrics.py"}
BEHIND_AN_EXTRA |= {
    "polygons.py",
    "vector_file.py",
    "web.py",
    "events.py",
    "guard.py",
    "serve.py",
    "process.py",
    "cluster.py",
    "bucket.py",
}
"""Modules of the engine that import a library of an optional extra; nobody imports them unless it is wanted."""


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ["export", "calib", "train"])
def test_other_rooms_see_only_the_contract_of_the_engine(room: str) -> None:
    for path in sources(room):
        for name in imported(path):
            if name.split(".")[0] == "engine":
                assert name.startswith("engine.contract"), f"{path} imports {name}"


def test_the_engine_imports_no_sibling_and_no_torch() -> None:
    assert sources("engine")
    for path in sources("engine"):
        forbidden = {name.split(".")[0] for name in imported(path)} & ((ROOMS - {"engine"}) | {"torch"})
        assert not forbidden, f"{path} imports {forbidden}"


def test_the_contract_needs_numpy_and_the_manifest_library_alone() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "msgspec"}
    for path in sources("engine/contract"):
        for name in imported(path):
            # imported where a signature has to be checked or a page is written, and there alone
            checks = path.name == "trust.py" and name.startswith("cryptography")
            writes = path.parent.name == "page" and name == "markupsafe"
            assert checks or writes or name.split(".")[0] in allowed or name.startswith("engine.contract"), (
                f"{path}: {name}"
            )


@pytest.mark.parametrize(("importer", "forbidden"), [("calib", "export"), ("export", "calib"), ("train", "export")])
def test_rooms_that_never_import_each_other(importer: str, forbidden: str) -> None:
    for path in sources(importer):
        assert forbidden not in {name.split(".")[0] for name in imported(path)}, path


def test_only_one_place_imports_each_boundary_library() -> None:
    homes = {
        "openvino": {"openvino.py"},
        "onnxruntime": {"onnxruntime.py"},
        "pycuda": {"device.py"},
        "prometheus_client": {"metrics.py"},
        "ray": {"cluster.py"},
        "obstore": {"bucket.py"},
        "rasterio": {path.name for path in sources("engine/rasters")},
    }
    for path in sources("engine"):
        for name in imported(path):
            home = homes.get(name.split(".")[0])
            assert home is None or path.name in home, f"{path} imports {name}"


def test_every_engine_module_that_needs_no_extra_imports_without_heavy_libraries() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sources("engine")
        if path.name not in BEHIND_AN_EXTRA
    ]
    script = (
        "import sys, importlib\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {HEAVY!r}: raise ImportError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_each_room_makes_one_openvino_core_at_most() -> None:
    """Many Cores over the life of a process have crashed others: see ``shared_core`` in engine/backends/openvino.py."""
    makers: dict[str, list[str]] = {}
    for path in (path for room in (*ROOMS, "tests") for path in sources(room)):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        made = sum(isinstance(call, ast.Attribute) and call.attr == "Core" for call in calls)
        makers.setdefault(path.relative_to(ROOT).parts[0], []).extend([path.name] * made)
    assert {room: found for room, found in makers.items() if found} == {
        "engine": ["openvino.py"],
        "export": ["verify.py"],
        "calib": ["runtimes.py"],
    }
