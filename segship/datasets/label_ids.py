# SPDX-License-Identifier: Apache-2.0
"""Classes as the numbers that a data set's own files hold, which its evaluation server and its tools take.

Cityscapes: the id of the label (7 is road), 0 for none. ADE20K and COCO-Stuff: the class plus one, 0 for none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segship.datasets.ade20k import ADE20K
from segship.datasets.cityscapes import CITYSCAPES, LABELS
from segship.datasets.class_table import ClassTable
from segship.datasets.cocostuff import COCO_STUFF
from segship.errors import OutputError

NO_LABEL = 0


def label_ids(table: ClassTable) -> tuple[int, ...] | None:
    """Return the data set's own number of every class; None for classes that no known data set has.

    Examples
    --------
    >>> label_ids(CITYSCAPES)[:3]
    (7, 8, 11)
    """
    if table.classes == CITYSCAPES.classes:
        by_name = {label.name: label.id for label in LABELS}
        return tuple(by_name[name] for name in table.classes)
    if table.classes in (ADE20K.classes, COCO_STUFF.classes):
        return tuple(range(1, len(table.classes) + 1))
    return None


def classes_to_label_ids(class_map: NDArray[np.uint8], table: ClassTable) -> NDArray[np.uint8]:
    """Turn a class map (H, W) uint8 into one of the data set's own numbers; 0 where there is no class.

    Raises
    ------
    OutputError
        ``no_label_ids``.
    """
    own = label_ids(table)
    if own is None:
        message = (
            f"the {len(table.classes)} classes of {table.name!r} have no numbers but their place in the list; write "
            "classes, which holds those"
        )
        raise OutputError(message, code="no_label_ids")
    numbers = np.full(256, NO_LABEL, np.uint8)
    numbers[: len(own)] = own
    return numbers[class_map]
