# SPDX-License-Identifier: Apache-2.0
"""The table of published semantic checkpoints."""

import re
from dataclasses import replace
from typing import get_args

import pytest
import torch

from segship.catalog import SEMANTIC_CHECKPOINTS, SemanticName
from segship.datasets.known import ADE20K, CITYSCAPES, COCO_STUFF
from segship.ship.families.config import SEMASK_ARCHITECTURES
from segship.ship.families.semask.model import build_semask

TABLES = {"cityscapes": CITYSCAPES, "ade20k": ADE20K, "cocostuff": COCO_STUFF}


def test_every_size_of_every_data_set_has_a_name():
    assert set(SEMANTIC_CHECKPOINTS) == {f"{size}_{data_set}" for size in SEMASK_ARCHITECTURES for data_set in TABLES}
    assert set(get_args(SemanticName)) == set(SEMANTIC_CHECKPOINTS)
    assert len({known.drive_id for known in SEMANTIC_CHECKPOINTS.values()}) == 12


@pytest.mark.parametrize("name", SEMANTIC_CHECKPOINTS)
def test_entries_are_consistent(name):
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
