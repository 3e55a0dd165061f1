# SPDX-License-Identifier: Apache-2.0
"""The tables of published checkpoints."""

import re
from dataclasses import replace
from typing import get_args

import pytest
import torch

from segship.catalog import KNOWN_CHECKPOINTS, SEMANTIC_CHECKPOINTS, SemanticName, identify
from segship.datasets.known import ADE20K, CITYSCAPES, COCO_STUFF
from segship.ship.families.sam.config import SAM_ARCHITECTURES
from segship.ship.families.semask.config import SEMASK_ARCHITECTURES
from segship.ship.families.semask.model import build_semask

# Bytes of the tensors alone, by shape arithmetic; the container adds names, padding and its directory.
TENSOR_BYTES = {"vit_b": 374_942_912, "vit_l": 1_249_372_352, "vit_h": 2_564_363_456, "vit_t": 40_561_032}
TABLES = {"cityscapes": CITYSCAPES, "ade20k": ADE20K, "cocostuff": COCO_STUFF}


@pytest.mark.parametrize("name", KNOWN_CHECKPOINTS)
def test_entries_are_complete_and_consistent(name):
    known = KNOWN_CHECKPOINTS[name]
    assert known.architecture == name and name in SAM_ARCHITECTURES
    assert known.url.startswith("https://") and known.url.endswith(f"/{known.file}")
    assert re.fullmatch("[0-9a-f]{64}", known.sha256) and re.fullmatch("[0-9a-f]{32}", known.md5)
    assert known.licence == "Apache-2.0"
    assert TENSOR_BYTES[name] < known.bytes < TENSOR_BYTES[name] * 1.005


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_file_names_of_sam_carry_the_first_digits_of_the_md5(name):
    known = KNOWN_CHECKPOINTS[name]
    assert known.file == f"sam_{name}_{known.md5[:6]}.pth"


def test_a_digest_identifies_its_checkpoint():
    for known in KNOWN_CHECKPOINTS.values():
        assert identify(known.sha256) is known
        assert identify(known.sha256.upper()) is known
    assert identify("0" * 64) is None


def test_every_size_of_every_data_set_has_a_name():
    assert set(SEMANTIC_CHECKPOINTS) == {f"{size}_{data_set}" for size in SEMASK_ARCHITECTURES for data_set in TABLES}
    assert set(get_args(SemanticName)) == set(SEMANTIC_CHECKPOINTS)
    assert len({known.drive_id for known in SEMANTIC_CHECKPOINTS.values()}) == 12


@pytest.mark.parametrize("name", SEMANTIC_CHECKPOINTS)
def test_semantic_entries_are_consistent(name):
    known = SEMANTIC_CHECKPOINTS[name]
    assert known.name == name == f"{known.architecture}_{known.data_set}" and known.file == f"{name}.pth"
    assert re.fullmatch(r"[\w-]{33}", known.drive_id) and known.drive_id in known.url
    assert known.classes == len(TABLES[known.data_set].classes)
    assert 35 < known.miou < known.miou_multi_scale < 85
    config = replace(
        SEMASK_ARCHITECTURES[known.architecture], classes=known.classes, semantic_classes=known.semantic_classes
    )
    with torch.device("meta"):
        tensors = build_semask(config).state_dict().values()
    assert abs(known.bytes - sum(tensor.nbytes for tensor in tensors)) < 1e6


def test_larger_models_score_higher():
    for data_set in TABLES:
        scores = [SEMANTIC_CHECKPOINTS[f"semask_{size}_{data_set}"] for size in "tsbl"]
        assert [known.miou for known in scores] == sorted(known.miou for known in scores)
