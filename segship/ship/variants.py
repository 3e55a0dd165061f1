# SPDX-License-Identifier: Apache-2.0
"""How the networks are computed for each engine: the same function of the same weights, in another order.

Every architecture is written down once, and an `EncoderVariant` says which of a few exact rearrangements its forward
pass uses. Nothing is learned or stored: a variant is an attribute of the modules, so state dicts do not know of it and
any checkpoint runs in any variant. The algebra of each rearrangement stands beside the code that does it.

Plain data; importing this loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from segship.errors import ExportError


@dataclass(frozen=True, slots=True)
class EncoderVariant:
    """A choice among equal ways of computing an image encoder, and one of the shared decoder's.

    Attributes
    ----------
    name
        What manifests and reports call it.
    query_rows_per_tile
        SAM's ViT, global attention: rows of the grid whose queries are scored at once, so that the scores of all
        queries never exist together; None scores the whole grid at once.
    heads_per_tile
        SAM's ViT, global attention: heads that are scored at once; None takes all.
    one_bias
        SAM's ViT: the two relative terms are summed before they meet the scores.
    project_padding
        Window attention: True sends the padding through the projections, as the published code does; False pads
        behind `qkv`'s product and cuts before `proj`.
    separate_projections
        Queries, keys and values come from three products instead of one that is cut afterwards.
    flat_tokens
        What works on single tokens sees (B, tokens, C) instead of (B, rows, columns, C).
    fold_batch_norms
        Batch norms become part of their convolutions; in a graph once, when its weights are put in.
    fused_attention
        SAM's ViT: attention is torch's own fused kernel, with the relative terms as its mask.
    heads_outermost
        Shared decoder: a product of tokens with the shared image is one product a head for all objects, and the
        softmax over tokens is the engine's own.
    """

    name: str
    query_rows_per_tile: int | None = None
    heads_per_tile: int | None = None
    one_bias: bool = False
    project_padding: bool = True
    separate_projections: bool = False
    flat_tokens: bool = False
    fold_batch_norms: bool = False
    fused_attention: bool = False
    heads_outermost: bool = False


PLAIN = EncoderVariant("plain")
"""As the published code computes; what modules do until told otherwise."""

# Tiles of global attention hold heads x rows x 64 x 4096 scores (vit_b: 12 heads). ONNX Runtime runs as fast with 4 to
# 16 rows of all heads, and peaks lower with fewer; OpenVINO, whose attention is one fused kernel, loses from 8 down.
# torch gains most when the tile of one head (256 queries: 4 MiB) never leaves the cache.
VARIANTS: Mapping[str, EncoderVariant] = {
    "plain": PLAIN,
    "onnxruntime": EncoderVariant(
        "onnxruntime",
        query_rows_per_tile=8,
        one_bias=True,
        project_padding=False,
        separate_projections=True,
        flat_tokens=True,
        fold_batch_norms=True,
    ),
    "openvino": EncoderVariant(
        "openvino",
        query_rows_per_tile=16,
        one_bias=True,
        project_padding=False,
        separate_projections=True,
        flat_tokens=True,
        fold_batch_norms=True,
        heads_outermost=True,
    ),
    "torch": EncoderVariant(
        "torch",
        query_rows_per_tile=4,
        heads_per_tile=1,
        project_padding=False,
        separate_projections=True,
        fold_batch_norms=True,
    ),
    "torch-cuda": EncoderVariant("torch-cuda", project_padding=False, fold_batch_norms=True, fused_attention=True),
}
"""What suits each target best, as measured on CPUs; ``torch-cuda`` is chosen by reason and has not been measured."""


class _Module(Protocol):
    def modules(self) -> Iterator[Any]: ...


def apply_variant(module: _Module, variant: EncoderVariant) -> None:
    """Let a `torch.nn.Module` and its parts compute by a variant, in place; parts that offer no choice ignore it."""
    for part in module.modules():
        if hasattr(part, "variant"):
            part.variant = variant


def find_variant(name: str) -> EncoderVariant:
    """Return the variant of a target.

    Raises
    ------
    ExportError
        When no target has this name.

    Examples
    --------
    >>> find_variant("onnxruntime").query_rows_per_tile
    8
    """
    if name not in VARIANTS:
        raise ExportError(
            f"there is no encoder variant for the target {name!r}; accepted are {', '.join(VARIANTS)}",
            code="unknown_target",
        )
    return VARIANTS[name]
