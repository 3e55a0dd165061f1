# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from segship.ship import templates
from segship.ship.families.sam.config import SAM_ARCHITECTURES
from segship.ship.families.semask.config import SEMASK_ARCHITECTURES
from segship.ship.templates.bundling import bundle_checkpoint
from tests import small_semask
from tests.oracle import SMALL_VIT

DOUBLES = Path(__file__).with_name("ascend_doubles")


class AscendMachine:
    """A machine with the doubles of Ascend's tools on its path."""

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
        assert not check or done.returncode == 0, said
        return done

    def script(self, kit, name, **more):
        return self.run("bash", "-eu", kit / "scripts" / f"{name}.sh", **more)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Make a bundle of a small checkpoint by its template, which takes no tracing."""

    def make(checkpoint):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(templates, "FOLDER", Path(__file__).parents[1] / "templates")
            patch.setitem(SAM_ARCHITECTURES, "custom", SMALL_VIT)
            patch.setitem(SEMASK_ARCHITECTURES, "small", replace(small_semask.SMALL_SEMASK, architecture="small"))
            return bundle_checkpoint(checkpoint, tmp_path_factory.mktemp("made") / "bundle")

    return make


@pytest.fixture(scope="session")
def small_sam_bundle(made, small_checkpoint):
    return made(small_checkpoint)


@pytest.fixture(scope="session")
def small_street_bundle(made, small_semask_checkpoint):
    """It takes pictures of any size."""
    return made(small_semask_checkpoint)


@pytest.fixture(scope="session")
def ascend_machine(tmp_path_factory):
    return AscendMachine(tmp_path_factory.mktemp("ascend"))
