# SPDX-License-Identifier: Apache-2.0
"""The allowlist itself."""

import importlib
import io
import zipfile

import pytest
import torch

from segship.errors import UnsafeCheckpoint, shown
from segship.ship.checkpoints.archive import DTYPE_BYTES
from segship.ship.checkpoints.pickles import (
    ALLOWED_GLOBALS,
    HARMLESS,
    STORAGE_DTYPES,
    Global,
    Opaque,
    call,
    kind_of,
    storage,
)

CALLABLE, CLASSES = 17, 2
RAW_STORAGES = 4


def test_the_allowlist_is_short_and_every_name_exists():
    assert len(ALLOWED_GLOBALS) == CALLABLE + CLASSES + RAW_STORAGES + len(STORAGE_DTYPES) + len(DTYPE_BYTES)
    for full in ALLOWED_GLOBALS:
        module, _, name = full.rpartition(".")
        assert hasattr(importlib.import_module(module), name)


def test_what_is_harmless_is_described_and_never_made():
    assert not HARMLESS & ALLOWED_GLOBALS
    for name in HARMLESS:
        made = call(Global(name), ("touch canary",))
        assert type(made) is Opaque and made.kind == name
    dangerous = {"builtins.eval", "builtins.getattr", "builtins.__import__", "os.system", "numpy.load", "torch.load"}
    assert not HARMLESS & dangerous


def test_torch_allows_every_one_of_them_too():
    allowed = torch._weights_only_unpickler._get_allowed_globals()
    # Two are rebuilt by name inside the loader; of attributes only those of harmless types are described.
    assert ALLOWED_GLOBALS - set(allowed) <= {"torch.device", "builtins.getattr", "collections.defaultdict"}


@pytest.mark.parametrize("kind", STORAGE_DTYPES)
def test_storage_kinds_are_those_that_torch_writes(kind):
    name = STORAGE_DTYPES[kind]
    buffer = io.BytesIO()
    torch.save(torch.zeros(3, dtype=getattr(torch, name)), buffer)
    with zipfile.ZipFile(buffer) as archive:
        assert kind.replace(".", "\n", 1).encode() in archive.read("archive/data.pkl")
        assert len(archive.read("archive/data/0")) == 3 * DTYPE_BYTES[name]


def test_a_call_of_anything_but_a_rebuilder_is_named():
    with pytest.raises(UnsafeCheckpoint, match="calls torch.float32"):
        call(Global("torch.float32"), ())
    with pytest.raises(UnsafeCheckpoint, match="calls collections.OrderedDict"):
        call(Global("collections.OrderedDict"), [])
    with pytest.raises(UnsafeCheckpoint, match="calls a str"):
        call("os.system", ())


def test_a_persistent_id_names_a_storage_or_nothing():
    kind = Global("torch.HalfStorage")
    assert storage(("storage", kind, "0", "cuda:0", 5)).dtype == "float16"
    for wrong in (("storage", kind, "0", "cpu"), ("storage", "torch.HalfStorage", "0", "cpu", 5), "storage", None):
        with pytest.raises(UnsafeCheckpoint, match="persistent id"):
            storage(wrong)


def test_names_are_printed_without_control_characters():
    assert shown("os\x1b[2J\n.system") == "os\\x1b[2J\\n.system"
    assert len(shown("x" * 10_000)) == len(shown("\ud800" * 10_000)) == 80
    assert shown(10**6000) == "a number of 19932 bits" and shown(-12) == "-12" and shown(()) == "a tuple"
    assert kind_of([]) == "a list" and kind_of(Global("a.b")) == "a.b"
