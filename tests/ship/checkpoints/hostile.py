# SPDX-License-Identifier: Apache-2.0
"""Pickles that write a canary file when they are loaded the usual way, or that ask for something as bad.

Each comes with the name that the refusal has to give.
"""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path

from tests.ship.checkpoints.containers import short, state_dict, tensor, text

Hostile = dict[str, tuple[bytes, str]]


class _Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


def hostile_pickles(canary: Path) -> Hostile:
    """Return hostile pickles by what they try."""
    command = f"echo hit > '{canary}'"
    return {
        **_plain_calls(command),
        **_stack_globals(command),
        **_old_opcodes(command),
        **_from_python(canary, command),
        **_disguised(command),
        **_torch_and_friends(command),
    }


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def _plain_calls(command: str) -> Hostile:
    names = ["os.system", "posix.system", "nt.system", "subprocess.Popen", "subprocess.getoutput", "os.popen"]
    names += ["builtins.eval", "builtins.exec", "__builtin__.eval", "builtins.getattr", "builtins.__import__"]
    names += [
        "importlib.import_module",
        "runpy.run_path",
        "webbrowser.open",
        "shutil.rmtree",
        "pty.spawn",
        "timeit.main",
    ]
    names += ["operator.methodcaller", "functools.partial", "types.FunctionType", "marshal.loads", "codecs.decode"]
    found: Hostile = {}
    for full in names:
        module, _, name = full.rpartition(".")
        found[f"call {full}"] = (b"\x80\x02" + _call(module, name, text(command)) + b".", full)
    return found


def _stack_globals(command: str) -> Hostile:
    call = b"(" + text(command) + b"tR."
    return {
        "stack global": (b"\x80\x04" + short("os") + short("system") + b"\x93" + call, "os.system"),
        "stack global through the memo": (
            b"\x80\x04" + short("system") + b"\x940" + short("os") + b"\x94h\x00\x93" + call,
            "os.system",
        ),
        "stack global from old strings": (b"\x80\x04S'os'\nS'system'\n\x93" + call, "os.system"),
        "stack global from duplicated names": (b"\x80\x04" + short("code") + b"2\x93" + call, "code.code"),
        "stack global of dotted names": (
            b"\x80\x04" + short("torch.serialization") + short("os.system") + b"\x93" + call,
            "torch.serialization.os.system",
        ),
        "stack global through an allowed module": (
            b"\x80\x04" + short("collections") + short("OrderedDict.__init__.__globals__") + b"\x93.",
            "collections.OrderedDict.__init__.__globals__",
        ),
        "stack global with a number for a name": (b"\x80\x04K\x01" + short("system") + b"\x93.", "1.system"),
        "put, get and pop around it": (
            b"\x80\x02" + text("system") + b"q\x050" + text("os") + b"h\x05\x93" + call,
            "os.system",
        ),
    }


