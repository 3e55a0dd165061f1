# SPDX-License-Identifier: Apache-2.0
"""``segship inspect``."""

from __future__ import annotations

from segship.cli.options import Json, command
from segship.cli.output import print_json, print_tree


@command
def inspect(path: str, /, *, json: Json = False) -> None:
    """Say what a bundle, an ONNX graph or a checkpoint holds.

    Nothing is run.

    Parameters
    ----------
    path
        A bundle's folder, an .onnx file, a .pth, .pt, .safetensors or .ckpt file, or a name such as tiny.

    Examples
    --------
    segship inspect sam_vit_b --json
    """
    from segship.inspection import inspect as describe

    document = describe(path).to_dict()
    if json:
        print_json(document)
    else:
        print_tree(document)
