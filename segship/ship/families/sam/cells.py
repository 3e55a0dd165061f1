# SPDX-License-Identifier: Apache-2.0
"""The image encoder of vit_b, vit_l and vit_h and the mask decoder as cells of `segship.backends.mindspore`.

The same functions of the same weights as `vit.py` and `mask_decoder.py`, which say where they come from, written for
what MindSpore's CPU kernels are fast at. Its convolutions are some 200 times slower than they could be, so there are
none: patches, and the convolutions of kernel and stride 2, are matrix products over cells; the 3 x 3 of the neck is one
product over nine shifted copies. Images are rows of cells, channels last, so LayerNorm2d is an ordinary norm. The terms
of relative positions are part of the attention's product instead of two additions to its scores, which are the largest
tensors: queries get their terms appended, keys get the rows and columns that they are in as zeros and ones.

A graph is compiled at the first call of each shape. Blocks of the encoder get their weights as arguments, so there are
two, windowed and global. The decoder is called for 1 or `OBJECTS` objects and for a power of 2 of points, and what is
missing is filled with empty places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, Tensor, jit, nn, ops
from mindspore.ops import operations as kernels
from numpy.typing import NDArray

from segship.arrays import AnyArray
from segship.backends import mindspore as runtime
from segship.backends.session import RunOptions, Session
from segship.errors import BackendUnavailable, CheckpointError, way
from segship.ship.families.sam.config import SamConfig, VitConfig
from segship.ship.options import ExportOptions
from segship.ship.weights import OpenedCheckpoint, Weights, naming_unusable, read_weights
from segship.spec import LABEL_EMPTY, MASK_TOKENS, image_encoder_spec, mask_decoder_spec

OBJECTS = 8
"""Objects of one call of the decoder; fewer than half of them are called one by one."""
FEWEST_POINTS = 4
SCORES_BYTES = 256 << 20
"""Of an attention's scores at once; more heads wait."""
ENCODER_EPS, DECODER_EPS, NORM_2D_EPS = 1e-6, 1e-5, 1e-6
MASKED_SCORE = -30000.0
HALF_ROOT = 0.7071067811865476

Take = Callable[..., AnyArray]
"""Takes a tensor of the checkpoint by its name, and checks its shape."""


def open_checkpoint(path: Path, run: RunOptions) -> OpenedCheckpoint:
    """Open a checkpoint of vit_b, vit_l or vit_h, of any sizes, as sessions that a predictor runs.

    Raises
    ------
    CheckpointError
        When the file cannot be read safely or does not fit.
    BackendUnavailable
        ``graph_unavailable`` for other models; when the device or precision is not here.
    """
    weights = read_weights(path)
    config = weights.config
    if weights.family != "sam" or not isinstance(config.encoder, VitConfig):
        message = (
            f"{path} is {config.architecture}, and the mindspore backend runs vit_b, vit_l and vit_h; use "
            f"{way('backend=', '--backend ')}torch, or make a bundle"
        )
        raise BackendUnavailable(message, code="graph_unavailable")
    with naming_unusable(weights.checkpoint):
        encoder, decoder = build(weights)
    networks = ((encoder, image_encoder_spec(config.geometry)), (decoder, mask_decoder_spec(config.geometry)))
    sessions: dict[str, Session] = {
        spec.name: runtime.Session(runtime.compile(network, spec, run), spec, run) for network, spec in networks
    }
    manifest = weights.verbs.manifest(weights, ExportOptions())
    return OpenedCheckpoint(manifest, sessions, weights.checkpoint.sha256)


def build(weights: Weights) -> tuple[ImageEncoder, MaskDecoder]:
    """Build both networks of exactly the tensors that the model has; others are refused as ``state_mismatch``."""
    state = dict(weights.state)
    wrong: list[str] = []

    def take(name: str, *shape: int) -> AnyArray:
        array = state.pop(name, None)
        if array is None or array.shape != shape or array.dtype != np.float32:
            found = "missing" if array is None else f"{array.shape} {array.dtype}"
            wrong.append(f"{name} is {found} instead of {shape} float32")
            return np.zeros(shape, np.float32)
        return array

    networks = ImageEncoder(weights.config, take), MaskDecoder(weights.config, take)
    wrong += [f"{name} is unexpected" for name in state]
    if wrong:
        message = f"the checkpoint does not fit the model: {'; '.join(wrong[:10])}; give one with exactly its keys"
        raise CheckpointError(message, code="state_mismatch")
    return networks


