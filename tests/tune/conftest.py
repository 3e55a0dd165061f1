# SPDX-License-Identifier: Apache-2.0
"""What measuring a bundle of either family needs in tests."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Compiled graphs go into a folder of the test."""
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))
