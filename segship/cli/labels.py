# SPDX-License-Identifier: Apache-2.0
"""The options of commands whose masks may get names from a semantic model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cyclopts import Parameter

from segship.cli.runtime import Runtime
from segship.datasets.things import thing_classes
from segship.errors import InputError
from segship.semantic.predictor import SemanticPredictor, open_semantic


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Labelling:
    """What gives masks their names.

    Parameters
    ----------
    labels
        Semantic bundle, checkpoint or known name: each mask gets a class by vote of that model's class map, with
        label_confidence and label_purity, and panoptic has things and stuff.
    things
        With --labels: comma-separated classes that can be counted; those of the data set when left out.
    label_backend
        With --labels: what runs that model; as --backend when left out. The other runtime options hold for both.
    """

    labels: str | None = None
    things: str | None = None
    label_backend: str | None = None

    @property
    def thing_names(self) -> tuple[str, ...] | None:
        """The classes that can be counted; None if the user named none."""
        return None if self.things is None else tuple(part.strip() for part in self.things.split(","))

    def check(self) -> None:
        """Refuse options that belong to a model that was not given, before any model is loaded.

        Raises
        ------
        InputError
            ``bad_option``.
        """
        for option, given in (("--things", self.things), ("--label-backend", self.label_backend)):
            if self.labels is None and given is not None:
                message = f"{option} was given without --labels, to which it belongs; give both"
                raise InputError(message, code="bad_option")

    def open(self, runtime: Runtime) -> SemanticPredictor | None:
        """Load the model, if one was given.

        Raises
        ------
        InputError
            ``other_family``, or ``unknown_class`` when a thing is no class of the model.
        """
        if self.labels is None:
            return None
        settings = replace(runtime, backend=self.label_backend or runtime.backend).settings()
        predictor = open_semantic(self.labels, **settings)
        thing_classes(predictor.table, self.thing_names)
        return predictor


NO_LABELLING = Labelling()
