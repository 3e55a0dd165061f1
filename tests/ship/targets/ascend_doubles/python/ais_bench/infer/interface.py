# SPDX-License-Identifier: Apache-2.0
"""A double of ``InferSession``: ONNX Runtime behind the rules of a compiled model.

``DOUBLE_NOISE`` is added to every answer, as a part of its largest value. Answers lie in memory that the next call of
the session writes over, as on the device.
"""

import json
import os
import zipfile
from types import SimpleNamespace

import aclruntime  # noqa: F401
import numpy as np
import onnxruntime

MODES = {"static", "dymbatch", "dymhw", "dymdims", "dymshape"}
TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}


class InferSession:
    def __init__(self, device_id, model_path, acl_json_path=None, debug=False, loop=1):
        if not 0 <= device_id < 2:
            raise RuntimeError(f"[ERROR] aclrt set device {device_id} failed")
        try:
            with zipfile.ZipFile(model_path) as om:
                self._about = json.loads(om.read("about.json"))
                data = om.read("model.onnx")
        except (OSError, zipfile.BadZipFile) as error:
            raise RuntimeError(f"[ERROR] load model from file failed: {model_path}") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._noise = float(os.environ.get("DOUBLE_NOISE", "0"))
        self._memory = {}

    def get_inputs(self):
        return [self._port(port, self._about["shapes"][port.name]) for port in self._session.get_inputs()]

    def get_outputs(self):
        ports = self._session.get_outputs()
        return [self._port(port, port.shape, f"Node_{place}:0:{port.name}") for place, port in enumerate(ports)]

    def infer(self, feeds, mode="static", custom_sizes=100000, out_array=True):
        if self._session is None:
            raise RuntimeError("[ERROR] the session was finalized")
        if mode not in MODES:
            raise RuntimeError(f"wrong infer_mode:{mode}, only support {sorted(MODES)}")
        if mode != ("dymdims" if self._about["gears"] else "static"):
            raise RuntimeError(f"[ERROR] mode {mode} does not suit the model")
        if not isinstance(feeds, list) or len(feeds) != len(self._about["shapes"]):
            raise RuntimeError(f"[ERROR] feeds: {len(feeds)} of {len(self._about['shapes'])}")
        gear = []
        named = {}
        for feed, port in zip(feeds, self._session.get_inputs(), strict=True):
            wanted = self._about["shapes"][port.name]
            if not feed.flags.c_contiguous or feed.dtype != TYPES[port.type]:
                raise RuntimeError(f"[ERROR] {port.name}: {feed.dtype}, contiguous {feed.flags.c_contiguous}")
            gear += [size for size, known in zip(feed.shape, wanted, strict=True) if known == -1]
            if any(known not in (-1, size) for size, known in zip(feed.shape, wanted, strict=True)):
                raise RuntimeError(f"[ERROR] {port.name} has shape {feed.shape}; the model has {wanted}")
            named[port.name] = feed
        if self._about["gears"] and gear not in self._about["gears"]:
            raise RuntimeError(f"[ERROR] no gear {gear} in {self._about['gears']}")
        return [self._kept(place, array) for place, array in enumerate(self._session.run(None, named))]

    def free_resource(self):
        self._session = None

    finalize = free_resource

    def _kept(self, place, array):
        if self._noise and array.dtype == np.float32:
            rng = np.random.default_rng(place)
            array = array + self._noise * np.abs(array).max() * rng.standard_normal(array.shape).astype(np.float32)
        memory = self._memory.setdefault((place, array.shape), np.empty_like(array))
        memory[...] = array
        return memory

    @staticmethod
    def _port(port, shape, name=None):
        sizes = [size for size in shape if isinstance(size, int)]
        return SimpleNamespace(
            name=name or port.name, datatype=port.type, format="ND", shape=sizes, size=int(np.prod(sizes))
        )
