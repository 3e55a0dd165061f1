# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a torch model that is ready to be exported or run, and to what its manifest says of it.

`segship.checkpoints` reads files; here their weights get into modules. Needs torch.
"""

from segship.loading.promptable import SAM_PROMPT_RULES, LoadedModel, describe_model, load_model
from segship.loading.semantic import LoadedSemask, choose_settings, describe_semask, load_semask
from segship.loading.tools import tool_versions

__all__ = [
    "SAM_PROMPT_RULES",
    "LoadedModel",
    "LoadedSemask",
    "choose_settings",
    "describe_model",
    "describe_semask",
    "load_model",
    "load_semask",
    "tool_versions",
]
