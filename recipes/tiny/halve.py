# SPDX-License-Identifier: Apache-2.0
"""Round trained weights to float16, the precision that ships; the export keeps them so and loses nothing more.

python -m recipes.tiny.halve RUN/tiny.safetensors recipes/tiny/tiny.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from segship.ship.graph.fill import SMALLEST_HALVED_ELEMENTS


def halve(source: Path, target: Path) -> None:
    """Write the weights of ``source`` to ``target``, large float tensors in float16."""
    state = load_file(str(source))
    halved = {
        name: tensor.half() if tensor.dtype == torch.float32 and tensor.numel() >= SMALLEST_HALVED_ELEMENTS else tensor
        for name, tensor in state.items()
    }
    save_file({name: tensor.contiguous() for name, tensor in halved.items()}, str(target))


def main() -> None:
    """Read the command line and round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    halve(arguments.source, arguments.target)


if __name__ == "__main__":
    main()
