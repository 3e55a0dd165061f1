# SPDX-License-Identifier: Apache-2.0
"""A module with one importer often reads better inside it: a person has looked at each of these and says why not."""

import json
from pathlib import Path

from tests.house.package import own_imports, sources

LOOKED_AT = json.loads(Path(__file__).with_name("one_importer.json").read_text("utf-8"))
"""Why each module that has exactly one importer stands for itself."""


def test_modules_with_one_importer_were_looked_at():
    importers = {}
    for module in sources():
        for other in own_imports(module):
            importers.setdefault(other, set()).add(module)
    assert sorted(LOOKED_AT) == sorted(module for module, others in importers.items() if len(others) == 1)
    assert all(LOOKED_AT.values())
