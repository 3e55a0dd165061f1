# SPDX-License-Identifier: Apache-2.0
"""A state dict into a module, strictly: every key fits or the whole is refused with a list of what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from segship.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_SHOWN = 10


def load_state(module: torch.nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Load a state dict into a module, which may have been made on the ``meta`` device.

    Tensors are copied into a module that has memory; a module on ``meta`` takes the tensors themselves, so that
    large weights exist once. Integer buffers are taken as they are.

    Raises
    ------
    CheckpointError
        When a key is missing, unexpected, or of another shape or kind of number; the message lists the first ten of
        each. The module is unchanged then.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in state_dict]
    unexpected = [name for name in state_dict if name not in expected]
    misfits = [
        f"{name} {_shown(state_dict[name])} instead of {_shown(tensor)}"
        for name, tensor in expected.items()
        if name in state_dict and not _fits(state_dict[name], tensor)
    ]
    listed = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("of another shape", misfits)]
    if missing or unexpected or misfits:
        message = (
            f"the checkpoint does not fit the model: {'; '.join(part for part in listed if part)}. It is incomplete, "
            "of a variant that is not supported, or of another architecture; give a checkpoint with exactly these keys"
        )
        raise CheckpointError(message, code="state_mismatch")
    on_meta = any(tensor.is_meta for tensor in expected.values())
    module.load_state_dict(dict(state_dict), strict=True, assign=on_meta)


def _fits(tensor: torch.Tensor, expected: torch.Tensor) -> bool:
    return tensor.shape == expected.shape and tensor.is_floating_point() == expected.is_floating_point()


def _shown(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{more}"
