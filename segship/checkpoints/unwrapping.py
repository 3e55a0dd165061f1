# SPDX-License-Identifier: Apache-2.0
"""Find the state dict inside what people save: training checkpoints, modules in modules, data-parallel wrappers.

The same function serves the description of a file and its tensors, so both see the same keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from segship.errors import CheckpointError

T = TypeVar("T")

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights")
"""Under which the weights stand, best first. Averaged weights (``ema``) beside them are left out, and that is noted."""
PREFIXES = ("module.", "model.", "sam.", "_orig_mod.")
MAX_WRAPPERS = 4
_SHOWN = 8


def unwrap_state_dict(contents: object, tensor: type[T]) -> tuple[dict[str, T], tuple[str, ...]]:
    """Return the state dict and a sentence for every thing that was taken off or left out.

    Parameters
    ----------
    contents
        What the file holds.
    tensor
        The class of a tensor in it.

    Raises
    ------
    CheckpointError
        When there is no mapping from names to tensors in it.
    """
    notes: list[str] = []
    for _ in range(MAX_WRAPPERS):
        wrapper = _wrapper(contents, tensor)
        if wrapper is None or not isinstance(contents, Mapping):
            break
        _note(notes, f"taken from {wrapper!r}", (key for key in contents if key != wrapper))
        contents = contents[wrapper]
    if not isinstance(contents, Mapping) or not any(isinstance(value, tensor) for value in contents.values()):
        found = f"the keys {_few(contents)}" if isinstance(contents, Mapping) else f"a {type(contents).__name__}"
        message = f"the file holds no state dict (names to tensors), but {found}; save model.state_dict()"
        raise CheckpointError(message, code="no_state_dict")
    state = {str(key): value for key, value in contents.items() if isinstance(value, tensor)}
    if len(state) < len(contents):
        _note(notes, "", (key for key, value in contents.items() if not isinstance(value, tensor)))
    return _strip_prefixes(state, notes), tuple(notes)


def _wrapper(contents: object, tensor: type[T]) -> str | None:
    """Return the key under which the state dict stands, or None when it is not wrapped."""
    if not isinstance(contents, Mapping):
        return None
    # A real state dict has tensors at its top; a wrapper has mappings, and at most a stray tensor beside them.
    return next((key for key in WRAPPER_KEYS if _may_hold_tensors(contents.get(key), tensor)), None)


def _may_hold_tensors(value: object, tensor: type[T]) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(
        isinstance(item, tensor) or (key in WRAPPER_KEYS and isinstance(item, Mapping)) for key, item in value.items()
    )


def _note(notes: list[str], taken: str, left_out: Iterable[object]) -> None:
    left = _few(left_out)
    notes.append("; ".join(part for part in (taken, f"left out {left}" if left else "") if part))


def _few(keys: Iterable[object]) -> str:
    listed = [repr(key)[:60] for key in keys]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(sorted(listed)[:_SHOWN]) + more


def _strip_prefixes(state: dict[str, T], notes: list[str]) -> dict[str, T]:
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        notes.append(f"prefix {prefix!r} taken off every name")
    return state
