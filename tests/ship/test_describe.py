# SPDX-License-Identifier: Apache-2.0
"""Descriptions for people."""

import hashlib
import json

import pytest
import torch

from segship.errors import UnsafeCheckpoint
from segship.ship.describe import describe_checkpoint
from segship.ship.families.sam.model import build_sam
from tests.oracle import SMALL_VIT
from tests.ship.checkpoints.containers import write_archive
from tests.ship.checkpoints.hostile import hostile_pickles
from tests.small_semask import small_semask


def test_a_model_is_described(tmp_path):
    path, sam = tmp_path / "model.pth", build_sam(SMALL_VIT)
    torch.save({"model": sam.half().state_dict()}, path)
    found = describe_checkpoint(path)
    assert found.to_dict() == {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "known": None,
        "licence": "unknown",
        "architecture": "custom",
        "image_size": 128,
        "parameters": sum(parameter.numel() for parameter in sam.parameters()),
        "keys": len(sam.state_dict()),
        "dtypes": {"float16": len(sam.state_dict())},
        "notes": ["taken from 'model'"],
        "task": "promptable",
        "family": "sam",
        "classes": None,
        "semantic_classes": None,
        "semantic_window": None,
        "data_set": None,
        "class_names": None,
    }
    json.dumps(found.to_dict())


def test_a_semantic_model_is_described(small_semask_checkpoint):
    found, semask = describe_checkpoint(small_semask_checkpoint), small_semask()
    assert (found.task, found.family, found.architecture) == (
        "semantic",
        "semask",
        "custom",
    ) and found.image_size is None
    assert (found.classes, found.semantic_classes, found.semantic_window) == (19, 19, "all")
    assert found.parameters == sum(parameter.numel() for parameter in semask.parameters())


def test_an_unknown_model_is_described_with_the_reason(tmp_path):
    torch.save({"conv.weight": torch.ones(3), "bn.num_batches_tracked": torch.tensor(1)}, tmp_path / "model.pt")
    found = describe_checkpoint(tmp_path / "model.pt")
    assert (found.architecture, found.image_size) == (None, None)
    assert (found.parameters, found.keys, found.dtypes) == (3, 2, {"float32": 1, "int64": 1})
    assert "not recognised" in found.notes[-1]


def test_a_hostile_file_is_not_described(tmp_path):
    data, named = hostile_pickles(tmp_path / "canary")["stack global"]
    with pytest.raises(UnsafeCheckpoint, match=named):
        describe_checkpoint(write_archive(tmp_path / "model.pth", data))
    assert not (tmp_path / "canary").exists()
