# SPDX-License-Identifier: Apache-2.0
"""The use road never imports the ship road, and `import segship` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "segship"
SHIP_ROAD = ("ship", "backends.torch")
# The command line and the two reporters stand at the end of both roads.
EDGES = ("cli", "inspection", "doctor", "tune")
HEAVY = ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "openvino", "safetensors")


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_on(module, road):
    return any(module == name or module.startswith(f"{name}.") for name in road)


def imports_of(path):
    """Every module that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


USE_ROAD = [path for path in sorted(PACKAGE.rglob("*.py")) if not is_on(module_name(path), SHIP_ROAD + EDGES)]


@pytest.mark.parametrize("path", USE_ROAD, ids=module_name)
def test_use_road_never_imports_the_ship_road(path):
    own = {name.removeprefix("segship.") for name in imports_of(path) if name.startswith("segship.")}
    assert not [name for name in own if is_on(name, SHIP_ROAD)]


@pytest.mark.parametrize("path", USE_ROAD, ids=module_name)
def test_only_the_module_that_wraps_a_runtime_imports_it(path):
    allowed = {"backends.onnxruntime": {"onnxruntime"}}.get(module_name(path), set())
    assert {name.split(".")[0] for name in imports_of(path)} & set(HEAVY) <= allowed


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_no_torch_and_no_runtime():
    loaded = run_python("import sys, segship; print(*sys.modules)").split()
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)


def test_import_takes_under_150_ms_beyond_numpy_pillow_and_opencv():
    code = (
        "import numpy, PIL.Image, cv2, time; start = time.perf_counter(); import segship; "
        "print(time.perf_counter() - start)"
    )
    # The fastest of five, since other work on the machine only ever adds time.
    assert min(float(run_python(code)) for _ in range(5)) < 0.150
