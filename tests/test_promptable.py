# SPDX-License-Identifier: Apache-2.0
"""The table of published checkpoints."""

import re

import pytest

from segship.catalog import KNOWN_CHECKPOINTS, identify
from segship.ship.families.config import SAM_ARCHITECTURES

# Bytes of the tensors alone, by shape arithmetic; the container adds names, padding and its directory.
TENSOR_BYTES = {"vit_b": 374_942_912, "vit_l": 1_249_372_352, "vit_h": 2_564_363_456, "vit_t": 40_561_032}


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
