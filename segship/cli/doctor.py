# SPDX-License-Identifier: Apache-2.0
"""``segship doctor``."""

from __future__ import annotations

from segship.cli.options import Json, command
from segship.cli.output import print_json, print_tree


@command
def doctor(*, json: Json = False) -> None:
    """Say what runs here, what is missing, and what mends it.

    Examples
    --------
    segship doctor
    """
    from segship.doctor import examine

    document = examine().to_dict()
    if json:
        print_json(document)
    else:
        print_tree(document)
