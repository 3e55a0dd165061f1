# SPDX-License-Identifier: Apache-2.0
"""What the processes say to each other: arrays come back as they were, and nothing outside their file is reached."""

import numpy as np
import pytest

from segship.serve import wire
from segship.serve.wire import Stored


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {
        "image_embeddings": np.random.default_rng(0).normal(size=(1, 4, 3, 3)).astype(np.float32),
        "guide": np.arange(30, dtype=np.uint8).reshape(2, 5, 3)[:, ::-1],
        "none": np.zeros((0, 2), np.float32),
    }
    stored = wire.store(tmp_path, arrays)
    found = wire.fetch(tmp_path, Stored.from_json(stored.to_json()))
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        assert type(found[name]) is np.ndarray and not found[name].flags.writeable
    assert (tmp_path / stored.file).stat().st_mode & 0o077 == 0
    assert all(offset % 64 == 0 for _, _, offset in stored.arrays.values())
    wire.discard(tmp_path, stored)
    wire.discard(tmp_path, stored)
    # What is mapped stays.
    assert np.array_equal(found["guide"], arrays["guide"])
    with pytest.raises(FileNotFoundError):
        wire.fetch(tmp_path, stored)


def test_nothing_at_all_can_be_stored(tmp_path):
    assert wire.fetch(tmp_path, wire.store(tmp_path, {"source": np.zeros(0, np.uint8)}))["source"].size == 0


BAD = [
    {"file": "../" + "0" * 29},
    {"file": "/etc/passwd"},
    {"file": "0" * 31},
    {"arrays": {"a": ["<f4", [3], 4]}},
    {"arrays": {"a": ["<f4", [-1], 0]}},
    {"arrays": {"a": ["<f4", [2**40, 2**40], 0]}},
    {"arrays": {"a": ["<f4", [1], -4]}},
    {"arrays": {"a": ["O", [1], 0]}},
    {"arrays": {"a": ["<f4", [1] * 9, 0]}},
]


@pytest.mark.parametrize("change", BAD)
def test_a_header_that_names_more_than_its_file_is_refused(change):
    good = {"file": "0" * 32, "bytes": 12, "arrays": {"a": ["<f4", [3], 0]}}
    assert Stored.from_json(good).arrays["a"][1] == (3,)
    with pytest.raises((ValueError, TypeError)):
        Stored.from_json({**good, **change})


def test_messages_are_header_and_bytes():
    message = wire.pack({"a": 1}, b"xyz")
    header, body = wire.sizes(message[: wire.SIZES_BYTES])
    assert wire.read_header(message[wire.SIZES_BYTES : wire.SIZES_BYTES + header]) == {"a": 1}
    assert message[wire.SIZES_BYTES + header :] == b"xyz" and body == 3
    with pytest.raises(ValueError):
        wire.read_header(b"[1]")


def test_nothing_is_left_of_what_could_not_be_written(tmp_path):
    class Full(dict):
        def items(self):
            yield "written", np.zeros(9)
            assert list(tmp_path.iterdir())
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        wire.store(tmp_path, Full())
    assert not list(tmp_path.iterdir())
