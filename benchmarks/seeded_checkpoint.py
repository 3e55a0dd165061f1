# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint in the published layout with seeded random weights, where the published one cannot be fetched.

python -m benchmarks.seeded_checkpoint vit_b vit_b.pth
segship export vit_b.pth -o vit_b
"""

from __future__ import annotations

import argparse

import torch

from segship.models.config import SAM_ARCHITECTURES
from segship.models.sam import build_sam
from tests.oracle import seeded_weights


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=SAM_ARCHITECTURES)
    parser.add_argument("path")
    arguments = parser.parse_args()
    torch.save(seeded_weights(build_sam(SAM_ARCHITECTURES[arguments.architecture])), arguments.path)


if __name__ == "__main__":
    main()
