# SPDX-License-Identifier: Apache-2.0
"""One command from a name to masks: files fetched, and a bundle made of them, whole or not at all."""

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest

import segship
from segship.bundle import Bundle
from segship.catalog import KNOWN_CHECKPOINTS, bundle_folder
from segship.errors import BundleError, CheckpointError, FetchError, OutputError
from segship.fetch import checkpoint_path
from segship.files import sha256_of
from segship.ship.fetching import fetch_model
from tests.kills import forks, in_child, make_old
from tests.loopback import serving

ROOT = Path(__file__).parents[2]
POINT = {"points": [[365, 290]]}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))
    for name in ("SEGSHIP_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def publish(monkeypatch, checkpoint, **fields):
    """Put a file into the catalog as ``small``."""
    known = replace(
        KNOWN_CHECKPOINTS["vit_t"],
        name="small",
        architecture="custom",
        file="small.pth",
        url="http://127.0.0.1:9/x",
        bytes=checkpoint.stat().st_size,
        sha256=sha256_of(checkpoint),
        **fields,
    )
    monkeypatch.setitem(KNOWN_CHECKPOINTS, "small", known)


@pytest.fixture
def published(monkeypatch, small_checkpoint, small_templates):
    """The small model in the catalog, with a template of its architecture; the address of a mirror that has it."""
    publish(monkeypatch, small_checkpoint)
    with serving(small_checkpoint.read_bytes()) as server:
        yield server.address


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_name_becomes_a_model_that_loads(published, small_export):
    with pytest.raises(BundleError, match="`segship fetch small`"):
        segship.load("small")
    told = []
    fetched = fetch_model("small", mirror=published, tell=told.append)
    assert (fetched.path, fetched.bundle, fetched.kept) == (checkpoint_path("small"), bundle_folder("small"), False)
    assert told == ["making the bundle of small"] and entries(bundle_folder("small").parent) == ["small"]
    manifest = Bundle.read(fetched.bundle).manifest
    assert manifest.checkpoint.known and manifest.checkpoint.licence == "Apache-2.0" and manifest.template is not None
    image = segship.demo_photograph()
    expected = segship.load(small_export[0].path).predict(image, **POINT)
    assert (segship.load("small").predict(image, **POINT).masks == expected.masks).mean() > 0.9999


def test_a_bundle_that_is_there_is_kept(published):
    first = fetch_model("small", mirror=published)
    made = (first.bundle / "manifest.json").stat().st_mtime_ns
    again = fetch_model("small")
    assert again.kept and (again.bundle / "manifest.json").stat().st_mtime_ns == made


@pytest.mark.parametrize("damage", ["missing", "manifest"])
def test_a_damaged_bundle_is_made_anew(published, damage):
    first = fetch_model("small", mirror=published)
    if damage == "missing":
        (first.bundle / "mask_decoder.onnx").unlink()
    else:
        (first.bundle / "manifest.json").write_text("{}")
    told = []
    again = fetch_model("small", tell=told.append)
    assert not again.kept and "damaged" in told[0]
    assert Bundle.read(again.bundle).manifest.template is not None


def test_a_folder_of_the_users_gets_the_file_alone(published, tmp_path):
    fetched = fetch_model("small", mirror=published, destination=tmp_path / "own")
    assert entries(tmp_path / "own") == ["small.pth"] and fetched.bundle is None
    assert not bundle_folder("small").exists()


def test_a_checkpoint_without_a_template_is_fetched(monkeypatch, small_checkpoint):
    publish(monkeypatch, small_checkpoint)
    fetched = fetch_model("small", from_file=small_checkpoint)
    assert fetched.path.is_file() and fetched.bundle is None and entries(bundle_folder("small").parent) == []


def test_a_checkpoint_got_by_hand_becomes_a_bundle_too(monkeypatch, small_semask_checkpoint, small_templates):
    name = "semask_t_cityscapes"
    monkeypatch.setitem(KNOWN_CHECKPOINTS, name, replace(KNOWN_CHECKPOINTS[name], architecture="small"))
    fetched = fetch_model(name, from_file=small_semask_checkpoint)
    assert "no digest is published" in fetched.checked
    with segship.load(name) as predictor:
        assert (predictor.manifest.task, predictor.manifest.checkpoint.licence) == ("semantic", "Apache-2.0")
    with pytest.raises(FetchError, match="name it with from_file=") as refusal:
        fetch_model(name, mirror="https://example.org")
    assert refusal.value.code == "no_published_digest"


def test_a_checkpoint_that_makes_no_model_leaves_itself_and_nothing_else(monkeypatch, small_templates, tmp_path):
    (tmp_path / "page.pth").write_bytes(b"<html>")
    publish(monkeypatch, tmp_path / "page.pth")
    with pytest.raises(CheckpointError):
        fetch_model("small", from_file=tmp_path / "page.pth")
    assert checkpoint_path("small").is_file() and entries(bundle_folder("small").parent) == []


@forks
def test_two_at_once_make_one_bundle(published):
    children = [in_child(lambda: fetch_model("small", mirror=published)) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert entries(bundle_folder("small").parent) == ["small"]
    assert entries(checkpoint_path("small").parent) == ["small.pth"]


@forks
def test_a_kill_in_the_middle_leaves_no_half_bundle(published, monkeypatch):
    def killed(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    def die():
        monkeypatch.setattr("segship.ship.templates.bundling.self_check", killed)
        fetch_model("small", mirror=published)

    assert os.waitstatus_to_exitcode(os.waitpid(in_child(die), 0)[1]) == -signal.SIGKILL
    folder = bundle_folder("small").parent
    assert not bundle_folder("small").exists()
    make_old(folder)
    assert fetch_model("small").bundle is not None and entries(folder) == ["small"]


@forks
def test_a_full_disk_is_told_and_leaves_nothing(published, tmp_path):
    fetch_model("small", mirror=published, destination=checkpoint_path("small").parent)

    def fill():
        # As much as a file may have here: what writes more is told that it is too large.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(OutputError, match="cannot write .*small") as refusal:
            fetch_model("small")
        assert refusal.value.code in ("disk_full", "cannot_write")

    assert os.waitstatus_to_exitcode(os.waitpid(in_child(fill), 0)[1]) == 0
    assert entries(bundle_folder("small").parent) == []


def test_two_files_of_a_published_pair_are_imported_by_another_command(tmp_path):
    with pytest.raises(FetchError, match="`segship import`") as refusal:
        fetch_model("osam_vit_b_quantized", from_file=tmp_path / "encoder.onnx")
    assert refusal.value.code == "two_files"
