# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint file to tensors, and from those into a module, strictly; never with a fallback.

`survey` has checked the file by then. Tensors of torch's format are views of the storages that it found, so no pickle
meets an unpickler; those of safetensors come from its own loader, whose result has to agree with the survey.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segship.catalog import KnownCheckpoint
from segship.errors import BackendUnavailable, CheckpointError, shown
from segship.files import open_regular
from segship.ship.checkpoints.archive import StoredTensor
from segship.ship.checkpoints.survey import Labels, Survey, stamp_of, survey_checkpoint, unwrap_state_dict

if TYPE_CHECKING:
    from types import ModuleType

    import torch

COUNTER = ".num_batches_tracked"
_SHOWN = 10


def load_state(module: torch.nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Load a state dict into a module, which may have been made on the ``meta`` device.

    Tensors are copied into a module that has memory; a module on ``meta`` takes the tensors themselves, so that
    large weights exist once. Integer buffers are taken as they are; counters of batches that are missing become 0.

    Raises
    ------
    CheckpointError
        When a key is missing, unexpected, or of another shape or kind of number; the message lists the first ten of
        each. The module is unchanged then.
    """
    expected = module.state_dict()
    # Counters of training steps, which many tools leave out: no answer depends on them.
    counters = {name: tensor for name, tensor in expected.items() if name.endswith(COUNTER) and name not in state_dict}
    state_dict = {**state_dict, **{name: tensor.new_zeros((), device="cpu") for name, tensor in counters.items()}}
    missing = [name for name in expected if name not in state_dict]
    unexpected = [name for name in state_dict if name not in expected]
    misfits = [
        f"{name} {_shown(state_dict[name])} instead of {_shown(tensor)}"
        for name, tensor in expected.items()
        if name in state_dict and not _fits(state_dict[name], tensor)
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misfits}
    if listed := [_listed(kind, names) for kind, names in found.items() if names]:
        message = (
            f"the checkpoint does not fit the model: {'; '.join(listed)}; it is incomplete, "
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
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {kind}: {', '.join(map(shown, names[:_SHOWN]))}{more}"


TORCH_FLOOR = (2, 10)
"""Earlier weights-only loaders have known holes (CVE-2025-32434, CVE-2026-24747)."""
# Smaller files are read whole; larger ones are mapped, so that the system can drop pages it does not need.
_MAPPED_BYTES = 128 << 20
_ALIGNMENT = 16


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A weight file that was read; what is not told here is as in `Survey`.

    Attributes
    ----------
    state_dict
        Its tensors on the CPU, by name: weights in float32, integer buffers as they are.
    stored_dtypes
        The dtypes that the tensors have in the file, sorted.
    notes
        A sentence for everything that was taken off, left out or converted.
    unusable
        Of tensors that cannot become weights, such as quantised or sparse ones: name and kind.
    """

    path: Path
    sha256: str
    bytes: int
    known: KnownCheckpoint | None
    state_dict: dict[str, torch.Tensor]
    stored_dtypes: tuple[str, ...]
    notes: tuple[str, ...]
    labels: Labels | None = None
    unusable: Mapping[str, str] = field(default_factory=dict)

    @property
    def half_weights(self) -> bool:
        """Whether the file holds weights in half precision."""
        return "float16" in self.stored_dtypes


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a ``.pth``, ``.pt`` or ``.safetensors`` checkpoint.

    Raises
    ------
    UnsafeCheckpoint
        When the file asks for code to be run; the message names what it asks for. Nothing of it was run.
    CheckpointError
        When it is damaged, crafted, of another format, holds no state dict, or holds weights that are not finite.
    BackendUnavailable
        When torch or safetensors is missing or too old.
    """
    survey = survey_checkpoint(path)
    torch = _import_torch()
    tensors = _load_safetensors(survey) if survey.format == "safetensors" else _map_tensors(survey, torch)
    notes = list(survey.notes)
    if stamp_of(survey.path) != survey.stamp:
        raise _changed(survey)
    state = _to_float32(tensors, notes)
    _require_finite(survey.path, state)
    dtypes = tuple(sorted({info.dtype for info in survey.tensors.values()}))
    unusable = {name: info.dtype for name, info in survey.tensors.items() if name not in tensors}
    if unusable:
        notes.append(_listed("tensors cannot become weights and were left out", _kinds(unusable)))
    return Checkpoint(
        survey.path, survey.sha256, survey.bytes, survey.known, state, dtypes, tuple(notes), survey.labels, unusable
    )


def _kinds(unusable: Mapping[str, str]) -> list[str]:
    return [f"{name} ({kind})" for name, kind in unusable.items()]


def _changed(survey: Survey) -> CheckpointError:
    message = f"{survey.path} was changed while it was read; wait until it is written and read it again"
    return CheckpointError(message, code="file_changed")


def _load_safetensors(survey: Survey) -> dict[str, torch.Tensor]:
    load = _import_safetensors().load_file
    try:
        contents: object = load(str(survey.path), device="cpu")
    except Exception as error:  # A loader may raise anything at a crafted file; all of it is a refusal.
        message = f"{survey.path}: the {survey.format} loader refuses it: {str(error)[:300]}; nothing of it was run"
        raise CheckpointError(message, code="loader_refused") from error
    import torch

    tensors, _ = unwrap_state_dict(contents, torch.Tensor)
    found = {name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in tensors.items()}
    if found != {name: (info.dtype, info.shape) for name, info in survey.tensors.items()}:
        message = f"{survey.path} gives other tensors to its loader than to its check, so it is crafted; do not use it"
        raise CheckpointError(message, code="ambiguous_checkpoint")
    return tensors


def _map_tensors(survey: Survey, torch: Any) -> dict[str, torch.Tensor]:
    """Return the tensors as the survey describes them, from the bytes of their storages; no pickle is read again."""
    with open_regular(survey.path) as stream:
        if stamp_of(stream.fileno()) != survey.stamp:
            raise _changed(survey)
        if survey.bytes > _MAPPED_BYTES:
            data: mmap | bytearray = mmap(stream.fileno(), 0, access=ACCESS_COPY)
        else:
            data = bytearray(survey.bytes)
            stream.readinto(data)  # type: ignore[attr-defined]
    storages: dict[str, torch.Tensor] = {}
    for key, (start, size) in survey.storages.items():
        raw = torch.frombuffer(data, dtype=torch.uint8, count=size, offset=start) if size else torch.empty(0).byte()
        # torch.save aligns them; other writers need not, and a tensor begins at a multiple of its elements' size.
        storages[key] = raw.clone() if start % _ALIGNMENT else raw
    tensors: dict[str, torch.Tensor] = {}
    for name, info in survey.tensors.items():
        if isinstance(info, StoredTensor):
            flat = storages[info.storage].view(getattr(torch, info.dtype))
            tensors[name] = flat.as_strided(info.shape, info.strides, info.offset)
    return tensors


def _import_torch() -> ModuleType:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise _missing("torch") from error
    version = str(torch.__version__)
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < TORCH_FLOOR:
        floor = ".".join(map(str, TORCH_FLOOR))
        message = (
            f"torch {version} is too old to read checkpoints safely, and {floor} or newer is needed; "
            'pip install --upgrade "segship[export]"'
        )
        raise BackendUnavailable(message, code="torch_too_old")
    return torch


def _import_safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise _missing("safetensors") from error
    return safetensors.torch


def _missing(name: str) -> BackendUnavailable:
    message = f'reading a checkpoint needs {name}, which is not installed; pip install "segship[export]"'
    return BackendUnavailable(message, code=f"{name}_missing")


def _to_float32(tensors: dict[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    """Convert weights of other precisions; integer buffers stay as they are."""
    converted: dict[str, int] = {}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        if tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            converted[dtype] = converted.get(dtype, 0) + 1
            tensor = tensor.float()
        state[name] = tensor
    converted.pop("float32", None)
    notes.extend(f"{count} tensors converted from {dtype} to float32" for dtype, count in sorted(converted.items()))
    return state


def _require_finite(path: Path, state: dict[str, torch.Tensor]) -> None:
    bad = [name for name, tensor in state.items() if not _is_finite(tensor)]
    if bad:
        message = (
            f"{path}: {_listed('tensors hold values that are not finite (NaN or infinity)', bad)}; the training went "
            "wrong or the file is damaged, give another checkpoint"
        )
        raise CheckpointError(message, code="non_finite_weights")


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # Lowest and highest value need no second tensor of that size; a NaN becomes both.
    low, high = tensor.aminmax()
    return bool(low.isfinite() & high.isfinite())
