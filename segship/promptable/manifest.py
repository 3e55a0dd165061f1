# SPDX-License-Identifier: Apache-2.0
"""The manifest of a promptable model: besides what all have, its sizes, its preprocessing and its rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segship.bundle.manifest import Manifest
from segship.masks.cleanup import MaskCleanUp
from segship.promptable.everything.options import Thresholds
from segship.promptable.prompts import PromptRules
from segship.promptable.transforms import Preprocessing
from segship.spec import (
    GraphSpec,
    SamGeometry,
    image_encoder_spec,
    image_side_spec,
    mask_decoder_spec,
    selective_decoder_spec,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptableManifest(Manifest):
    """What ``manifest.json`` says of a promptable model.

    Attributes
    ----------
    geometry
        The sizes that the graphs depend on.
    preprocessing
        How pixels become the encoder's input.
    prompt_rules
        How prompts become the decoder's.
    mask_clean_up
        How prompted masks are cleaned; None leaves them as the decoder gives them.
    amg_defaults
        Thresholds of everything mode that suit the scale of this model's scores; None are SAM's own.
    """

    task: Literal["promptable"] = "promptable"
    geometry: SamGeometry
    preprocessing: Preprocessing
    prompt_rules: PromptRules
    mask_clean_up: MaskCleanUp | None = None
    amg_defaults: Thresholds | None = None

    def __post_init__(self) -> None:
        sizes = self.geometry.image_size, self.preprocessing.image_size
        if sizes[0] != sizes[1]:
            raise ValueError(f"image_size is {sizes[0]} in geometry and {sizes[1]} in preprocessing")

    @property
    def contracts(self) -> dict[str, GraphSpec]:
        """The contract of every graph that a bundle of this task may have."""
        makers = (image_encoder_spec, mask_decoder_spec, image_side_spec, selective_decoder_spec)
        return {spec.name: spec for spec in (make(self.geometry) for make in makers)}

    @property
    def graph_sets(self) -> tuple[frozenset[str], ...]:
        """The graphs that are needed; and these with two more, which make it faster and change no mask."""
        needed = frozenset({"image_encoder", "mask_decoder"})
        return (needed, needed | {"image_side", "selective_decoder"})

    @property
    def first_graph(self) -> str:
        """The encoder, whose digest ties embeddings to this bundle."""
        return "image_encoder"