def _tensor(array: AnyArray) -> Any:
    return Tensor(np.ascontiguousarray(array))


class PatchCell(nn.Cell):  # type: ignore[misc]
    """Image (3, S, S) to tokens (cells, width), with their positions."""

    def __init__(self, side: int, patch: int) -> None:
        super().__init__()
        self.side, self.patch = side, patch
        self.product = kernels.MatMul(transpose_b=True)

    @jit  # type: ignore[untyped-decorator]
    def construct(self, image: Any, weight: Any, bias: Any, positions: Any) -> Any:
        side, patch = self.side, self.patch
        cells = image.reshape((3, side, patch, side, patch)).transpose((1, 3, 0, 2, 4))
        return self.product(cells.reshape((side * side, 3 * patch * patch)), weight) + bias + positions


class BlockCell(nn.Cell):  # type: ignore[misc]
    """A transformer block over tokens (side * side, width), which attends in windows of ``grid`` x ``grid``."""

    def __init__(self, side: int, grid: int, heads: int, width: int) -> None:
        super().__init__()
        self.side, self.grid, self.heads, self.width = side, grid, heads, width
        self.count = -(-side // grid)
        self.padding = self.count * grid - side
        self.depth = width // heads
        self.groups = self.count * self.count * heads
        fitting = max(1, SCORES_BYTES // (4 * grid**4))
        self.tile = max(size for size in range(1, self.groups + 1) if self.groups % size == 0 and size <= fitting)
        self.norm = kernels.LayerNorm(-1, -1, ENCODER_EPS)
        self.product, self.scores = kernels.MatMul(transpose_b=True), kernels.BatchMatMul(transpose_b=True)
        self.mix, self.softmax, self.erf = kernels.BatchMatMul(), kernels.Softmax(-1), kernels.Erf()
        row, column = np.divmod(np.arange(grid * grid), grid)
        self.places = Tensor(np.concatenate([np.eye(grid)[row], np.eye(grid)[column]], 1)[None].astype(np.float32))
        # Padding to windows; where there is none, nothing reads them.
        self.columns = Tensor(np.zeros((side, self.padding or 1, width), np.float32))
        self.rows = Tensor(np.zeros((self.padding or 1, side + self.padding, width), np.float32))

    @jit  # type: ignore[untyped-decorator]
    def construct(
        self, x: Any, norm: Any, shift: Any, qkv: Any, qkv_bias: Any, rel_h: Any, rel_w: Any, out: Any, out_bias: Any,
        norm2: Any, shift2: Any, wide: Any, wide_bias: Any, narrow: Any, narrow_bias: Any,
    ) -> Any:  # fmt: skip
        mixed = self.attend(self.padded(self.norm(x, norm, shift)[0]), qkv, qkv_bias, rel_h, rel_w)
        x = x + (self.product(mixed, out) + out_bias)
        hidden = self.product(self.norm(x, norm2, shift2)[0], wide) + wide_bias
        hidden = hidden * 0.5 * (self.erf(hidden * HALF_ROOT) + 1)
        return x + (self.product(hidden, narrow) + narrow_bias)

    def padded(self, x: Any) -> Any:
        """Return the tokens of whole windows."""
        if self.padding == 0:
            return x
        x = ops.concat((x.reshape((self.side, self.side, self.width)), self.columns), 1)
        return ops.concat((x, self.rows), 0).reshape((-1, self.width))

    def attend(self, x: Any, qkv: Any, bias: Any, rel_h: Any, rel_w: Any) -> Any:
        """Mix values by attention, some windows and heads at a time, and cut the padding off."""
        count, grid, heads, depth, groups = self.count, self.grid, self.heads, self.depth, self.groups
        parts = (self.product(x, qkv) + bias).reshape((count, grid, count, grid, 3, heads, depth))
        parts = parts.transpose((4, 0, 2, 5, 1, 3, 6)).reshape((3, groups, grid * grid, depth))
        query, key, value = parts[0], parts[1], parts[2]
        placed = query.reshape((groups, grid, grid, depth))
        shape = (groups, grid, depth, grid)
        by_row = self.mix(placed, ops.broadcast_to(rel_h, shape))
        by_column = self.mix(placed.transpose((0, 2, 1, 3)), ops.broadcast_to(rel_w, shape)).transpose((0, 2, 1, 3))
        terms = (query * depth**-0.5, by_row.reshape((groups, -1, grid)), by_column.reshape((groups, -1, grid)))
        query = ops.concat(terms, 2)
        places = ops.broadcast_to(self.places, (self.tile, grid * grid, 2 * grid))
        tiles = []
        for first in range(0, groups, self.tile):
            last = first + self.tile
            scores = self.scores(query[first:last], ops.concat((key[first:last], places), 2))
            tiles.append(self.mix(self.softmax(scores), value[first:last]))
        mixed = ops.concat(tiles, 0).reshape((count, count, heads, grid, grid, depth))
        mixed = mixed.transpose((0, 3, 1, 4, 2, 5)).reshape((count * grid, count * grid, self.width))
        return mixed[: self.side, : self.side].reshape((-1, self.width))


class NeckCell(nn.Cell):  # type: ignore[misc]
    """Tokens (cells, width) to the embedding (1, C, side, side)."""

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        self.side, self.channels = side, channels
        self.product, self.norm = kernels.MatMul(transpose_b=True), kernels.LayerNorm(-1, -1, NORM_2D_EPS)
        self.columns = Tensor(np.zeros((side, 1, channels), np.float32))
        self.rows = Tensor(np.zeros((1, side + 2, channels), np.float32))

    @jit  # type: ignore[untyped-decorator]
    def construct(
        self, x: Any, first: Any, norm: Any, shift: Any, second: Any, norm2: Any, shift2: Any
    ) -> Any:  # fmt: skip
        side, channels = self.side, self.channels
        x = self.norm(self.product(x, first), norm, shift)[0].reshape((side, side, channels))
        x = ops.concat((self.rows, ops.concat((self.columns, x, self.columns), 1), self.rows), 0)
        shifted = []
        for row in range(3):
            for column in range(3):
                shifted.append(x[row : row + side, column : column + side].reshape((side * side, channels)))
        x = self.norm(self.product(ops.concat(shifted, 1), second), norm2, shift2)[0]
        return x.transpose((1, 0)).reshape((1, channels, side, side))


class ImageEncoder:
    """The graph ``image_encoder``, image by image."""

    def __init__(self, config: SamConfig, take: Take) -> None:
        encoder, side, channels = config.encoder, config.embedding_size, config.embedding_channels
        assert isinstance(encoder, VitConfig), "the caller refuses others"
        width, patch = encoder.embed_dim, encoder.patch_size
        name = "image_encoder."
        patches = take(f"{name}patch_embed.proj.weight", width, 3, patch, patch).reshape(width, -1)
        bias = take(f"{name}patch_embed.proj.bias", width)
        positions = take(f"{name}pos_embed", 1, side, side, width).reshape(-1, width)
        self.steps = [(PatchCell(side, patch), [*map(_tensor, (patches, bias, positions))])]
        cells: dict[int, BlockCell] = {}
        for index in range(encoder.depth):
            grid = side if index in encoder.global_attention_blocks else encoder.window_size
            if grid not in cells:
                cells[grid] = BlockCell(side, grid, encoder.num_heads, width)
            self.steps.append((cells[grid], _block_weights(encoder, grid, f"{name}blocks.{index}.", take)))
        neck = [take(f"{name}neck.0.weight", channels, width, 1, 1).reshape(channels, width)]
        neck += [take(f"{name}neck.1.{part}", channels) for part in ("weight", "bias")]
        # (out, in, row, column) to the order of the shifted copies.
        second = take(f"{name}neck.2.weight", channels, channels, 3, 3)
        neck += [second.transpose(0, 2, 3, 1).reshape(channels, -1)]
        neck += [take(f"{name}neck.3.{part}", channels) for part in ("weight", "bias")]
        self.steps.append((NeckCell(side, channels), [*map(_tensor, neck)]))

    def __call__(self, images: NDArray[Any]) -> Sequence[NDArray[Any]]:
        """Encode (B, 3, S, S) to one array (B, C, h, w)."""
        embeddings = []
        for image in images:
            x = Tensor(image)
            for cell, weights in self.steps:
                x = cell(x, *weights)
            embeddings.append(x.asnumpy())
        return [np.concatenate(embeddings)]


def _block_weights(encoder: VitConfig, grid: int, name: str, take: Take) -> list[Any]:
    """Return the weights of a block in the order in which its cell takes them."""
    width, hidden = encoder.embed_dim, int(encoder.embed_dim * encoder.mlp_ratio)
    places = np.arange(grid)
    index = places[:, None] - places[None, :] + grid - 1
    tables = [take(f"{name}attn.rel_pos_{axis}", 2 * grid - 1, width // encoder.num_heads) for axis in "hw"]
    arrays = [
        *(take(f"{name}norm1.{part}", width) for part in ("weight", "bias")),
        *_linear(f"{name}attn.qkv", width, 3 * width, take),
        *(table[index].transpose(0, 2, 1) for table in tables),
        *_linear(f"{name}attn.proj", width, width, take),
        *(take(f"{name}norm2.{part}", width) for part in ("weight", "bias")),
        *_linear(f"{name}mlp.lin1", width, hidden, take),
        *_linear(f"{name}mlp.lin2", hidden, width, take),
    ]
    return [*map(_tensor, arrays)]


def _linear(name: str, inner: int, outer: int, take: Take) -> tuple[AnyArray, AnyArray]:
    return take(f"{name}.weight", outer, inner), take(f"{name}.bias", outer)


class Linear(nn.Cell):  # type: ignore[misc]
    """A linear layer over the last axis; ``weight`` is (out, in)."""

    def __init__(self, weight: AnyArray, bias: AnyArray) -> None:
        super().__init__()
        self.weight, self.bias = Parameter(_tensor(weight)), Parameter(_tensor(bias))
        self.inner, self.outer = weight.shape[1], weight.shape[0]
        self.product = kernels.MatMul(transpose_b=True)

    def construct(self, x: Any) -> Any:
        rows = self.product(x.reshape((-1, self.inner)), self.weight) + self.bias
        return rows.reshape((*x.shape[:-1], self.outer))


class Norm(nn.Cell):  # type: ignore[misc]
    """A layer norm over the last axis."""

    def __init__(self, name: str, width: int, eps: float, take: Take) -> None:
        super().__init__()
        self.gamma = Parameter(_tensor(take(f"{name}.weight", width)))
        self.beta = Parameter(_tensor(take(f"{name}.bias", width)))
        self.norm = kernels.LayerNorm(-1, -1, eps)

    def construct(self, x: Any) -> Any:
        return self.norm(x, self.gamma, self.beta)[0]


class Gelu(nn.Cell):  # type: ignore[misc]
    """GELU by the error function, as the published models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.erf = kernels.Erf()

    def construct(self, x: Any) -> Any:
        return x * 0.5 * (self.erf(x * HALF_ROOT) + 1)


class Mlp(nn.Cell):  # type: ignore[misc]
    """Linear layers with ReLU between them."""

    def __init__(self, names: Sequence[str], widths: Sequence[int], take: Take) -> None:
        super().__init__()
        pairs = zip(names, widths[:-1], widths[1:], strict=True)
        self.layers = nn.CellList([Linear(*_linear(name, inner, outer, take)) for name, inner, outer in pairs])
        self.relu = kernels.ReLU()
        self.hidden = len(names) - 1

    def construct(self, x: Any) -> Any:
        for index in range(self.hidden):
            x = self.relu(self.layers[index](x))
        return self.layers[self.hidden](x)


class Attention(nn.Cell):  # type: ignore[misc]
    """Multi-head attention; ``key_bias`` (N, 1, 1, keys) is added to the scores."""

    def __init__(self, name: str, width: int, inner: int, heads: int, take: Take) -> None:
        super().__init__()
        self.heads, self.depth = heads, inner // heads
        self.query, self.key, self.value = (
            Linear(*_linear(f"{name}.{part}_proj", width, inner, take)) for part in "qkv"
        )
        self.out = Linear(*_linear(f"{name}.out_proj", inner, width, take))
        self.scores, self.mix = kernels.BatchMatMul(transpose_b=True), kernels.BatchMatMul()
        self.softmax = kernels.Softmax(-1)

    def split(self, x: Any) -> Any:
        """Return (N, n, heads * d) as (N, heads, n, d)."""
        return x.reshape((x.shape[0], x.shape[1], self.heads, self.depth)).transpose((0, 2, 1, 3))

    def construct(self, query: Any, key: Any, value: Any, key_bias: Any) -> Any:
        asked = self.split(self.query(query)) * self.depth**-0.5
        scores = self.scores(asked, self.split(self.key(key)))
        if key_bias is not None:
            scores = scores + key_bias
        mixed = self.mix(self.softmax(scores), self.split(self.value(value))).transpose((0, 2, 1, 3))
        return self.out(mixed.reshape((mixed.shape[0], mixed.shape[1], self.heads * self.depth)))


class TwoWayBlock(nn.Cell):  # type: ignore[misc]
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, name: str, config: SamConfig, first: bool, take: Take) -> None:
        super().__init__()
        width, heads, self.first = config.embedding_channels, config.decoder_heads, first
        self.among = Attention(f"{name}.self_attn", width, width, heads, take)
        self.to_image = Attention(f"{name}.cross_attn_token_to_image", width, width // 2, heads, take)
        self.from_image = Attention(f"{name}.cross_attn_image_to_token", width, width // 2, heads, take)
        norms = [Norm(f"{name}.norm{number}", width, DECODER_EPS, take) for number in range(1, 5)]
        self.norm1, self.norm2, self.norm3, self.norm4 = norms
        layers = [f"{name}.mlp.lin1", f"{name}.mlp.lin2"]
        self.mlp = Mlp(layers, (width, config.decoder_mlp_dim, width), take)

    def construct(self, tokens: Any, image: Any, token_code: Any, image_code: Any, key_bias: Any) -> Any:
        if self.first:
            tokens = self.among(tokens, tokens, tokens, key_bias)
        else:
            placed = tokens + token_code
            tokens = tokens + self.among(placed, placed, tokens, key_bias)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.to_image(tokens + token_code, image + image_code, image, None))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.from_image(image + image_code, tokens + token_code, tokens, key_bias)
        return tokens, self.norm4(image)


class DecoderCell(nn.Cell):  # type: ignore[misc]
    """The graph ``mask_decoder`` for one number of objects and of points."""

    def __init__(self, config: SamConfig, take: Take) -> None:
        super().__init__()
        width, side, few = config.embedding_channels, config.embedding_size, config.mask_input_channels
        self.side, self.width, self.image_size = side, width, config.image_size
        matrix = take("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", 2, width // 2)
        self.across, self.down = Tensor(matrix[:1]), Tensor(matrix[1:])
        self.image_code = _tensor(_position_code(matrix, side))
        kinds = [take(f"prompt_encoder.point_embeddings.{label}.weight", 1, width) for label in range(4)]
        self.kinds = [Parameter(_tensor(kind), name=f"kind{label}") for label, kind in enumerate(kinds)]
        self.no_point = Tensor(take("prompt_encoder.not_a_point_embed.weight", 1, width))
        self.no_mask = Tensor(take("prompt_encoder.no_mask_embed.weight", 1, width))
        mask = "prompt_encoder.mask_downscaling"
        self.mask1 = Linear(*_strided(f"{mask}.0", 1, few // 4, take))
        self.mask2 = Linear(*_strided(f"{mask}.3", few // 4, few, take))
        last = take(f"{mask}.6.weight", width, few, 1, 1).reshape(width, few)
        self.mask3 = Linear(last, take(f"{mask}.6.bias", width))
        self.mask_norm1 = Norm(f"{mask}.1", few // 4, NORM_2D_EPS, take)
        self.mask_norm2 = Norm(f"{mask}.4", few, NORM_2D_EPS, take)
        decoder = "mask_decoder"
        tokens = [take(f"{decoder}.iou_token.weight", 1, width)]
        tokens += [take(f"{decoder}.mask_tokens.weight", MASK_TOKENS, width)]
        self.tokens = Tensor(np.concatenate(tokens)[None])
        blocks = [
            TwoWayBlock(f"{decoder}.transformer.layers.{index}", config, index == 0, take)
            for index in range(config.decoder_depth)
        ]
        self.blocks = nn.CellList(blocks)
        name = f"{decoder}.transformer.final_attn_token_to_image"
        self.final = Attention(name, width, width // 2, config.decoder_heads, take)
        self.final_norm = Norm(f"{decoder}.transformer.norm_final_attn", width, DECODER_EPS, take)
        upscaling = f"{decoder}.output_upscaling"
        self.up1 = Linear(*_transposed(f"{upscaling}.0", width, width // 4, take))
        self.up2 = Linear(*_transposed(f"{upscaling}.3", width // 4, width // 8, take))
        self.up_norm = Norm(f"{upscaling}.1", width // 4, NORM_2D_EPS, take)
        self.kernels = nn.CellList(
            [_head(f"{decoder}.output_hypernetworks_mlps.{index}", (width, width, width, width // 8), take)
             for index in range(MASK_TOKENS)]
        )  # fmt: skip
        hidden = config.iou_head_hidden_dim
        self.scores = _head(f"{decoder}.iou_prediction_head", (width, hidden, hidden, MASK_TOKENS), take)
        self.gelu, self.mix = Gelu(), kernels.BatchMatMul(transpose_b=True)
        self.relu, self.sin, self.cos = kernels.ReLU(), kernels.Sin(), kernels.Cos()

    @jit  # type: ignore[untyped-decorator]
    def construct(self, embedding: Any, coords: Any, labels: Any, mask: Any, has_mask: Any) -> Any:
        objects, side, width = coords.shape[0], self.side, self.width
        code = ops.concat((ops.broadcast_to(self.tokens, (objects, 1 + MASK_TOKENS, width)),
                           self.embed_points(coords, labels)), 1)  # fmt: skip
        empty = self.equal(labels, float(LABEL_EMPTY)) * MASKED_SCORE
        bias = ops.concat((ops.zeros((objects, 1 + MASK_TOKENS), mindspore.float32), empty), 1)
        bias = bias.reshape((objects, 1, 1, -1))
        image = embedding.reshape((1, width, side * side)).transpose((0, 2, 1)) + self.embed_mask(mask, has_mask)
        tokens = code
        for block in self.blocks:
            tokens, image = block(tokens, image, code, self.image_code, bias)
        tokens = self.final_norm(tokens + self.final(tokens + code, image + self.image_code, image, None))
        return self.scores(tokens[:, 0]), self.make_masks(tokens, image)

    def equal(self, labels: Any, label: float) -> Any:
        """Return 1 where whole numbers are ``label``, and 0 elsewhere."""
        return self.relu(1 - ops.abs(labels - label))

    def embed_points(self, coords: Any, labels: Any) -> Any:
        """Embed (N, P, 2) and labels (N, P) to (N, P, C)."""
        centred = (coords + 0.5) / self.image_size * 2 - 1
        phase = (centred[:, :, :1] * self.across + centred[:, :, 1:] * self.down) * 6.283185307179586
        labels = labels.expand_dims(-1)
        code = ops.concat((self.sin(phase), self.cos(phase)), 2) * ops.clamp(labels + 1, 0, 1)
        code = code + self.no_point * self.equal(labels, -1.0)
        for label in range(4):
            code = code + self.kinds[label] * self.equal(labels, float(label))
        return code

    def embed_mask(self, mask: Any, has_mask: Any) -> Any:
        """Embed (N, 1, 4h, 4w) to (N, h * w, C), the no-mask vector where ``has_mask`` (N,) is 0."""
        side = self.side
        cells = mask.reshape((-1, side, 2, 2, side, 2, 2)).transpose((0, 1, 4, 2, 5, 3, 6))
        x = self.gelu(self.mask_norm1(self.mask1(cells.reshape((-1, side * side, 2, 2, 4)))))
        x = self.gelu(self.mask_norm2(self.mask2(x.reshape((x.shape[0], side * side, -1)))))
        chosen = has_mask.reshape((-1, 1, 1))
        return chosen * self.mask3(x) + (1 - chosen) * self.no_mask

    def make_masks(self, tokens: Any, image: Any) -> Any:
        """Make (N, 4, 4h, 4w) of tokens and image; pixels of a cell stay together until the last step."""
        objects, side, width = tokens.shape[0], self.side, self.width
        x = self.up1(image).reshape((objects, side * side * 4, width // 4))
        x = self.up2(self.gelu(self.up_norm(x))).reshape((objects, side * side * 16, width // 8))
        made = []
        for index in range(MASK_TOKENS):
            made.append(self.kernels[index](tokens[:, 1 + index]))
        masks = self.mix(ops.stack(made, 1), self.gelu(x))
        masks = masks.reshape((objects, MASK_TOKENS, side, side, 2, 2, 2, 2)).transpose((0, 1, 2, 4, 6, 3, 5, 7))
        return masks.reshape((objects, MASK_TOKENS, 4 * side, 4 * side))


def _position_code(matrix: AnyArray, side: int) -> AnyArray:
    """Return the positional code of an image's cells, (1, cells, C)."""
    centres = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side) * 2 - 1
    phase = 2 * np.pi * (centres[None, :, None] * matrix[0] + centres[:, None, None] * matrix[1])
    code: AnyArray = np.concatenate([np.sin(phase), np.cos(phase)], -1).reshape(1, side * side, -1).astype(np.float32)
    return code


def _strided(name: str, inner: int, outer: int, take: Take) -> tuple[AnyArray, AnyArray]:
    """Return a convolution of kernel and stride 2 as a matrix over (row, column, channel) of a cell."""
    weight = take(f"{name}.weight", outer, inner, 2, 2)
    return weight.transpose(0, 2, 3, 1).reshape(outer, -1), take(f"{name}.bias", outer)


def _transposed(name: str, inner: int, outer: int, take: Take) -> tuple[AnyArray, AnyArray]:
    """Return a transposed convolution of kernel and stride 2 as a matrix to (row, column, channel) of a cell."""
    weight = take(f"{name}.weight", inner, outer, 2, 2)
    return weight.transpose(2, 3, 1, 0).reshape(4 * outer, inner), np.tile(take(f"{name}.bias", outer), 4)


def _head(name: str, widths: Sequence[int], take: Take) -> Mlp:
    return Mlp([f"{name}.layers.{index}" for index in range(len(widths) - 1)], widths, take)


class MaskDecoder:
    """The graph ``mask_decoder`` for any number of objects and points, in calls of few shapes."""

    def __init__(self, config: SamConfig, take: Take) -> None:
        self.cell = DecoderCell(config, take)

    def __call__(
        self, embedding: NDArray[Any], coords: NDArray[Any], labels: NDArray[Any], *masks: NDArray[Any]
    ) -> Sequence[NDArray[Any]]:
        """Decode; inputs and outputs are those of the contract, in order."""
        objects, points = labels.shape
        places = max(FEWEST_POINTS, 1 << (points - 1).bit_length()) - points
        coords = np.pad(coords, ((0, 0), (0, places), (0, 0)))
        labels = np.pad(labels, ((0, 0), (0, places)), constant_values=LABEL_EMPTY)
        answers = []
        for first, last in _calls(objects):
            call = [array[first:last] for array in (coords, labels, *masks)]
            missing = 0 if last - first == 1 else OBJECTS - (last - first)
            # Repeated objects cost no more than empty ones, and nothing new can happen in them.
            call = [np.concatenate([array, np.repeat(array[:1], missing, 0)]) for array in call]
            given = self.cell(Tensor(embedding), *map(_tensor, call))
            answers.append([tensor.asnumpy()[: last - first] for tensor in given])
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def _calls(objects: int) -> list[tuple[int, int]]:
    """Cut a number of objects into calls: `OBJECTS` at once, or one by one where fewer than half of that remain."""
    whole = objects - objects % OBJECTS
    calls = [(first, first + OBJECTS) for first in range(0, whole, OBJECTS)]
    if objects - whole >= OBJECTS // 2:
        return [*calls, (whole, objects)]
    return [*calls, *((index, index + 1) for index in range(whole, objects))]
