# SPDX-License-Identifier: Apache-2.0
"""Every graph of a small model is traced once for all tests: tracing takes seconds, and the tests export few models.

Remembered are the calls of what takes seconds and belongs to others: torch's exporter, the folding of constants by
onnxscript, and onnxslim. What decides the result of the first is part of its key: weights, attributes and structure of
the module, shapes of the examples, names, opset and dynamic axes; the others follow from the graph that they are given.
Processes that run tests side by side share what they made through a folder.
"""

import fcntl
import functools
import gc
import hashlib
from contextlib import contextmanager

import onnx
import onnx_ir
import onnxslim
import torch

from segship.ship.graph import trace
from segship.ship.loading import load_model

LARGEST = 1 << 20
"""Parameters of a module whose graph is kept; full-size models are traced each time."""


class TracedGraph:
    """What torch's exporter gives back, as far as it is used: a model, and its own program."""

    def __init__(self, path, export):
        self._export = export
        self.model = onnx_ir.load(path)
        # Is not written with a graph, so it tells those that are as they were traced.
        self.model.meta["traced"] = path

    @property
    def exported_program(self):
        """Torch's program, made anew: it is not kept with the graph."""
        with trace._quiet_exporter(), torch.no_grad():
            return self._export().exported_program


def remembering(export, folder):
    """A ``torch.onnx.export`` that traces each graph once and keeps it in ``folder``."""

    def export_or_read(module, examples, **options):
        if sum(parameter.numel() for parameter in module.parameters()) > LARGEST:
            return export(module, examples, **options)
        path = folder / f"{fingerprint(module, examples, options)}.onnx"
        export_anew = functools.partial(export, module, examples, **options)
        once(path, lambda: export_anew().save(str(path)))
        return TracedGraph(path, export_anew)

    return export_or_read


def remembering_folded(without_weights):
    """What makes weights inputs of a traced graph and folds the rest, once for each trace."""

    def fold_or_read(model, weights):
        if "traced" not in model.meta:
            return without_weights(model, weights)
        path = model.meta["traced"].with_suffix(".folded")
        once(path, lambda: onnx.save(without_weights(model, weights), path))
        return onnx.load(path)

    return fold_or_read


def remembering_slim(slim, folder):
    """An ``onnxslim.slim`` that works on each graph once."""

    def slim_or_read(model):
        path = folder / f"{hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()}.slim"
        once(path, lambda: onnx.save(slim(model), path))
        return onnx.load(path)

    return slim_or_read


def once(path, make):
    """Make a file unless it is there; processes that need the same wait for each other."""
    with locked(path.with_suffix(f"{path.suffix}.lock")):
        if not path.exists():
            with no_collection():
                make()


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
def locked(path, meanwhile=lambda: None):
    """Hold a lock that other processes of the same run wait for; they may do something ``meanwhile``."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            meanwhile()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def trace_backwards(checkpoint, options):
    """Trace the graphs of an export from the last on, while another process traces them from the first."""
    model = load_model(checkpoint, options)
    opset, largest_sizes = options.graph_opset(model.task), model.verbs.largest_sizes(model)
    for module, spec in reversed(model.networks.graphs(model, options).values()):
        trace.trace_graph(module, spec, opset=opset, largest_sizes=largest_sizes)


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
    patch.setattr(torch.onnx, "export", remembering(with_one_table(torch.onnx.export, patch), folder))
    patch.setattr(trace, "_without_weights", remembering_folded(trace._without_weights))
    patch.setattr(onnxslim, "slim", remembering_slim(onnxslim.slim, folder))


def with_one_table(export, patch):
    """A ``torch.onnx.export`` whose table of operators, which it only reads, is not made anew for every graph."""

    @functools.cache
    def keep_table():
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))

    def keep_table_and_export(module, examples, **options):
        keep_table()
        return export(module, examples, **options)

    return keep_table_and_export
