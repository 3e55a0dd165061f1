# SPDX-License-Identifier: Apache-2.0
"""How weights are laid out and become graphs: one folder a family, found because it is there.

A folder holds three modules with the same verbs, and only the last needs torch. ``recognise`` tells from shapes alone
whether a state dict is the family's: ``recognise(shapes) -> config | None`` and ``describe(config) -> dict``.
``family`` says what a model is: ``TASK``, ``prepare(path, config, state, options)`` on numpy arrays, ``specs(weights,
options, known_sizes)``, ``largest_sizes(weights)``, ``variants(options)`` and ``manifest(weights, options)``.
``graphs`` computes: ``build(config)``, ``reference(model)`` and ``graphs(model, options, known_sizes)``.
`segship.ship.weights`, `segship.ship.loading` and `segship.ship.export` call them.
"""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from segship.errors import CheckpointError, shown

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

# Names under which other models keep their tensors, so that the message can say what was given.
UNSUPPORTED = {
    "image_encoder.trunk.": "SAM 2",
    "memory_attention.": "SAM 2",
    "mask_decoder.hf_": "HQ-SAM",
    "vision_encoder.": "SAM in the layout of Transformers",
    "backbone.layers.": "a Swin backbone without semantic layers",
    "decode_head.": "a semantic segmentation head",
}
_ACCEPTED = (
    "accepted are SAM (vit_b, vit_l, vit_h and other sizes of it), MobileSAM (vit_t), SeMask-FPN (semask_t, s, b, l "
    "and other sizes of it) and segship's own tiny, with their published key names"
)
_SHOWN = 6


class Recognised(NamedTuple):
    """What a state dict is."""

    family: str
    """The name of its folder."""
    config: Any
    """Its sizes; the class is the family's own."""


def families() -> tuple[str, ...]:
    """Return the names of the families that are here."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg))


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> Recognised:
    """Return which model a state dict belongs to, from the names and shapes of its tensors alone.

    ``shapes`` is the shape of every tensor by its name, wrappers and prefixes taken off.

    Raises
    ------
    CheckpointError
        ``unsupported_architecture`` or ``unknown_architecture``; the message says what was seen.
    """
    for name in families():
        config = recogniser(name).recognise(shapes)
        if config is not None:
            return Recognised(name, config)
    for start, words in UNSUPPORTED.items():
        if any(name.startswith(start) for name in shapes):
            message = f"the checkpoint is of {words}, which is not supported yet; {_ACCEPTED}"
            raise CheckpointError(message, code="unsupported_architecture")
    roots = Counter(".".join(name.split(".", 2)[:2]) for name in shapes)
    listed = ", ".join(shown(name) for name, _ in roots.most_common(_SHOWN)) or "no name"
    raise unrecognised(f"it has {len(shapes)} tensors, under {listed}")


def recogniser(name: str) -> ModuleType:
    """Return the module ``recognise`` of a family, which needs no torch."""
    return import_module(f"{__name__}.{name}.recognise")


def family_module(name: str) -> ModuleType:
    """Return the module ``family`` of a family, which needs no torch."""
    return import_module(f"{__name__}.{name}.family")


def graphs_module(name: str) -> ModuleType:
    """Return the module ``graphs`` of a family, which needs torch."""
    return import_module(f"{__name__}.{name}.graphs")


def unrecognised(what: str) -> CheckpointError:
    """Return the error for shapes that fit no architecture."""
    return CheckpointError(f"the architecture is not recognised: {what}; {_ACCEPTED}", code="unknown_architecture")
