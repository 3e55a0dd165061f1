# SPDX-License-Identifier: Apache-2.0
"""The table of published checkpoints, and where named models stand on this machine."""

import re
import shutil
from dataclasses import replace
from typing import get_args

import pytest
import torch

import segship
from segship.catalog import KNOWN_CHECKPOINTS, SemanticName, bundle_folder, find_model, identify
from segship.datasets.known import ADE20K, CITYSCAPES, COCO_STUFF
from segship.errors import BundleError
from segship.fetch import checkpoint_path
from segship.ship.families.sam.config import SAM_ARCHITECTURES
from segship.ship.families.semask.config import SEMASK_ARCHITECTURES
from segship.ship.families.semask.model import build_semask

PROMPTABLE = {name: known for name, known in KNOWN_CHECKPOINTS.items() if known.task == "promptable"}
SEMANTIC = {name: known for name, known in KNOWN_CHECKPOINTS.items() if known.task == "semantic"}
MD5 = {
    "vit_b": "01ec64d29a2fca3f0661936605ae66f8",
    "vit_l": "0b3195507c641ddb6910d2bb5adee89c",
    "vit_h": "4b8939a88964f0f4ff5f5b2642c598a6",
}
# Bytes of the tensors alone, by shape arithmetic; the container adds names, padding and its directory.
TENSOR_BYTES = {"vit_b": 374_942_912, "vit_l": 1_249_372_352, "vit_h": 2_564_363_456, "vit_t": 40_561_032}
TABLES = {"cityscapes": CITYSCAPES, "ade20k": ADE20K, "cocostuff": COCO_STUFF}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", PROMPTABLE)
def test_entries_are_complete_and_consistent(name):
    known = KNOWN_CHECKPOINTS[name]
    assert (known.name, known.task, known.family, known.architecture) == (name, "promptable", "sam", name)
    assert name in SAM_ARCHITECTURES and not known.by_hand
    assert known.url.startswith("https://") and known.url.endswith(f"/{known.file}")
    assert re.fullmatch("[0-9a-f]{64}", known.sha256)
    assert known.licence == "Apache-2.0"
    assert TENSOR_BYTES[name] < known.bytes < TENSOR_BYTES[name] * 1.005


@pytest.mark.parametrize("name", MD5)
def test_file_names_of_sam_carry_the_first_digits_of_the_md5(name):
    known = KNOWN_CHECKPOINTS[name]
    assert known.file == f"sam_{name}_{MD5[name][:6]}.pth"


def test_a_digest_identifies_its_checkpoint():
    for known in PROMPTABLE.values():
        assert identify(known.sha256) is known
        assert identify(known.sha256.upper()) is known
    assert identify("0" * 64) is None


def scores(known):
    """mIoU at one scale, and at six and mirrored."""
    return tuple(float(number) for number in re.fullmatch(r"mIoU (.*) / (.*)", known.published).groups())


def test_every_size_of_every_data_set_has_a_name():
    assert set(SEMANTIC) == {f"{size}_{data_set}" for size in SEMASK_ARCHITECTURES for data_set in TABLES}
    assert set(get_args(SemanticName)) == set(SEMANTIC)
    assert len({known.url for known in SEMANTIC.values()}) == 12


@pytest.mark.parametrize("name", SEMANTIC)
def test_semantic_entries_are_consistent(name):
    known = SEMANTIC[name]
    assert known.name == name == f"{known.architecture}_{known.data_set}" and known.file == f"{name}.pth"
    assert (known.task, known.family) == ("semantic", "semask") and known.by_hand
    assert re.fullmatch(r"https://drive\.google\.com/file/d/[\w-]{33}/view", known.url)
    classes, semantic_classes = known.sizes["classes"], known.sizes["semantic_classes"]
    assert classes == len(TABLES[known.data_set].classes)
    once, several = scores(known)
    assert 35 < once < several < 85
    config = replace(SEMASK_ARCHITECTURES[known.architecture], classes=classes, semantic_classes=semantic_classes)
    with torch.device("meta"):
        tensors = build_semask(config).state_dict().values()
    assert abs(known.bytes - sum(tensor.nbytes for tensor in tensors)) < 1e6


def test_larger_models_score_higher():
    for data_set in TABLES:
        found = [scores(SEMANTIC[f"semask_{size}_{data_set}"]) for size in "tsbl"]
        assert found == sorted(found)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(BundleError, match="no model 'sam'.*tiny, vit_b, vit_l, vit_h, vit_t") as caught:
        find_model("sam")
    assert caught.value.code == "unknown_model"


def test_models_say_where_they_stand():
    found = {model.name: model for model in segship.list_models()}
    assert found["tiny"].status == "in the package" and 5e6 < found["tiny"].bytes < 12e6
    assert found["vit_t"].status == "not fetched" and found["vit_t"].location.startswith("https://")
    bundle_folder("vit_t").mkdir(parents=True)
    assert next(model for model in segship.list_models() if model.name == "vit_t").status == "bundle ready"


def test_semantic_models_say_where_they_stand(small_semask_checkpoint):
    def found():
        return next(model for model in segship.list_models() if model.name == "semask_s_cityscapes")

    assert found().status == "get by hand" and "drive.google.com" in found().location
    assert found().published == "mIoU 77.13 / 79.14"
    place = checkpoint_path("semask_s_cityscapes")
    place.parent.mkdir(parents=True)
    shutil.copyfile(small_semask_checkpoint, place)
    assert (found().status, found().bytes) == ("checkpoint fetched", place.stat().st_size)
    bundle_folder("semask_s_cityscapes").mkdir(parents=True)
    assert found().status == "bundle ready"
