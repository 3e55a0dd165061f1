# SPDX-License-Identifier: Apache-2.0
"""What is refused before any tensor is read, and what is listed."""

import gzip
import io
import os
import tarfile

import pytest
import safetensors.torch
import torch

from segship.errors import CheckpointError, UnsafeCheckpoint
from segship.ship.checkpoints.archive import StoredTensor
from segship.ship.checkpoints.survey import Labels, survey_checkpoint
from tests.ship.checkpoints.containers import state_dict, tensor, text, write_archive
from tests.ship.checkpoints.hostile import hostile_pickles


def refuse(path, words, code):
    with pytest.raises(CheckpointError, match=words) as refusal:
        survey_checkpoint(path)
    assert refusal.value.code == code and str(path) in str(refusal.value)


def test_tensors_are_listed_without_reading_them(tmp_path):
    torch.save({"a": torch.ones(2, 3), "b": torch.ones(4).half()}, tmp_path / "model.pth")
    survey = survey_checkpoint(tmp_path / "model.pth")
    assert survey.tensors["a"] == StoredTensor("float32", (2, 3), (3, 1), 0, "0", 6)
    assert survey.shapes == {"a": (2, 3), "b": (4,)}
    assert (survey.format, survey.known) == ("torch", None)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_shapes_stand_in_the_survey(tmp_path, suffix):
    path, state = tmp_path / f"model{suffix}", {"a": torch.ones(2, 3), "b": torch.ones(4)}
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state}, path)
    assert survey_checkpoint(path).shapes == {"a": (2, 3), "b": (4,)}


def test_what_is_no_checkpoint_is_refused_and_nothing_of_it_runs(tmp_path):
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(CheckpointError, match="page.pth: this is a web page"):
        survey_checkpoint(tmp_path / "page.pth")
    data, named = hostile_pickles(tmp_path / "canary")["in the optimizer state"]
    with pytest.raises(UnsafeCheckpoint, match=named):
        survey_checkpoint(write_archive(tmp_path / "hostile.pth", data))
    assert not (tmp_path / "canary").exists()


def test_names_of_classes_are_kept(tmp_path):
    document = {
        "meta": {"CLASSES": ("road", "tree"), "PALETTE": [[1, 2, 3], [4, 5, 6]]},
        "state_dict": {"a": torch.ones(1)},
    }
    torch.save(document, tmp_path / "model.pth")
    assert survey_checkpoint(tmp_path / "model.pth").labels == Labels(("road", "tree"), ((1, 2, 3), (4, 5, 6)))


def test_a_link_is_followed(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "real.pth")
    (tmp_path / "link.pth").symlink_to(tmp_path / "real.pth")
    assert survey_checkpoint(tmp_path / "link.pth").path == tmp_path / "real.pth"


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refuse(tmp_path / "none.pth", "there is no file", "file_missing")
    (tmp_path / "folder.pth").mkdir()
    refuse(tmp_path / "folder.pth", "not a regular file", "file_wrong_kind")


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    refuse(tmp_path / "pipe.pth", "not a regular file", "file_wrong_kind")


@pytest.mark.parametrize("name", ["model.bin", "model.pkl", "model.py", "model.yaml", "model"])
def test_other_suffixes_are_refused(tmp_path, name):
    (tmp_path / name).write_text("import os; os.system('true')")
    refuse(tmp_path / name, "does not end in .pth, .pt, .safetensors", "not_a_checkpoint")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (gzip.compress(b"x", mtime=0), "gzip"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"", "its 0 bytes are no zip container"),
        (b"random bytes", "no zip container"),
        (b"PK\5\6" + bytes(18), "no zip container"),
        (hostile_pickles("canary")["reduce at protocol 2"][0], "plain pickles are not read"),
        (hostile_pickles("canary")["protocol 0"][0], "plain pickles are not read"),
    ],
)
def test_other_content_is_refused_by_what_it_is(tmp_path, content, words):
    (tmp_path / "model.pth").write_bytes(content)
    refuse(tmp_path / "model.pth", words, "not_a_checkpoint")


def test_the_old_format_is_refused_with_the_line_that_converts_it(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refuse(tmp_path / "old.pth", r"convert it first: python -c .*weights_only=True", "legacy_checkpoint")


def test_the_oldest_format_a_tar_is_refused_too(tmp_path):
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    refuse(tmp_path / "old.pth", "old format", "legacy_checkpoint")


def test_suffixes_that_lie_are_told(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "model.pth")
    refuse(tmp_path / "model.pth", "safetensors file with another suffix", "not_a_checkpoint")
    torch.save({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    refuse(tmp_path / "model.safetensors", "torch.save with the suffix of safetensors", "not_a_checkpoint")


def test_a_real_torchscript_file_is_refused_by_name(tmp_path):
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    refuse(tmp_path / "model.pt", "TorchScript", "torchscript")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "should have 16 bytes and has none"),
        ({"data/0": bytes(12)}, "should have 16 bytes and has 12"),
        ({"data/0": bytes(20)}, "should have 16 bytes and has 20"),
        ({"data/1": bytes(16)}, "has none"),
    ],
)
def test_a_storage_that_is_not_there_is_refused(tmp_path, members, words):
    refuse(write_archive(tmp_path / "x.pth", state_dict(tensor()), members), words, "bad_tensor_layout")


def test_a_storage_claimed_beyond_the_file_is_refused(tmp_path):
    data = state_dict(tensor(shape=(2**40,), strides=(1,), elements=2**40))
    refuse(write_archive(tmp_path / "x.pth", data, {"data/0": bytes(16)}), "4398046511104 bytes", "bad_tensor_layout")


def test_many_views_of_one_storage_are_refused(tmp_path):
    view = tensor(shape=(5000,), strides=(1,), elements=5000)
    data = b"\x80\x02}(" + b"".join(text(f"k{index}") + view for index in range(20)) + b"u."
    path = write_archive(tmp_path / "x.pth", data, {"data/0": bytes(20_000)})
    refuse(path, "share too much storage", "bad_tensor_layout")


def test_a_flipped_bit_in_the_weights_is_found_by_its_crc(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(bytes(2000)) + 500] = 1
    path.write_bytes(data)
    refuse(path, "CRC of its member model/data/0 is wrong", "bad_container")


def test_nothing_of_a_hostile_file_in_the_optimizer_is_read(tmp_path):
    data, named = hostile_pickles(tmp_path / "canary")["in the optimizer state"]
    with pytest.raises(UnsafeCheckpoint, match=named):
        survey_checkpoint(write_archive(tmp_path / "x.pth", data))
    assert not (tmp_path / "canary").exists()
