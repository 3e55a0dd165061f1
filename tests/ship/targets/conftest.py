# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest

DOUBLES = Path(__file__).with_name("ascend_doubles")


class AscendMachine:
    """A machine with the doubles of Ascend's tools on its path; what is run there may not print a traceback."""

    def __init__(self, folder):
        self.bin = folder
        tools = {"npu-smi": "npu_smi.py", "atc": "atc.py", "amct_onnx": "amct_onnx.py"}
        for name, file in tools.items():
            self._add(name, f'"{DOUBLES / file}"')
        self._add("python3", "")
        (folder / "msit").write_text('#!/bin/sh\nshift\nDOUBLE_MSIT=1 exec python3 -m ais_bench "$@"\n')
        (folder / "msit").chmod(0o755)

    def _add(self, name, arguments):
        (self.bin / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (self.bin / name).chmod(0o755)

    def run(self, *command, check=True, **environment):
        inherited = {
            **os.environ,
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "PYTHONPATH": str(DOUBLES / "python"),
            "ASCEND_TOOLKIT_HOME": str(self.bin),
            **environment,
        }
        done = subprocess.run(
            [str(part) for part in command], env=inherited, capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
        assert "Traceback" not in said, said
        assert not check or done.returncode == 0, said
        return done

    def script(self, kit, name, **more):
        return self.run("bash", "-eu", kit / "scripts" / f"{name}.sh", **more)


@pytest.fixture(scope="session")
def ascend_machine(tmp_path_factory):
    return AscendMachine(tmp_path_factory.mktemp("ascend"))
