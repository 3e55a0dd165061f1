# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a torch model that is ready to be exported or run, and to what a manifest says of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from segship.bundle.entries import CheckpointEntry, Precision
from segship.bundle.measured import Comparison
from segship.masks.cleanup import MaskCleanUp
from segship.promptable.manifest import (
    AmgDefaultsEntry,
    MaskCleanUpEntry,
    PreprocessingEntry,
    PromptRulesEntry,
    SamManifest,
)
from segship.promptable.prompts import PromptRules
from segship.ship.checkpoints.reading import Checkpoint, load_state, read_checkpoint
from segship.ship.families.config import SamConfig
from segship.ship.families.sam.model import Sam, build_sam, change_image_size
from segship.ship.families.sam.recognise import recognise_architecture
from segship.ship.tools import tool_versions

SAM_PROMPT_RULES = PromptRules(padding_point="without_box")


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A checkpoint as a torch module, and what was changed on the way."""

    checkpoint: Checkpoint
    config: SamConfig
    sam: Sam
    changes: tuple[str, ...]


def load_model(checkpoint_path: Path, *, image_size: int | None = None) -> LoadedModel:
    """Read a checkpoint, recognise its architecture and build the module, strictly.

    Raises
    ------
    CheckpointError
        When the file cannot be read safely, or its tensors do not fit.
    """
    checkpoint = read_checkpoint(checkpoint_path)
    config = recognise_architecture({name: tuple(tensor.shape) for name, tensor in checkpoint.state_dict.items()})
    state, changes = checkpoint.state_dict, tuple(checkpoint.notes)
    if image_size is not None:
        config, state, resized = change_image_size(config, state, image_size)
        changes += resized
    with torch.device("meta"):
        sam = build_sam(config)
    load_state(sam, state)
    return LoadedModel(checkpoint, config, sam.eval(), changes)


def describe_model(
    model: LoadedModel,
    *,
    opset: int,
    comparison: Comparison | None,
    precision: Precision = "fp32",
    licence: str | None = None,
    clean_masks: bool | None = None,
) -> SamManifest:
    """Write down everything about a model except its files, which `segship.bundle.write_bundle` adds.

    ``clean_masks`` turns the clean-up of prompted masks on or off; None leaves it as the architecture has it.
    """
    config, checkpoint = model.config, model.checkpoint
    clean_up = config.mask_clean_up
    if clean_masks is not None:
        clean_up = (clean_up or MaskCleanUp()) if clean_masks else None
    known = checkpoint.known
    return SamManifest(
        architecture=config.architecture,
        image_size=config.image_size,
        embedding_channels=config.embedding_channels,
        embedding_size=config.embedding_size,
        preprocessing=PreprocessingEntry(pixel_mean=config.pixel_mean, pixel_std=config.pixel_std),
        prompt_rules=PromptRulesEntry(padding_point=SAM_PROMPT_RULES.padding_point),
        mask_clean_up=None if clean_up is None else MaskCleanUpEntry(**asdict(clean_up)),
        amg_defaults=None if config.amg_thresholds is None else AmgDefaultsEntry(**asdict(config.amg_thresholds)),
        graphs={},
        precision=precision,
        opset=opset,
        checkpoint=CheckpointEntry(
            name=checkpoint.path.name,
            sha256=checkpoint.sha256,
            bytes=checkpoint.bytes,
            licence=known.licence if known else licence or "unknown",
            known=known is not None,
        ),
        changes=list(model.changes),
        tools=tool_versions(),
        comparison=comparison,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
