# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint in the published layout with seeded random weights, where the published one cannot be fetched.

python -m benchmarks.seeded_checkpoint vit_b vit_b.pth
segship export vit_b.pth -o vit_b
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from segship.ship.families.sam.config import SAM_ARCHITECTURES, SamConfig
from segship.ship.families.sam.model import build_sam
from tests.oracle import seeded_weights


def write_checkpoint(config: SamConfig, path: Path) -> None:
    """Write the seeded weights of a model of the given sizes."""
    torch.save(seeded_weights(build_sam(config)), path)


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=SAM_ARCHITECTURES)
    parser.add_argument("path")
    arguments = parser.parse_args()
    write_checkpoint(SAM_ARCHITECTURES[arguments.architecture], Path(arguments.path))


if __name__ == "__main__":
    main()
