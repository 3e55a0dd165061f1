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
        self.shapes = shapes
        self.engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            sys.exit(f"{path} does not load: it was built for another GPU or version; run build.py again")
        self.context: Any = self.engine.create_execution_context()
        self.stream = call(cuda.cudaStreamCreate)

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the outputs for arrays of the inputs, by name; a call that no range holds is an error."""
        self.context.set_optimization_profile_async(self.profile_of(inputs), self.stream)
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

    def profile_of(self, inputs: dict[str, Any]) -> int:
        """Return the number of the first profile that holds the shapes of a call."""
        for place, shapes in enumerate(self.shapes):
            if all(
                least <= size <= most
                for name, (low, _, high) in shapes.items()
                for least, size, most in zip(low, inputs[name].shape, high, strict=True)
            ):
                return place
        found = {name: list(array.shape) for name, array in inputs.items()}
        sys.exit(f"no profile of the plan holds {found}; split the call, or convert again with other ranges")

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


def accept() -> int:
    """Hold the plans against the answers of the float32 graphs, write report.json, and return the exit code."""
    document = json.loads((KIT / "kit.json").read_text())
    rows = []
    for name, graph in document["graphs"].items():
        plan = Plan(KIT / "plans" / f"{name}.plan", graph["shapes"])
        for path in sorted((KIT / "acceptance").glob(f"{name}.*.npz")):
            with np.load(path) as arrays:
                given = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in.")}
                known = {key[4:]: arrays[key] for key in arrays.files if key.startswith("out.")}
            found = plan.run(given)
            rows += [compared(path.name, key, known[key], found[key]) for key in known]
    bar = document["bar"]
    for row in rows:
        row["passed"] = all(row[figure] >= least for figure, least in bar.items() if figure in row)
        print(row)
    machine = {"tensorrt": trt.__version__, "gpu": call(cuda.cudaGetDeviceProperties, 0).name.decode().strip("\0")}
    report = {"kit": document["precision"], "bar": bar, "machine": machine, "rows": rows}
    (KIT / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0 if rows and all(row["passed"] for row in rows) else 1


def compared(case: str, tensor: str, known: Any, found: Any) -> dict[str, Any]:
    """Return the figures of one output: cosine and largest difference, of masks the IoU, of classes the equal part."""
    row: dict[str, Any] = {"case": case, "tensor": tensor}
    if known.dtype.kind in "iu":
        return {**row, "cosine": float(np.mean(known == found))}
    a, b = known.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    row["cosine"] = float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
    row["max_abs"] = float(np.abs(a - b).max())
    if tensor == "low_res_masks":
        planes = zip(known.reshape(-1, *known.shape[-2:]), found.reshape(-1, *found.shape[-2:]), strict=True)
        ious = [((p > 0) & (q > 0)).sum() / max(((p > 0) | (q > 0)).sum(), 1) for p, q in planes if (p > 0).any()]
        row["mask_iou"] = float(np.mean(ious)) if ious else 1.0
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accept"])
    parser.parse_args()
    sys.exit(accept())
