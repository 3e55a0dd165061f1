# SPDX-License-Identifier: Apache-2.0
import json

from segship import machine
from segship.machine import describe_machine

CPUINFO = """processor : 0
cpu family : 26
model : 2
model name : Some Processor
flags : fpu avx2 avx512_bf16

processor : 1
model name : Another
"""


def test_fields_come_from_the_systems_list(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    found = describe_machine()
    assert (found.cpu, found.cpu_family, found.cpu_model) == ("Some Processor", 26, 2)
    assert found.features == ("avx2", "avx512_bf16")
    assert "Some Processor (family 26, model 2)" in str(found)
    json.dumps(found.to_dict())


def test_a_system_without_the_list_is_described_too(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    found = describe_machine()
    assert found.cpu_family is None and found.features == () and found.usable_cores >= 1
    assert "family" not in str(found)
