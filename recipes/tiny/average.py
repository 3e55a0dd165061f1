# SPDX-License-Identifier: Apache-2.0
"""Average the weights of a run with those of the run that it began from.

Two runs that share their beginning lie in one valley, and a point between them is often better than either (model
soups, arXiv:2203.05482). Choose the share on held-out scenes.

python -m recipes.tiny.average FIRST/tiny.safetensors SECOND/tiny.safetensors OUT.safetensors --share 0.3
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file


def average(first: Path, second: Path, target: Path, share: float) -> None:
    """Write ``(1 - share) * first + share * second``; integer tensors are the second's.

    Raises
    ------
    ValueError
        When the files hold other tensors or shapes than each other, or the share is not from 0 to 1.
    """
    ours, theirs = load_file(str(first)), load_file(str(second))
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{first} and {second} hold other tensors than each other; give two runs of one model")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; accepted are 0 to 1")
    mixed = {
        name: tensor if not tensor.is_floating_point() else ours[name].float().lerp(tensor.float(), share)
        for name, tensor in theirs.items()
    }
    save_file({name: tensor.contiguous() for name, tensor in mixed.items()}, str(target))


def main() -> None:
    """Read the command line and average."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--share", type=float, required=True, help="of the second, 0 to 1")
    arguments = parser.parse_args()
    average(arguments.first, arguments.second, arguments.target, arguments.share)


if __name__ == "__main__":
    main()
