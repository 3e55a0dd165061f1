# SPDX-License-Identifier: Apache-2.0
"""Calls of any size through graphs that were compiled for fixed ones: cut into parts, and filled up with nothing.

An empty place has the label -2, which a decoder of ours leaves out of every attention, so filling changes no answer
but by rounding. Rows that were filled in are cut off again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from segship.arrays import AnyArray
from segship.errors import InputError
from segship.spec import LABEL_EMPTY, GraphSpec, TensorSpec

Form = Mapping[str, int]
"""Axis of a contract -> the one size that a compiled graph takes of it."""
FILLED_AXIS = "points"
"""The axis of an object's places, which may be filled up."""


class Call(NamedTuple):
    """One call of one form; the first ``rows`` of its answer are wanted."""

    form: Form
    rows: int
    inputs: dict[str, AnyArray]


def fixed_spec(spec: GraphSpec, sizes: Form) -> GraphSpec:
    """Return a contract in which some axes have one size.

    Examples
    --------
    >>> from segship.spec import TensorSpec
    >>> labels = TensorSpec("point_labels", "float32", ("objects", "points"))
    >>> fixed_spec(GraphSpec("decoder", (labels,), ()), {"objects": 1}).inputs[0].shape
    (1, 'points')
    """

    def fixed(tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(
                tensor, shape=tuple(sizes.get(size, size) if isinstance(size, str) else size for size in tensor.shape)
            )
            for tensor in tensors
        )

    return GraphSpec(spec.name, fixed(spec.inputs), fixed(spec.outputs))


def fixed_calls(inputs: Mapping[str, AnyArray], spec: GraphSpec, forms: Sequence[Form]) -> Iterator[Call]:
    """Cut inputs that fit a contract into calls of forms: as few rows as can be are filled in, then as few places.

    Raises
    ------
    InputError
        ``bad_tensor`` where no form takes an axis as it is.
    """
    sizes = {
        axis: size
        for tensor in spec.inputs
        for axis, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
        if isinstance(axis, str)
    }
    along = next((tensor.shape[0] for tensor in spec.inputs if isinstance(tensor.shape[0], str)), None)
    able = [form for form in forms if all(_takes(form, axis, sizes[axis]) for axis in sizes if axis != along)]
    if not able:
        most = " or ".join(str({axis: size for axis, size in form.items() if axis != along}) for form in forms)
        found = {axis: size for axis, size in sizes.items() if axis != along}
        message = f"graph {spec.name!r}: it was asked with {found}, and was compiled for {most}; points may be fewer"
        raise InputError(message, code="bad_tensor")
    fewest = min(form.get(FILLED_AXIS, 0) for form in able)
    able = [form for form in able if form.get(FILLED_AXIS, 0) == fewest]
    done, total = 0, sizes[along] if along is not None else 1
    while done < total:
        form = _next_form(able, along, total - done)
        rows = min(total - done, form[along] if along is not None else 1)
        yield Call(form, rows, {name: array for name, array in _filled(inputs, spec, form, along, done)})
        done += rows


def run_fixed(
    inputs: Mapping[str, AnyArray],
    spec: GraphSpec,
    forms: Sequence[Form],
    answer: Callable[[Call], Sequence[AnyArray]],
) -> dict[str, AnyArray]:
    """Answer inputs by calls of fixed forms, whose answers are in the order of the outputs."""
    parts: list[list[AnyArray]] = []
    for call in fixed_calls(inputs, spec, forms):
        parts.append([array[: call.rows] for array in answer(call)])
    return {
        tensor.name: np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        for tensor, arrays in zip(spec.outputs, zip(*parts, strict=True), strict=True)
    }


def _takes(form: Form, axis: str, size: int) -> bool:
    return size <= form.get(axis, size) if axis == FILLED_AXIS else size == form.get(axis, size)


def _next_form(forms: Sequence[Form], along: int | str | None, left: int) -> Form:
    """Return the largest form that is filled, or else the smallest."""
    if not isinstance(along, str):
        return forms[0]
    return max((form for form in forms if form[along] <= left), key=lambda form: form[along], default=None) or min(
        forms, key=lambda form: form[along]
    )


def _filled(
    inputs: Mapping[str, AnyArray], spec: GraphSpec, form: Form, along: int | str | None, start: int
) -> Iterator[tuple[str, AnyArray]]:
    for tensor in spec.inputs:
        array = inputs[tensor.name]
        if tensor.shape[0] == along and isinstance(along, str):
            array = array[start : start + form[along]]
        wanted = [form.get(axis, size) if isinstance(axis, str) else size
                  for axis, size in zip(tensor.shape, array.shape, strict=True)]  # fmt: skip
        missing = [(0, want - have) for want, have in zip(wanted, array.shape, strict=True)]
        if any(after for _, after in missing):
            fill = LABEL_EMPTY if tensor.name == "point_labels" else 0
            array = np.pad(array, missing, constant_values=fill)
        yield tensor.name, np.ascontiguousarray(array)
