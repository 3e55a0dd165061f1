# SPDX-License-Identifier: Apache-2.0
"""Names and colours of classes that mmcv's training programs write beside the weights, under ``meta``.

They are text of whoever made the file: used where they are plain names and colours, left alone otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segship.datasets.class_table import MOST_CLASSES

LONGEST_NAME = 128
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Labels:
    """Classes of a checkpoint; ``palette`` is None if it has no colours, or not one for each class."""

    classes: tuple[str, ...]
    palette: tuple[Colour, ...] | None


def find_labels(contents: object) -> Labels | None:
    """Return the labels that stand in what a checkpoint file holds, or None."""
    meta = contents.get("meta") if isinstance(contents, Mapping) else None
    if not isinstance(meta, Mapping):
        return None
    classes = _items(meta.get("CLASSES"))
    if not classes or not all(_is_name(name) for name in classes):
        return None
    colours = tuple(_colour(row) for row in _items(meta.get("PALETTE")))
    known = tuple(colour for colour in colours if colour is not None)
    return Labels(tuple(map(str, classes)), known if len(known) == len(colours) == len(classes) else None)


def _items(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, list | tuple) and len(value) <= MOST_CLASSES else ()


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()


def _colour(value: object) -> Colour | None:
    row: Sequence[object] = _items(value)
    numbers = [number for number in row if type(number) is int and 0 <= number <= 255]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == len(row) == 3 else None
