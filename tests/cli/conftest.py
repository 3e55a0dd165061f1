# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from PIL import Image

from segship.cli import main
from segship.images.comparison import draw_scene


@pytest.fixture
def run(capsys):
    """Run the command line: exit code, standard output, standard error."""

    def run_main(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_main


@pytest.fixture
def run_json(run):
    """Run the command line with --json: exit code and document."""

    def run_main(*arguments):
        code, out, _ = run(*arguments, "--json")
        return code, json.loads(out)

    return run_main


@pytest.fixture
def photo(tmp_path):
    """A picture whose path has spaces and letters beyond ASCII."""
    path = tmp_path / "ein süßes Foto.png"
    Image.fromarray(draw_scene((120, 180), seed=5)).save(path)
    return path


@pytest.fixture
def model(small_export):
    return small_export[0].path