def _old_opcodes(command: str) -> Hostile:
    return {
        "protocol 0": (f"cos\nsystem\n(S'{command.replace(chr(39), '')}'\ntR.".encode(), "os.system"),
        "inst": (b"(" + text(command) + b"ios\nsystem\n.", "os.system"),
        "inst of an allowed name": (b"(icollections\nOrderedDict\n.", "collections.OrderedDict"),
        "obj": (b"(cos\nsystem\n" + text(command) + b"o.", "os.system"),
        "obj of an allowed name": (b"(ccollections\nOrderedDict\no.", "OBJ"),
        "newobj": (b"\x80\x02csubprocess\nPopen\n" + text(command) + b"\x85\x81.", "subprocess.Popen"),
        "newobj of an allowed name": (b"\x80\x02ctorch\nSize\n)\x81.", "NEWOBJ"),
        "newobj_ex": (b"\x80\x04" + short("os") + short("system") + b"\x93)}\x92.", "os.system"),
        "ext1": (b"\x80\x02\x82\x07.", "EXT1 7"),
        "ext2": (b"\x80\x02\x83\x07\x01.", "EXT2 263"),
        "ext4": (b"\x80\x02\x84\x07\x00\x00\x01.", "EXT4 16777223"),
        "text persistent id": (b"Pos.system\n.", "PERSID os.system"),
        "next buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    }


def _from_python(canary: Path, command: str) -> Hostile:
    import os
    import subprocess

    found: Hostile = {}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        call = pickle.dumps(_Call(os.system, command), protocol=protocol)
        found[f"reduce at protocol {protocol}"] = (call, f"{os.system.__module__}.system")
    found["optimised reduce"] = (pickletools.optimize(call), f"{os.system.__module__}.system")
    found["an opened file"] = (pickle.dumps(_Call(open, str(canary), "w"), protocol=2), ".open")
    found["a process"] = (pickle.dumps(_Call(subprocess.Popen, ["touch", str(canary)]), protocol=4), "subprocess.Popen")
    nested = pickle.dumps(_Call(pickle.loads, pickle.dumps(_Call(os.system, command))), protocol=4)
    found["a pickle in a pickle"] = (nested, "_pickle.loads")
    return found


def _disguised(command: str) -> Hostile:
    call, good = _call("os", "system", text(command)), state_dict(tensor())
    ordered = b"ccollections\nOrderedDict\n"
    return {
        "behind good weights": (
            b"\x80\x02}" + text("weight") + tensor() + b"s" + text("x") + call + b"s.",
            "os.system",
        ),
        "in the optimizer state": (b"\x80\x02}" + text("optimizer") + b"}K\x00" + call + b"ss.", "os.system"),
        "as a dict key": (b"\x80\x02}" + call + b"K\x01s.", "os.system"),
        "popped before the end": (b"\x80\x02" + call + b"0" + tensor() + b".", "os.system"),
        "a second pickle behind the first": (good + b"\x80\x02" + call + b".", "behind the pickle's end"),
        "a global without a call": (b"\x80\x02cos\nsystem\n.", "os.system"),
        "the state of a list": (b"\x80\x02]}b.", "a list (BUILD)"),
        "the state of a class": (
            b"\x80\x02" + ordered + b"}" + text("__init__") + b"K\x01sb.",
            "collections.OrderedDict (BUILD)",
        ),
        "methods of a dict replaced": (b"\x80\x02" + ordered + b")R}" + text("items") + b"K\x01sb.", "(BUILD)"),
        "a call of a text": (b"\x80\x02" + text("os.system") + b"(" + text(command) + b"tR.", "calls a str"),
        "a call of a dtype": (b"\x80\x02ctorch\nfloat32\n)R.", "calls torch.float32"),
        "a call of a storage": (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage"),
        "a default dict with a factory": (
            b"\x80\x02" + _call("collections", "defaultdict", b"cos\nsystem\n") + b".",
            "os.system",
        ),
        "an attribute of something that is no type": (
            b"\x80\x02" + _call("builtins", "getattr", b"ctorch\nSize\n", text("__init__")) + b".",
            "builtins.getattr",
        ),
        "a harmless type over a harmful argument": (
            b"\x80\x02" + _call("argparse", "Namespace", b"cos\nsystem\n") + b".",
            "os.system",
        ),
        "the state of a harmless type": (
            b"\x80\x02cargparse\nNamespace\n)\x81}" + text("x") + call + b"sb.",
            "os.system",
        ),
        "a persistent id of a global": (b"\x80\x02" + call + b"Q.", "os.system"),
        "a persistent id of another kind": (b"\x80\x02(" + text("module") + text("os") + b"tQ.", "persistent id"),
        "tensor hooks": (
            b"\x80\x02ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x89" + call + b"tR.",
            "os.system",
        ),
        "escape codes in the name": ("\x80\x02cos\n\x1b[2Jsystem\n.".encode("latin-1"), "os.\\x1b[2Jsystem"),
        "a space in the name": (b"\x80\x02cos system\nx\n.", "os.system x"),
        "a letter that looks like another": (
            "\x80\x02".encode("latin-1") + short("оs") + short("system") + b"\x93.",
            "\\u043es.system",
        ),
    }


def _torch_and_friends(command: str) -> Hostile:
    names = ["torch.load", "torch.hub.load", "torch.jit.load", "torch.storage._load_from_bytes", "torch.Tensor"]
    names += ["torch._utils._rebuild_wrapper_subclass", "torch._utils._rebuild_device_tensor_from_numpy"]
    names += ["torch._utils._rebuild_parameter_with_state", "torch._dynamo.config", "torch.nn.Linear"]
    names += ["torch.ComplexFloatStorage", "torch.serialization.StorageType", "numpy.core.multiarray.fromstring"]
    names += ["numpy.load", "numpy.f2py.crackfortran.getlincoef", "dill._dill._create_code", "joblib.load"]
    names += ["cloudpickle.cloudpickle._make_function", "_codecs.lookup", "builtins.map", "argparse.FileType"]
    found: Hostile = {}
    for full in names:
        module, _, name = full.rpartition(".")
        found[f"call {full}"] = (b"\x80\x02" + _call(module, name, text(command)) + b".", full)
    return found
