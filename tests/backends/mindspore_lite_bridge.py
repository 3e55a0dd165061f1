# SPDX-License-Identifier: Apache-2.0
"""MindSpore Lite itself, whose one published wheel is for Python 3.7: objects here, their doing in a process of that.

This file is both sides, so it is written for Python 3.7. Arrays that are lent to a tensor are kept there until the
next are; a copy crosses the pipe, so what a tensor points to cannot be seen from here.
"""

import builtins
import importlib
import itertools
import os
import pickle
import subprocess
import sys
from enum import Enum

import numpy as np


class Bridge:
    """The module `mindspore_lite` of another Python."""

    def __init__(self, python):
        self._process = subprocess.Popen(
            [python, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.__version__ = self._ask("get", 0, "__version__")
        for name, members in (("ModelType", ["MINDIR", "MINDIR_LITE"]), ("FmkType", ["ONNX"])):
            setattr(self, name, Enum(name, members))

    def _ask(self, *question):
        pickle.dump(question, self._process.stdin, protocol=4)
        self._process.stdin.flush()
        kind, answer = pickle.load(self._process.stdout)
        if kind == "error":
            raise getattr(builtins, answer[0])(answer[1])
        return self._taken(kind, answer)

    def _taken(self, kind, answer):
        if kind == "list":
            return [self._taken(*entry) for entry in answer]
        if kind == "array":
            dtype, shape, data = answer
            return np.frombuffer(data, dtype).reshape(shape).copy()
        if kind == "object":
            return _Remote(self, answer)
        if kind == "enum":
            return Enum("DataType", [answer])[answer]
        return answer

    def _given(self, value):
        if isinstance(value, _Remote):
            return "object", value._number
        if isinstance(value, Enum):
            return "enum", (type(value).__name__, value.name)
        if isinstance(value, np.ndarray):
            order = "C" if value.flags.c_contiguous else "F"
            return "array", (value.dtype.str, value.shape, order, value.tobytes(order))
        return ("list", [self._given(entry) for entry in value]) if isinstance(value, list) else ("value", value)

    def __getattr__(self, name):
        return _Remote(self, 0)._method(name)

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait()


class _Remote:
    def __init__(self, bridge, number):
        self.__dict__.update(_bridge=bridge, _number=number)

    def _method(self, name):
        def call(*values):
            return self._bridge._ask("call", self._number, name, [self._bridge._given(value) for value in values])

        return call

    def __getattr__(self, name):
        if name in ("build_from_file", "get_inputs", "predict", "set_data_from_numpy", "get_data_to_numpy", "convert"):
            return self._method(name)
        return self._bridge._ask("get", self._number, name)

    def __setattr__(self, name, value):
        self._bridge._ask("set", self._number, name, self._bridge._given(value))

    def __del__(self):
        if self._number and not self._bridge._process.stdin.closed:
            self._bridge._ask("drop", self._number)


class _Server:
    """Does what is asked in the Python that has the engine."""

    def __init__(self, module):
        self._module, self._objects, self._numbers, self._lent = module, {0: module}, itertools.count(1), {}

    def _taken(self, kind, value):
        if kind == "object":
            return self._objects[value]
        if kind == "enum":
            return getattr(self._module, value[0])[value[1]]
        if kind == "array":
            dtype, shape, order, data = value
            return np.ndarray(shape, dtype, bytearray(data), order=order)
        return [self._taken(*entry) for entry in value] if kind == "list" else value

    def _given(self, value):
        if isinstance(value, np.ndarray):
            return "array", (value.dtype.str, value.shape, value.tobytes())
        if isinstance(value, list):
            return "list", [self._given(entry) for entry in value]
        if isinstance(value, Enum):
            return "enum", value.name
        if value is None or isinstance(value, (str, int)):
            return "value", value
        number = next(self._numbers)
        self._objects[number] = value
        return "object", number

    def _do(self, verb, number, name="", value=None):
        if verb == "drop":
            del self._objects[number]
            return None
        target = self._objects[number]
        if verb == "get":
            return getattr(target, name)
        if verb == "set":
            return setattr(target, name, self._taken(*value))
        values = [self._taken(*entry) for entry in value]
        if name == "set_data_from_numpy":
            self._lent[target.name] = values
        return getattr(target, name)(*values)

    def answer(self, question):
        try:
            return self._given(self._do(*question))
        except Exception as error:
            return "error", (type(error).__name__, str(error))


def serve():
    """Answer questions until the other side ends."""
    answers = os.fdopen(os.dup(1), "wb")
    # The converter prints.
    os.dup2(2, 1)
    server = _Server(importlib.import_module("mindspore_lite"))
    while True:
        try:
            question = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(server.answer(question), answers, protocol=4)
        answers.flush()


if __name__ == "__main__":
    serve()
