# SPDX-License-Identifier: Apache-2.0
"""Every graph of a small model is traced once for all tests: tracing takes seconds, and the tests export few models.

Only the call of torch's exporter is remembered. What decides its result is part of the key: weights, attributes and
structure of the module, shapes of the examples, names, opset and dynamic axes. Processes that run tests side by side
share what they traced through a folder.
"""

import fcntl
import gc
import hashlib
from contextlib import contextmanager

import onnx_ir
import torch

LARGEST = 1 << 20
"""Parameters of a module whose graph is kept; full-size models are traced each time."""


class TracedGraph:
    """What torch's exporter gives back, as far as it is used: a model."""

    def __init__(self, path):
        self.model = onnx_ir.load(path)


def remembering(export, folder):
    """A ``torch.onnx.export`` that traces each graph once and keeps it in ``folder``."""

    def export_or_read(module, examples, **options):
        if sum(parameter.numel() for parameter in module.parameters()) > LARGEST:
            return export(module, examples, **options)
        path = folder / f"{fingerprint(module, examples, options)}.onnx"
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                with no_collection():
                    export(module, examples, **options).save(str(path))
        return TracedGraph(path)

    return export_or_read


def fingerprint(module, examples, options):
    """A digest of all that a traced graph follows from."""
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        plain = {key: value for key, value in vars(part).items() if not key.startswith("_")}
        digest.update(repr((name, type(part), sorted(plain.items()))).encode())
        for tensors in (part._parameters, part._buffers):
            for key, tensor in tensors.items():
                digest.update(f"{key} {None if tensor is None else (tensor.dtype, tensor.shape)}".encode())
                digest.update(b"" if tensor is None else tensor.detach().contiguous().numpy().tobytes())
    shapes = [
        {axis: (dim.__name__, dim.min, dim.max) for axis, dim in axes.items()} for axes in options["dynamic_shapes"]
    ]
    digest.update(repr([(example.dtype, example.shape) for example in examples]).encode())
    digest.update(repr(sorted({**options, "dynamic_shapes": shapes}.items())).encode())
    return digest.hexdigest()


@contextmanager
def locked(path):
    """Hold a lock that other processes of the same run wait for."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def no_collection():
    """Leave garbage where it is: tracing makes millions of small objects, and looking through them takes a fifth."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def share_traces(patch, folder):
    """Have every test of this process trace through ``folder``."""
    patch.setattr(torch.onnx, "export", remembering(torch.onnx.export, folder))
