# SPDX-License-Identifier: Apache-2.0
"""Every published checkpoint that has a name here: where it is, and what is known of its bytes."""

from segship.known.promptable import CHECKPOINT_SUFFIXES, KNOWN_CHECKPOINTS, KnownCheckpoint, identify
from segship.known.semantic import SEMANTIC_CHECKPOINTS, SEMASK_LICENCE, SemanticCheckpoint, SemanticName

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "KNOWN_CHECKPOINTS",
    "SEMANTIC_CHECKPOINTS",
    "SEMASK_LICENCE",
    "KnownCheckpoint",
    "SemanticCheckpoint",
    "SemanticName",
    "identify",
]
