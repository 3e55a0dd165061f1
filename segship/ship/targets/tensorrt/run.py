# SPDX-License-Identifier: Apache-2.0
"""Run the plans of this kit: ``python run.py accept`` holds them against the float32 answers in acceptance/.

Needs tensorrt, cuda-python and numpy; `Plan` is all that a program of its own takes from here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
from cuda.bindings import runtime as cuda

KIT = Path(__file__).resolve().parent


def call(function: Any, *arguments: Any) -> Any:
    """Call CUDA, and end with its words where it fails."""
    code, *found = function(*arguments)
    if int(code):
        sys.exit(f"{function.__name__} failed: {code}")
    return found[0] if found else None


class Plan:
    """A plan, and the ranges of sizes that it was built for."""

    def __init__(self, path: Path, shapes: list[dict[str, Any]]) -> None:
        if not path.is_file():
            sys.exit(f"{path} is not there; run build.py or trtexec.sh first")
        self.shapes = shapes
        self.engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            sys.exit(f"{path} does not load: it was built for another GPU or version; run build.py again")
        self.context: Any = self.engine.create_execution_context()
        self.stream = call(cuda.cudaStreamCreate)

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the outputs for arrays of the inputs, by name; a call that no range holds is an error."""
        place = self.profile_of(inputs)
        if place is None:
            found = {name: list(array.shape) for name, array in inputs.items()}
            sys.exit(f"no profile of the plan holds {found}; split the call, or convert again with other ranges")
        self.context.set_optimization_profile_async(place, self.stream)
        memory: list[int] = []
        held = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        to_gpu, to_host = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for name, array in held.items():
            address = self.reserve(name, array.nbytes, memory)
            self.context.set_input_shape(name, array.shape)
            call(cuda.cudaMemcpyAsync, address, array.ctypes.data, array.nbytes, to_gpu, self.stream)
        outputs = {}
        for name in self.outputs():
            dtype = trt.nptype(self.engine.get_tensor_dtype(name))
            array = np.empty(tuple(self.context.get_tensor_shape(name)), dtype)
            outputs[name] = (array, self.reserve(name, array.nbytes, memory))
        if not self.context.execute_async_v3(int(self.stream)):
            sys.exit("TensorRT did not run the plan; its log says why")
        for array, address in outputs.values():
            call(cuda.cudaMemcpyAsync, array.ctypes.data, address, array.nbytes, to_host, self.stream)
        call(cuda.cudaStreamSynchronize, self.stream)
        for address in memory:
            call(cuda.cudaFree, address)
        return {name: array for name, (array, _) in outputs.items()}

    def profile_of(self, inputs: dict[str, Any]) -> int | None:
        """Return the number of the first profile that holds the shapes of a call; None where none does."""
        for place, shapes in enumerate(self.shapes):
            if all(
                least <= size <= most
                for name, (low, _, high) in shapes.items()
                for least, size, most in zip(low, inputs[name].shape, high, strict=True)
            ):
                return place
        return None

    def reserve(self, name: str, count: int, memory: list[int]) -> int:
        """Give a tensor memory on the GPU and return its address."""
        memory.append(int(call(cuda.cudaMalloc, max(count, 1))))
        self.context.set_tensor_address(name, memory[-1])
        return memory[-1]

    def outputs(self) -> Iterator[str]:
        """Yield the names of the outputs."""
        for index in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(index)
            if self.engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
                yield name


def plans_of(name: str, shapes: list[dict[str, Any]]) -> list[Plan]:
    """Return the plans of a graph: the one of build.py, or else those of trtexec.sh, one for each range."""
    folder = KIT / "plans"
    if (folder / f"{name}.0.plan").is_file() and not (folder / f"{name}.plan").is_file():
        return [Plan(folder / f"{name}.{place}.plan", [one]) for place, one in enumerate(shapes)]
    return [Plan(folder / f"{name}.plan", shapes)]


def accept() -> int:
    """Hold the plans against the answers of the float32 graphs, write report.json, and return the exit code."""
    document = json.loads((KIT / "kit.json").read_text())
    rows = []
    for name, graph in document["graphs"].items():
        plans = plans_of(name, graph["shapes"])
        for path in sorted((KIT / "acceptance").glob(f"{name}.*.npz")):
            with np.load(path) as arrays:
                given = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in.")}
                known = {key[4:]: arrays[key] for key in arrays.files if key.startswith("out.")}
            found = next((plan for plan in plans if plan.profile_of(given) is not None), plans[0]).run(given)
            rows += [compared(path.name, key, known[key], found[key]) for key in known]
    bar = document["bar"]
    for row in rows:
        row["passed"] = all(row[figure] >= least for figure, least in bar.items() if figure in row)
        print(row)
    machine = {"tensorrt": trt.__version__, "gpu": call(cuda.cudaGetDeviceProperties, 0).name.decode().strip("\0")}
    # JSON has no other numbers.
    shown = [{key: value if value == value else None for key, value in row.items()} for row in rows]
    report = {"kit": document["precision"], "bar": bar, "machine": machine, "rows": shown}
    (KIT / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0 if rows and all(row["passed"] for row in rows) else 1


def compared(case: str, tensor: str, known: Any, found: Any) -> dict[str, Any]:
    """Return the figures of one output: cosine and largest difference, of masks the IoU, of classes the equal part."""
    row: dict[str, Any] = {"case": case, "tensor": tensor}
    if known.dtype.kind in "iu":
        return {**row, "cosine": float(np.mean(known == found))}
    a, b = known.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    row["cosine"] = float(a @ b) / norm if norm else float(np.array_equal(a, b))
    row["max_abs"] = float(np.abs(a - b).max())
    if tensor == "low_res_masks":
        planes = [array.reshape(-1, *array.shape[-2:]) > 0 for array in (known, found)]
        both, either = (method(*planes).sum((1, 2)) for method in (np.logical_and, np.logical_or))
        # Two that are empty are equal.
        row["mask_iou"] = float(np.mean(np.where(either, both / np.maximum(either, 1), 1.0)))
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accept"])
    parser.parse_args()
    sys.exit(accept())
