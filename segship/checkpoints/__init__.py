# SPDX-License-Identifier: Apache-2.0
"""Published and fine-tuned weight files: read safely, recognised from their tensors, loaded strictly.

Importing this loads no torch; only `read_checkpoint` and `load_state` do, when they are called.
"""

from segship.checkpoints.description import CheckpointDescription, describe_checkpoint
from segship.checkpoints.loading import load_state
from segship.checkpoints.reading import Checkpoint, read_checkpoint
from segship.checkpoints.recognise import recognise_architecture, recognise_model
from segship.checkpoints.recognise_semask import is_semask, recognise_semask
from segship.checkpoints.survey import list_shapes

__all__ = [
    "Checkpoint",
    "CheckpointDescription",
    "describe_checkpoint",
    "is_semask",
    "list_shapes",
    "load_state",
    "read_checkpoint",
    "recognise_architecture",
    "recognise_model",
    "recognise_semask",
]
