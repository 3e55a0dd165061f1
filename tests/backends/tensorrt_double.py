# SPDX-License-Identifier: Apache-2.0
"""Doubles of TensorRT 10's Python API and of CUDA's runtime, as far as segship calls them; ONNX Runtime computes.

They hold callers to what the real ones hold them to: strongly typed networks, a shape for every input of every profile,
sizes within the chosen profile, addresses for all tensors before a run, memory that was reserved and is large enough.
What they cannot show is speed, arithmetic of a GPU, and what a real builder refuses.
"""

import ctypes
import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

REFUSED = {"NonZero", "Loop"}
ERROR = 1


class Cuda:
    """Memory of the host that plays the GPU's."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host")

    def __init__(self, gpus=1):
        self.gpus, self.memory, self.streams = gpus, {}, set()

    def cudaGetDeviceCount(self):
        return 0, self.gpus

    def cudaGetDeviceProperties(self, index):
        assert 0 <= index < self.gpus
        return 0, SimpleNamespace(name=b"Double\0\0")

    def cudaSetDevice(self, index):
        return (0 if index < self.gpus else 101,)

    def cudaStreamCreate(self):
        self.streams.add(7 + len(self.streams))
        return 0, max(self.streams)

    def cudaStreamDestroy(self, stream):
        self.streams.remove(stream)
        return (0,)

    def cudaStreamSynchronize(self, stream):
        assert stream in self.streams
        return (0,)

    def cudaMalloc(self, count):
        assert count > 0
        held = ctypes.create_string_buffer(count)
        self.memory[ctypes.addressof(held)] = held
        return 0, ctypes.addressof(held)

    def cudaFree(self, address):
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, target, source, count, kind, stream):
        assert stream in self.streams
        on_gpu = target if kind == "to device" else source
        assert len(self.memory[on_gpu]) >= count
        ctypes.memmove(target, source, count)
        return (0,)


class ILogger:
    Severity = SimpleNamespace(ERROR=ERROR)


class Logger(ILogger):
    WARNING = 2

    def __init__(self, severity=2):
        pass

    def log(self, severity, message):
        pass


class _Network:
    def __init__(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self.model = None

    def _values(self, kind):
        return getattr(self.model.graph, kind)

    num_inputs = property(lambda self: len(self._values("input")))
    num_outputs = property(lambda self: len(self._values("output")))

    def get_input(self, index):
        return _declared(self._values("input")[index])

    def get_output(self, index):
        return _declared(self._values("output")[index])


def _declared(value):
    shape = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
    return SimpleNamespace(name=value.name, dtype=value.type.tensor_type.elem_type, shape=shape)


class OnnxParser:
    def __init__(self, network, logger):
        self._network, self._errors = network, []

    def parse(self, graph):
        self._network.model = onnx.load_from_string(graph)
        self._errors = [node for node in self._network.model.graph.node if node.op_type in REFUSED]
        return not self._errors

    def parse_from_file(self, path):
        with open(path, "rb") as stream:
            return self.parse(stream.read())

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        node = self._errors[index]
        return SimpleNamespace(
            node_name=lambda: node.name, node_operator=lambda: node.op_type, desc=lambda: "no importer registered"
        )


class Builder:
    def __init__(self, logger):
        self._logger = logger

    def create_network(self, flags):
        return _Network(flags)

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        names = {value.name for value in network.model.graph.input}
        free = any(-1 in _declared(value).shape for value in network.model.graph.input)
        if free and (not config.profiles or any(profile.keys() != names for profile in config.profiles)):
            self._logger.log(ERROR, "Network has dynamic or shape inputs, but no optimization profile has been defined")
            return None
        assert config.cleared == {"TF32"}
        profiles = json.dumps(config.profiles).encode()
        return len(profiles).to_bytes(8, "little") + profiles + network.model.SerializeToString()


class _Profile(dict):
    def set_shape(self, name, least, usual, most):
        assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True)) and 0 not in least
        self[name] = [list(least), list(usual), list(most)]


class _Config:
    def __init__(self):
        self.profiles, self.cleared, self.num_compute_capabilities, self.capabilities = [], set(), 0, {}

    def clear_flag(self, flag):
        self.cleared.add(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)

    def set_compute_capability(self, capability, place):
        assert place < self.num_compute_capabilities
        self.capabilities[place] = capability


class Runtime:
    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, plan):
        if len(plan) < 16:
            self._logger.log(ERROR, "the engine plan file is not compatible with this version")
            return None
        return _Engine(plan)


class _Engine:
    def __init__(self, plan):
        size = int.from_bytes(plan[:8], "little")
        self.profiles = json.loads(plan[8 : 8 + size])
        self.model = onnx.load_from_string(plan[8 + size :])
        self.session = onnxruntime.InferenceSession(plan[8 + size :], providers=["CPUExecutionProvider"])
        values = [*self.model.graph.input, *self.model.graph.output]
        self.names, self.dtypes = [value.name for value in values], {v.name: _declared(v).dtype for v in values}
        self.inputs = {value.name for value in self.model.graph.input}

    num_io_tensors = property(lambda self: len(self.names))

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return "input" if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self.dtypes[name]

    def create_execution_context(self):
        return _Context(self)


class _Context:
    def __init__(self, engine):
        self._engine, self._profile, self._shapes, self._addresses = engine, 0, {}, {}

    def set_optimization_profile_async(self, index, stream):
        assert 0 <= index < max(len(self._engine.profiles), 1)
        self._profile, self._shapes = index, {}

    def set_input_shape(self, name, shape):
        if self._engine.profiles:
            least, _, most = self._engine.profiles[self._profile][name]
            assert all(a <= size <= c for a, size, c in zip(least, shape, most, strict=True)), (name, shape)
        self._shapes[name] = tuple(shape)

    def get_tensor_shape(self, name):
        assert self._shapes.keys() == self._engine.inputs
        sizes = {}
        for value in self._engine.model.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, self._shapes[value.name], strict=True):
                sizes[dim.dim_param] = size
        value = next(value for value in self._engine.model.graph.output if value.name == name)
        return tuple(dim.dim_value or sizes[dim.dim_param] for dim in value.type.tensor_type.shape.dim)

    def set_tensor_address(self, name, address):
        self._addresses[name] = address

    def execute_async_v3(self, stream):
        assert self._addresses.keys() == set(self._engine.names)
        feeds = {name: self._view(name, shape) for name, shape in self._shapes.items()}
        for value, array in zip(self._engine.session.get_outputs(), self._engine.session.run(None, feeds), strict=True):
            self._view(value.name, array.shape)[...] = array
        return True

    def _view(self, name, shape):
        dtype = nptype(self._engine.dtypes[name])
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_char * count).from_address(self._addresses[name]), dtype).reshape(shape)


NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
BuilderFlag = SimpleNamespace(TF32="TF32")
ComputeCapability = SimpleNamespace(SM86="SM86")
TensorIOMode = SimpleNamespace(OUTPUT="output")
float32, uint8, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT64
__version__ = "10.double"


def nptype(kind):
    return onnx.helper.tensor_dtype_to_np_dtype(kind)
