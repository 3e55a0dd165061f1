# SPDX-License-Identifier: Apache-2.0
"""Results whose masks have the classes that a class map votes for, ready for every writer.

On the use road between `segship.semantic.voting`, which gives a mask its class, and `segship.writers`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from segship.datasets.things import thing_classes
from segship.semantic.class_map import ClassMap
from segship.semantic.panoptic import PanopticOptions
from segship.semantic.voting import NOBODY, check_size, vote_class
from segship.writers.instances import Instances, Labels, Source, as_instances


def label_records(
    source: Source,
    class_map: ClassMap,
    *,
    things: Collection[str] | None = None,
    panoptic: PanopticOptions | None = None,
) -> Instances:
    """Return the masks of a result with the classes that they are voted, ready to be written in every format.

    Parameters
    ----------
    source
        `segship.records.ImageRecords`, or any other result that the writers take.
    class_map
        See `label_masks`.
    things
        Names of the classes that can be counted, for COCO panoptic; what `segship.datasets.things` knows of the data
        set when left out.
    panoptic
        How masks and class map are merged there.

    Raises
    ------
    InputError
        ``other_size`` or ``unknown_class``.
    """
    instances = as_instances(source)
    check_size(instances.size, class_map)
    labels = Labels(class_map, thing_classes(class_map.table, things), panoptic or PanopticOptions())
    votes = [vote_class(entry.runs, class_map) for entry in instances.entries]
    nobody = len(class_map.classes)
    entries = tuple(
        replace(
            entry,
            category=nobody if vote.number is None else vote.number,
            label_confidence=round(vote.label_confidence, 6),
            label_purity=round(vote.label_purity, 6),
        )
        for entry, vote in zip(instances.entries, votes, strict=True)
    )
    # All classes, so that the numbers of several images agree; one more only if a mask has none.
    categories = class_map.classes + ((NOBODY,) if any(vote.number is None for vote in votes) else ())
    return replace(instances, entries=entries, categories=categories, labels=labels)


def count_labels(instances: Instances) -> dict[str, int]:
    """Return how many masks every class has that has any, most first."""
    names = Counter(instances.categories[entry.category] for entry in instances.entries)
    return dict(names.most_common())
