# SPDX-License-Identifier: Apache-2.0
"""``segship train-ids``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from segship.cli.evaluate import print_failures
from segship.cli.main import EXIT_BAD_INPUT
from segship.cli.options import OVERWRITE, Fields, Json, Option, command
from segship.cli.output import print_json, progress_bar, results_console
from segship.datasets.train_ids import TrainIdsOptions, write_train_ids


@command
def train_ids(
    *,
    data: Path,
    options: Annotated[TrainIdsOptions, Fields(splits=Option(name="--split"), overwrite=OVERWRITE)],
    json: Json = False,
) -> int:
    """Write the train ids of Cityscapes beside its polygons.

    One `*_gtFine_labelTrainIds.png` for each `*_gtFine_polygons.json`, as programs that train want them.

    Parameters
    ----------
    data
        Folder that holds gtFine.

    Examples
    --------
    segship train-ids --data cityscapes --split val
    """
    with progress_bar("writing train ids") as tick:
        done = write_train_ids(data, options, progress=tick)
    if json:
        print_json(asdict(done) | {"failed": [failure.to_dict(command_line=True) for failure in done.failed]})
    else:
        results_console().print(f"{done.written} written, {done.kept} were there, {len(done.failed)} failed")
        print_failures(done.failed)
    return EXIT_BAD_INPUT if done.failed else 0
