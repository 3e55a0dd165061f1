# SPDX-License-Identifier: Apache-2.0
"""The manifest of a promptable model: besides what all have, its sizes, its preprocessing and its rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from segship.bundle.manifest import Manifest
from segship.masks.cleanup import MaskCleanUp
from segship.masks.edges import MaskEdges
from segship.promptable.everything.options import Thresholds
from segship.promptable.foreign import ForeignGraphs, adapt_sessions
from segship.promptable.prompts import PromptRules
from segship.promptable.transforms import Preprocessing
from segship.spec import (
    MASK_TOKENS,
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
    mask_edges
        How prompted masks follow the picture; None leaves their borders as the decoder's cells give them.
    amg_defaults
        What everything mode keeps, by the scale of this model's scores, and how it finds duplicates and draws borders;
        None is what it does with SAM's.
    decoder_masks
        Masks that the decoder gives of an object: the single-mask token and the ambiguous three; or one, which it
        chooses itself.
    foreign
        How the graphs are driven where they keep another program's contract; None where they keep ours.
    """

    added: ClassVar[frozenset[str]] = Manifest.added | {"mask_edges", "decoder_masks", "foreign"}

    task: Literal["promptable"] = "promptable"
    geometry: SamGeometry
    preprocessing: Preprocessing
    prompt_rules: PromptRules
    mask_clean_up: MaskCleanUp | None = None
    mask_edges: MaskEdges | None = None
    amg_defaults: Thresholds | None = None
    decoder_masks: Literal[4, 1] = 4
    foreign: ForeignGraphs | None = None

    def __post_init__(self) -> None:
        sizes = self.geometry.image_size, self.preprocessing.image_size
        if sizes[0] != sizes[1]:
            raise ValueError(f"image_size is {sizes[0]} in geometry and {sizes[1]} in preprocessing")

    @property
    def contracts(self) -> dict[str, GraphSpec]:
        """The contract of every graph that a bundle of this task may have."""
        if self.foreign is not None:
            return {spec.name: spec for spec in self.foreign.specs(self.geometry, self.decoder_masks)}
        decoder = mask_decoder_spec(self.geometry, self.decoder_masks)
        makers = (image_encoder_spec, image_side_spec, selective_decoder_spec)
        return {spec.name: spec for spec in (decoder, *(make(self.geometry) for make in makers))}

    @property
    def graph_sets(self) -> tuple[frozenset[str], ...]:
        """The graphs that are needed; and these with two more, which make it faster and change no mask."""
        needed = frozenset({"image_encoder", "mask_decoder"})
        # The two that make it faster give four masks, and belong to our own decoder.
        more = self.foreign is None and self.decoder_masks == MASK_TOKENS
        return (needed, needed | {"image_side", "selective_decoder"}) if more else (needed,)

    @property
    def first_graph(self) -> str:
        """The encoder, whose digest ties embeddings to this bundle."""
        return "image_encoder"

    @property
    def exact_only(self) -> bool:
        """True of one-mask decoders of others: OpenVINO 2026.4 ends the process as it compiles such for bfloat16."""
        return self.foreign is not None and self.decoder_masks != MASK_TOKENS

    def graph_kind(self, graph: str) -> str:
        """Return which operators a graph may hold; those that others wrote may have more."""
        return graph if self.foreign is None else f"foreign {graph}"

    def adapt(self, sessions: dict[str, Any]) -> dict[str, Any]:
        """Return sessions that keep our contracts."""
        if self.foreign is None:
            return sessions
        return adapt_sessions(sessions, self.foreign, self.geometry, self.preprocessing, self.decoder_masks)
