# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint is, for people: its name, architecture and sizes. Needs no torch and reads no tensor's values."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segship.datasets.known import table_of
from segship.errors import CheckpointError
from segship.ship.checkpoints.survey import Labels, survey_checkpoint
from segship.ship.families import recognise, recogniser

# Fixed tensors that a state dict carries beside the trained parameters.
BUFFER_NAMES = (
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "positional_encoding_gaussian_matrix",
    "relative_position_index",
)


@dataclass(frozen=True, slots=True)
class CheckpointDescription:
    """One checkpoint file.

    Attributes
    ----------
    file
        Its path.
    bytes, sha256
        Its size and digest.
    known
        Name of the published checkpoint that it is, or None.
    licence
        SPDX name of the published weights' licence, or ``unknown``.
    architecture
        A name in the table of architectures, ``custom``, or None when it was not recognised; a note says why.
    task, family
        ``promptable`` and ``sam``, or ``semantic`` and ``semask``; None when it was not recognised.
    image_size
        Side of a promptable model's frame in pixels, or None.
    classes, semantic_classes
        Of a semantic model: classes of its head and of its semantic layers; None for others.
    semantic_window
        Of a semantic model: stages whose semantic layer works in windows by the published rule; no tensor shows it.
    data_set, class_names
        Of a semantic model: the data set whose classes it has, ``own`` if none of the known ones; and ``checkpoint`` if
        the file names its classes, ``assumed`` if it names none and their number is that of a data set, ``unknown`` if
        they have to be given with ``--classes``.
    parameters
        Number of trained values; buffers are not counted.
    keys
        Number of tensors.
    dtypes
        Number of tensors by dtype.
    notes
        A sentence for everything that reading takes off or leaves out, and what could not be recognised.
    """

    file: str
    bytes: int
    sha256: str
    known: str | None
    licence: str
    architecture: str | None
    image_size: int | None
    parameters: int
    keys: int
    dtypes: dict[str, int]
    notes: tuple[str, ...]
    task: str | None = None
    family: str | None = None
    classes: int | None = None
    semantic_classes: int | None = None
    semantic_window: str | None = None
    data_set: str | None = None
    class_names: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the description as JSON takes it."""
        return {**asdict(self), "notes": list(self.notes)}


def describe_checkpoint(path: str | Path) -> CheckpointDescription:
    """Describe a checkpoint file.

    Raises
    ------
    UnsafeCheckpoint
        When it asks for code to be run; the message names it.
    CheckpointError
        When it cannot be read. A file of an unknown architecture can be described.
    """
    survey = survey_checkpoint(path)
    found: dict[str, Any] = {"architecture": None, "image_size": None}
    notes = survey.notes
    try:
        model = recognise(survey.shapes)
        found |= {"family": model.family, **recogniser(model.family).describe(model.config)}
        if "classes" in found:
            found |= _describe_names(found["classes"], survey.labels)
    except CheckpointError as error:
        notes += (str(error),)
    trained = (info.elements for name, info in survey.tensors.items() if not name.endswith(BUFFER_NAMES))
    return CheckpointDescription(
        file=str(path),
        bytes=survey.bytes,
        sha256=survey.sha256,
        known=survey.known.architecture if survey.known else None,
        licence=survey.known.licence if survey.known else "unknown",
        **found,
        parameters=sum(trained),
        keys=len(survey.tensors),
        dtypes=dict(sorted(Counter(info.dtype for info in survey.tensors.values()).items())),
        notes=notes,
    )


def _describe_names(count: int, labels: Labels | None) -> dict[str, str | None]:
    fits = labels is not None and len(labels.classes) == count
    table = table_of(count, labels.classes) if labels is not None and fits else table_of(count) if not labels else None
    kind = "checkpoint" if fits else "unknown" if table is None else "assumed"
    return {"data_set": None if table is None else table.name, "class_names": kind}
