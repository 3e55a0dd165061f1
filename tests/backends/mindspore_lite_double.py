# SPDX-License-Identifier: Apache-2.0
"""A double of MindSpore Lite 2.0's Python API, as far as segship calls it; ONNX Runtime computes.

It refuses what the real one refuses, in its words, and has its habits: tensors point to the memory of arrays, whatever
their order, answers point to memory of the next call, what was never given is zeros, and models of free sizes convert
and do not run. ``test_mindspore_lite.py`` holds both against each other where the real one is installed.
"""

import os
import shutil
from enum import Enum

import numpy as np
import onnx
import onnxruntime

__version__ = "2.0.double"


class ModelType(Enum):
    MINDIR = 0
    MINDIR_LITE = 4


class FmkType(Enum):
    ONNX = 2


class DataType(Enum):
    INT64 = 34
    FLOAT32 = 43
    FLOAT64 = 44


def _check(name, value, kind):
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, but got {type(value)}.")


class Converter:
    save_type = ModelType.MINDIR_LITE

    def convert(self, fmk_type, model_file, output_file):
        _check("fmk_type", fmk_type, FmkType)
        _check("model_file", model_file, str)
        _check("output_file", output_file, str)
        if not os.path.exists(model_file):
            raise RuntimeError("Perform convert method failed, model_file does not exist!")
        shutil.copy(model_file, output_file + (".mindir" if self.save_type is ModelType.MINDIR else ".ms"))


class _Cpu:
    def __init__(self):
        self._threads = 0

    @property
    def thread_num(self):
        return self._threads

    @thread_num.setter
    def thread_num(self, count):
        _check("cpu_thread_num", count, int)
        if count < 0:
            raise ValueError("cpu_thread_num must be a non-negative int.")
        self._threads = count


class Context:
    def __init__(self):
        self._target, self.cpu = ["cpu"], _Cpu()

    @property
    def target(self):
        return self._target

    @target.setter
    def target(self, target):
        _check("target", target, list)
        for name in target:
            if name not in ("cpu", "gpu", "ascend"):
                raise ValueError(f"target elements must be in ['cpu', 'gpu', 'ascend'], but got {name}.")
        self._target = target


class Tensor:
    def __init__(self, name, kind, shape):
        self.name, self._kind, self.shape = name, np.dtype(kind), shape
        self._memory = np.zeros([max(size, 0) for size in shape], kind)

    @property
    def dtype(self):
        return DataType[self._kind.name.upper()]

    @property
    def data_size(self):
        return self._memory.nbytes

    def set_data_from_numpy(self, numpy_obj):
        if not isinstance(numpy_obj, np.ndarray):
            raise TypeError(f"numpy_obj must be numpy.ndarray, but got {type(numpy_obj)}.")
        if not numpy_obj.flags["FORC"]:
            numpy_obj = np.ascontiguousarray(numpy_obj)
        if numpy_obj.dtype != self._kind:
            raise RuntimeError(f"data type not equal! Numpy type: {numpy_obj.dtype.type}, Tensor type: {self.dtype}")
        if numpy_obj.nbytes != self.data_size:
            raise RuntimeError(f"data size not equal! Numpy size: {numpy_obj.nbytes}, Tensor size: {self.data_size}")
        # Its bytes as they lie there, and no copy.
        flat = numpy_obj.ravel(order="K") if numpy_obj.flags.f_contiguous else numpy_obj.reshape(-1)
        self._memory = flat.reshape(self.shape)

    def get_data_to_numpy(self):
        return self._memory


class Model:
    def __init__(self):
        self._session, self._inputs, self._outputs = None, [], []

    def build_from_file(self, model_path, model_type, context=None):
        _check("model_path", model_path, str)
        _check("model_type", model_type, ModelType)
        _check("context", context or Context(), Context)
        if not os.path.exists(model_path):
            raise RuntimeError("build_from_file failed, model_path does not exist!")
        try:
            graph = onnx.load(model_path).graph
            self._session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
        except Exception:
            graph = None
        if graph is None or model_type is not ModelType.MINDIR:
            raise RuntimeError("build_from_file failed! Error is Common error code.")
        self._inputs = [_tensor(value) for value in graph.input]
        self._outputs = [_tensor(value) for value in graph.output]

    def get_inputs(self):
        return list(self._inputs)

    def predict(self, inputs):
        _check("inputs", inputs, list)
        for place, tensor in enumerate(inputs):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"inputs element must be Tensor, but got {type(tensor)} at index {place}.")
        shapes = [tensor.shape for tensor in self._inputs]
        if self._session is None or [tensor.shape for tensor in inputs] != shapes or -1 in sum(shapes, []):
            raise RuntimeError("predict failed!")
        feeds = {known.name: given.get_data_to_numpy() for known, given in zip(self._inputs, inputs, strict=True)}
        for tensor, array in zip(self._outputs, self._session.run(None, feeds), strict=True):
            tensor.get_data_to_numpy()[...] = array
        return list(self._outputs)


def _tensor(value):
    about = value.type.tensor_type
    shape = [dim.dim_value or -1 for dim in about.shape.dim]
    return Tensor(value.name, onnx.helper.tensor_dtype_to_np_dtype(about.elem_type), shape)
