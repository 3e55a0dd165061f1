# SPDX-License-Identifier: Apache-2.0
"""The mask decoder for prompts without a mask input: the same function of the same weights, at a quarter of the work.

`ImageSideGraph` computes once an image what all its prompts share; `SharedDecoderGraph` computes the rest. Together
they equal `MaskDecoderGraph` with ``has_mask_input`` 0, to rounding, for a transformer of two blocks.
`SelectiveDecoderGraph` does the same, and makes masks only of those scores that are wanted; bundles hold this one.

How it works. The plain decoder carries an image of T cells and C channels for every object and projects all of it ten
times. But without a mask input every object begins with the same image, and attention from the image to the n tokens
only ever adds combinations of M = heads * n vectors to it. So an object's image is kept as *shared matrix + low rank*
and never written down. Images stand channels first, (C, T); ``P`` subtracts the mean over channels, as a norm does.

1. First attention to the tokens. X0 is the embedding with the no-mask vector, W1 (M, T) the attention weights, the
   rows of B1 (M, C) are P(v_hn Wo_h + bo / heads): the output projection is applied to n tokens instead of T cells,
   and the bias is shared out because the weights of a head sum to 1. Then P of the sum is Z1 = P X0 + B1' W1, and
   X1 = g1 Z1 / s1 + b1 with s1 = sqrt(|Z1|^2 / C + eps) for each cell.
2. Norms without the image. |Z1|^2 = |P X0|^2 + sum_m W1_m (2 B1 P X0 + B1 B1' W1)_m. B1 P X0 needs of the image only
   Wo' P X0 (heads * d, T), which the image side holds. All that this costs is (M, M) @ (M, T).
3. Queries q of the tokens on X1 plus positions E: q Wk X1 = (q (Wk g1 P X0) + (q Wk g1 B1') W1) / s1, up to terms
   equal for all cells, which a softmax over cells does not see; Wk g1 P X0 comes from the image side and Wk E is
   constant. Values likewise: with weights w, (w / s1) (Wv g1 P X0)' + ((w / s1) W1') (B1 g1 Wv') + (Wv b1 + bv).
4. Second attention to the tokens: with B1g = P(g1 B1), B2 = P(v Wo + (bo + b1) / heads) and F2 = s1 W2, the image is
   Z2 = (P g1 P X0 + B1g' W1 + B2' F2) / s1. Its norm follows rule 2 with q = s1^2 |Z2|^2, whose part of both sums is
   W1' B1g B1g' W1 + F2' (2 B2 B1g' W1 + B2 B2' F2), three products where the stacked rows would need four, and no
   stacking: X2 = g2 (P g1 P X0 + B1g' W1 + B2' F2) / s2 + b2 with s2 = sqrt(q / C + eps s1^2). The last attention
   follows rule 3 with both sums.
5. The first transposed convolution has kernel 2 and stride 2, so it is a matrix U on each cell: U g2 P g1 P X0 comes
   from the image side, U g2 [B1g; B2]' is applied to 2M rows, and what remains is one product of these with C columns
   a cell. U's columns are centred in each group of channels, so that the norm behind it finds a mean of zero. The
   second convolution is a matrix on each of the four new pixels, two of its output rows at a time, so that pixels come
   out in the order of the image: line y of four holds row y of every cell's 4 x 4.
6. Scores need no mask. So an object of which no score passes is left out behind rule 4, where half of the work is
   still to come, and of the others only those masks are written that pass; each object and each cell is computed by
   itself, so what remains is the same. Cells that hold only padding can be left out likewise.

Tokens are (N, n, heads * d) or, split by head, (N, heads, n, d); images are (1, heads * d, T) or (1, heads, d, T).
Cells stand last, so that the softmax over few tokens, written out, works on long rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.ship.families.layers import LayerNorm2d
from segship.ship.families.sam.mask_decoder import MASKED_SCORE, Attention, TwoWayBlock, label_is
from segship.ship.families.sam.model import Sam
from segship.spec import LABEL_EMPTY, MASK_TOKENS


def over_cells(x: Tensor, image: Tensor, whole: bool) -> Tensor:
    """Return x (N, heads, n, d) @ image (1, heads, d, T).

    ``whole``: as one product a head for all objects, (heads, N * n, d) @ (heads, d, T), turned round afterwards. An
    engine that lays out the image anew for each product of a batch does so once a head then, not once a head and
    object, which with 7 tokens costs as much as the product.
    """
    if not whole:
        return x @ image
    objects, heads, tokens, width = x.shape
    products = x.transpose(0, 1).reshape(heads, objects * tokens, width) @ image[0]
    return torch.unflatten(products, 1, (objects, tokens)).transpose(0, 1)


def from_cells(weights: Tensor, image: Tensor, whole: bool) -> Tensor:
    """Return weights (N, heads, n, T) @ image (1, heads, d, T)', in the order of `over_cells`."""
    if not whole:
        return weights @ image.transpose(2, 3)
    objects, heads, tokens, cells = weights.shape
    products = weights.transpose(0, 1).reshape(heads, objects * tokens, cells) @ image[0].transpose(1, 2)
    return torch.unflatten(products, 1, (objects, tokens)).transpose(0, 1)


def softmax_over_tokens(scores: Tensor, whole: bool, scale: Tensor | None = None) -> Tensor:
    """Softmax of (N, heads, n, T) over the n tokens, times ``scale`` (N, 1, 1, T); ``whole`` as the engine has it."""
    if whole:
        weights = scores.softmax(dim=2)
        return weights if scale is None else weights * scale
    powers = (scores - scores.amax(dim=2, keepdim=True)).exp()
    total = powers.sum(dim=2, keepdim=True)
    return powers * (1 / total if scale is None else scale / total)


def spread(attention: Attention, values: Tensor, bias: Tensor) -> Tensor:
    """Apply the output projection to each token's values of each head: (N, heads, n, d) to (N, heads * n, C)."""
    heads = attention.num_heads
    weight = attention.out_proj.weight.T.reshape(1, heads, attention.head_dim, -1)
    return (values @ weight + bias / heads).flatten(1, 2)


def project(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to the columns of (C, T)."""
    return linear.weight @ x + linear.bias[:, None]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split (1, heads * d, T) to (1, heads, d, T)."""
    return torch.unflatten(x, 1, (heads, -1))


def queries_of(attention: Attention, x: Tensor) -> Tensor:
    """Return the scaled queries of tokens by head."""
    return split_tokens(attention, attention.q_proj(x) * attention.scale)


def keys_of(attention: Attention, x: Tensor) -> Tensor:
    """Return the keys of tokens by head, scaled in the place of the queries."""
    # The keys are the tokens here, fewer than the queries, so they carry the scale.
    return split_tokens(attention, attention.k_proj(x) * attention.scale)


def split_tokens(attention: Attention, x: Tensor) -> Tensor:
    """Split (N, n, heads * d) to (N, heads, n, d)."""
    return x.view(x.shape[0], -1, attention.num_heads, attention.head_dim).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Undo `split_tokens`."""
    return x.transpose(1, 2).flatten(2)


class Added(NamedTuple):
    """What tokens added to an object's image: ``rows' mixed``."""

    mixed: Tensor
    """(N, M, T), how much of each row every cell got."""
    rows: Tensor
    """(N, M, C)."""


def mask_lines(
    sam: Sam, added: Sequence[Added], scale: Tensor, upscaled: Tensor, kernels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the logits of all masks, (K, masks, 4 * cells) for each of the four rows of pixels of a row of cells.

    ``added`` has rows times the last norm's weight, ``mixed`` (K, M, cells); ``scale`` (K, 1, cells) is that norm's
    divisor; ``upscaled`` (1, cells, C) is from the image side, and ``kernels`` are (K, masks, C / 8).
    """
    norm, (first, second) = sam.mask_decoder.output_upscaling[1], convolutions(sam)
    assert isinstance(norm, LayerNorm2d) and first.bias is not None and second.bias is not None
    last_block = sam.mask_decoder.transformer.layers[1]
    assert isinstance(last_block, TwoWayBlock)
    channels, width = norm.weight.shape[0], second.weight.shape[1]
    objects, cells = scale.shape[0], scale.shape[2]
    kernel = first_kernel(sam)
    offset = centre_groups(last_block.norm4.bias @ kernel + first.bias.repeat(4))
    rows = centre_groups(torch.cat([part.rows for part in added], dim=1) @ kernel)
    inverse = (1 / scale).transpose(1, 2)
    mixed = torch.cat([part.mixed for part in added], dim=1).transpose(1, 2)
    # (row, column, out, in) of the second kernel; a row of it makes two pixels beside each other.
    pixel_kernel = second.weight.permute(2, 3, 1, 0).reshape(2, 2 * width, channels)
    lines = []
    for upper in range(2):
        half = slice(upper * 2 * channels, (upper + 1) * 2 * channels)
        # The divisor last, which with both sums is one pass behind the product in engines that fuse such things.
        x = (mixed @ rows[:, :, half] + upscaled[:, :, half]) * inverse + offset[half]
        # One axis for all pixels: OpenVINO has a single kernel for the norm of a matrix.
        x = x.reshape(objects * cells * 2, channels)
        x = F.gelu(F.layer_norm(x, (channels,), norm.weight, norm.bias, norm.eps))
        for lower in range(2):
            y = F.gelu(F.linear(x, pixel_kernel[lower], second.bias.repeat(2))).reshape(objects, 4 * cells, width)
            lines.append(kernels @ y.transpose(1, 2))
    return lines[0], lines[1], lines[2], lines[3]


def convolutions(sam: Sam) -> tuple[nn.ConvTranspose2d, nn.ConvTranspose2d]:
    """Return the two transposed convolutions."""
    first, _, _, second, _ = sam.mask_decoder.output_upscaling
    assert isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.ConvTranspose2d)
    return first, second


def first_kernel(sam: Sam) -> Tensor:
    """Return the first transposed convolution as a matrix (C, 4 * out), its columns (row, column, out)."""
    weight = convolutions(sam)[0].weight
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def centre_groups(x: Tensor) -> Tensor:
    """Subtract from each of the four groups of the last axis its mean, as the norm behind the convolution will."""
    return centre(torch.unflatten(x, -1, (4, -1))).flatten(-2)


def centre(x: Tensor, dim: int = -1) -> Tensor:
    """Subtract the mean along an axis."""
    return x - x.mean(dim=dim, keepdim=True)


class _Start(NamedTuple):
    """What the tokens are before the first block."""

    code: Tensor
    """(N, n, C), all tokens."""
    bias: Tensor
    """(N, n), added to the scores of each token as a key: 0, or `MASKED_SCORE` for an empty place."""


class _View(NamedTuple):
    """How an object's image differs from the shared one: by sums of rows, and by a norm's divisor."""

    added: tuple[Added, ...]
    """What was added; the rows times the norm's weight."""
    scale: Tensor
    """(N, 1, T), the divisor."""


class _Decoded(NamedTuple):
    """What a decoder knows of its objects before it makes a mask."""

    iou_predictions: Tensor
    """(N, 4)."""
    kernels: Tensor
    """(N, 4, C / 8), from which each mask is made."""
    view: _View


def image_code(sam: Sam) -> Tensor:
    """Return the positions of the cells, (C, T)."""
    return sam.prompt_encoder.dense_positions().flatten(2)[0]


def position_codes(sam: Sam) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positions of the cells as keys of the second block and of the last attention, and as queries.

    Each is (1, heads, d, T); the queries have one row more.
    """
    first, second = _blocks(sam)
    code, heads = image_code(sam), first.self_attn.num_heads
    keys = second.cross_attn_token_to_image.k_proj.weight @ code
    last = sam.mask_decoder.transformer.final_attn_token_to_image.k_proj.weight @ code
    queries = project(second.cross_attn_image_to_token.q_proj, code + first.norm4.bias[:, None])
    rows = split_heads(queries.unsqueeze(0), heads)
    # Multiplied by the bias of an empty place, the row of ones masks it out.
    rows = torch.cat([rows, torch.ones_like(rows[:, :, :1])], dim=2)
    return split_heads(keys.unsqueeze(0), heads), split_heads(last.unsqueeze(0), heads), rows


class ImageSideGraph(nn.Module):
    """The graph ``image_side`` of segship.spec: image embeddings (1, C, h, w) to what all prompts share."""

    image_code: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam
        self.register_buffer("image_code", image_code(sam), persistent=False)

    def forward(self, image_embeddings: Tensor) -> tuple[Tensor, ...]:
        final = self.sam.mask_decoder.transformer.final_attn_token_to_image
        first, second = _blocks(self.sam)
        inward, outward = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        later_inward, later_outward = second.cross_attn_token_to_image, second.cross_attn_image_to_token
        image = image_embeddings.flatten(2)[0] + self.sam.prompt_encoder.no_mask_embed.weight.reshape(-1, 1)
        # A graph that is traced makes its codes of weights, so that it has no others.
        code = image_code(self.sam) if torch.compiler.is_exporting() else self.image_code
        placed = image + code
        centred = centre(image, 0)
        scaled = centred * first.norm4.weight[:, None]
        again = centre(scaled, 0)
        weighted = centre(again * first.norm4.weight[:, None], 0)
        last = again * second.norm4.weight[:, None]
        later_bias = later_outward.out_proj.bias + first.norm4.bias
        tensors = (
            inward.k_proj.weight @ placed,
            project(inward.v_proj, image),
            project(outward.q_proj, placed),
            outward.out_proj.weight.T @ centred,
            _energy(centred, outward.out_proj.bias, centred),
            later_inward.k_proj.weight @ scaled,
            later_inward.v_proj.weight @ scaled,
            later_outward.q_proj.weight @ scaled,
            torch.cat([outward.out_proj.weight.T @ weighted, later_outward.out_proj.weight.T @ again]),
            torch.cat([_energy(again, outward.out_proj.bias, weighted), 2 * (later_bias[None] @ again)]),
            final.k_proj.weight @ last,
            final.v_proj.weight @ last,
            centre_groups(last.T @ first_kernel(self.sam)),
        )
        return tuple(tensor.unsqueeze(0) for tensor in tensors)


class _Decoder(nn.Module):
    """What both decoders share: everything but the masks."""

    key_code: Tensor
    final_key_code: Tensor
    query_code: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam
        with torch.no_grad():
            codes = position_codes(sam)
        for name, code in zip(("key_code", "final_key_code", "query_code"), codes, strict=True):
            self.register_buffer(name, code, persistent=False)

    def _decode(
        self,
        first_side: Sequence[Tensor],
        second_side: Sequence[Tensor],
        last_side: tuple[Tensor, Tensor],
        point_coords: Tensor,
        point_labels: Tensor,
    ) -> _Decoded:
        """Run the transformer; the sides are what `ImageSideGraph` returns for each block and the last attention."""
        decoder = self.sam.mask_decoder
        whole = decoder.variant.heads_outermost
        first, second = _blocks(self.sam)
        start = self._tokens(point_coords, point_labels)
        tokens, values, view = _first_block(first, start, first_side, whole)
        # As in `ImageSideGraph`.
        made = position_codes(self.sam) if torch.compiler.is_exporting() else None
        keys, final_keys, queries = made or (self.key_code, self.final_key_code, self.query_code)
        codes = (keys, queries)
        tokens, view = _second_block(second, start, tokens, values, view, second_side, codes, first.norm4.bias, whole)
        weight = second.norm4.weight
        view = _View(tuple(Added(part.mixed, part.rows * weight) for part in view.added), view.scale)
        attention = decoder.transformer.final_attn_token_to_image
        shared = (*last_side, final_keys)
        read = _read_image(attention, tokens + start.code, shared, view, second.norm4.bias, whole)
        tokens = decoder.transformer.norm_final_attn(tokens + read)
        kernels = [mlp(tokens[:, 1 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)]
        return _Decoded(decoder.iou_prediction_head(tokens[:, 0]), torch.stack(kernels, dim=1), view)

    def _tokens(self, point_coords: Tensor, point_labels: Tensor) -> _Start:
        decoder = self.sam.mask_decoder
        points = self.sam.prompt_encoder.embed_points(point_coords, point_labels)
        fixed = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight], dim=0)
        tokens = torch.cat([fixed.unsqueeze(0).expand(points.shape[0], -1, -1), points], dim=1)
        bias = label_is(point_labels, LABEL_EMPTY) * MASKED_SCORE
        return _Start(tokens, F.pad(bias, (1 + MASK_TOKENS, 0)))


class SharedDecoderGraph(_Decoder):
    """The graph ``shared_decoder`` of segship.spec: objects of one image, none with a mask input."""

    def forward(
        self,
        first_keys: Tensor,
        first_values: Tensor,
        first_queries: Tensor,
        first_outputs: Tensor,
        first_energy: Tensor,
        second_keys: Tensor,
        second_values: Tensor,
        second_queries: Tensor,
        second_outputs: Tensor,
        second_energy: Tensor,
        final_keys: Tensor,
        final_values: Tensor,
        upscaled: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        first = (first_keys, first_values, first_queries, first_outputs, first_energy)
        second = (second_keys, second_values, second_queries, second_outputs, second_energy)
        found = self._decode(first, second, (final_keys, final_values), point_coords, point_labels)
        lines = mask_lines(self.sam, found.view.added, found.view.scale, upscaled, found.kernels)
        grid = self.sam.prompt_encoder.embedding_size
        rows = [torch.unflatten(line, 2, (grid, 1, 4 * grid)) for line in lines]
        return found.iou_predictions, torch.cat(rows, dim=3).flatten(2, 3)


class SelectiveDecoderGraph(_Decoder):
    """The graph ``selective_decoder`` of segship.spec: the same objects, masks only of scores that pass; rule 6."""

    def forward(
        self,
        first_keys: Tensor,
        first_values: Tensor,
        first_queries: Tensor,
        first_outputs: Tensor,
        first_energy: Tensor,
        second_keys: Tensor,
        second_values: Tensor,
        second_queries: Tensor,
        second_outputs: Tensor,
        second_energy: Tensor,
        final_keys: Tensor,
        final_values: Tensor,
        upscaled: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        min_iou: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        first = (first_keys, first_values, first_queries, first_outputs, first_energy)
        second = (second_keys, second_values, second_queries, second_outputs, second_energy)
        found = self._decode(first, second, (final_keys, final_values), point_coords, point_labels)
        passes = found.iou_predictions > min_iou
        objects = passes.any(dim=1).nonzero()[:, 0]
        # Places among the objects that are left, and the masks of each.
        places, masks = passes[objects].nonzero().unbind(dim=1)
        rows, columns = upscaled.shape[1], upscaled.shape[2]
        added = tuple(
            Added(self._cells(part.mixed[objects], rows, columns), part.rows[objects]) for part in found.view.added
        )
        scale = self._cells(found.view.scale[objects], rows, columns)
        lines = mask_lines(self.sam, added, scale, upscaled.flatten(1, 2), found.kernels[objects])
        chosen = places * MASK_TOKENS + masks
        wanted = [torch.unflatten(line.flatten(0, 1)[chosen], 1, (rows, 1, 4 * columns)) for line in lines]
        kept = torch.stack([objects[places], masks], dim=1)
        return found.iou_predictions, kept, torch.cat(wanted, dim=2).flatten(1, 2)

    def _cells(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Cut (K, R, T) to the first rows and columns of the grid, (K, R, rows * columns)."""
        grid = self.sam.prompt_encoder.embedding_size
        return torch.unflatten(x, 2, (grid, grid))[:, :, :rows, :columns].flatten(2)


def _blocks(sam: Sam) -> tuple[TwoWayBlock, TwoWayBlock]:
    first, second = sam.mask_decoder.transformer.layers
    assert isinstance(first, TwoWayBlock) and isinstance(second, TwoWayBlock)
    return first, second


def _first_block(
    block: TwoWayBlock, start: _Start, shared: Sequence[Tensor], whole: bool
) -> tuple[Tensor, Tensor, _View]:
    """Return the tokens after the first block, their values, and the image as they left it; rules 1 and 2."""
    heads, code = block.self_attn.num_heads, start.code
    keys, values, queries, outputs, energy = shared
    tokens = block.norm1(block.self_attn(code, code, code, start.bias[:, None, None, :]))
    attention = block.cross_attn_token_to_image
    weights = over_cells(queries_of(attention, tokens + code), split_heads(keys, heads), whole).softmax(dim=-1)
    read = merge_heads(from_cells(weights, split_heads(values, heads), whole))
    tokens = block.norm2(tokens + attention.out_proj(read))
    tokens = block.norm3(tokens + block.mlp(tokens))

    attention = block.cross_attn_image_to_token
    own_keys = keys_of(attention, tokens + code)
    scores = over_cells(own_keys, split_heads(queries, heads), whole) + start.bias[:, None, :, None]
    mixed = softmax_over_tokens(scores, whole)
    own = split_tokens(attention, attention.v_proj(tokens))
    rows = centre(spread(attention, own, attention.out_proj.bias))
    products = (rows @ rows.transpose(1, 2)) @ mixed.flatten(1, 2)
    energy = energy + _added_energy(mixed, over_cells(2 * own, split_heads(outputs, heads), whole), products)
    scale = (energy / code.shape[2] + block.norm4.eps).sqrt()
    return tokens, own, _View((Added(mixed.flatten(1, 2), rows * block.norm4.weight),), scale)


def _second_block(
    block: TwoWayBlock,
    start: _Start,
    tokens: Tensor,
    values: Tensor,
    view: _View,
    shared: Sequence[Tensor],
    codes: tuple[Tensor, Tensor],
    norm_bias: Tensor,
    whole: bool,
) -> tuple[Tensor, _View]:
    """Return the tokens after the second block and the image as they left it; rules 3 and 4.

    ``values`` are those that the rows of the view were made from; ``codes`` are positions as keys and as queries;
    ``norm_bias`` is of the first block's last norm.
    """
    heads, code = block.self_attn.num_heads, start.code
    ((mixed, seen),) = view.added
    placed = tokens + code
    tokens = block.norm1(tokens + block.self_attn(placed, placed, tokens, start.bias[:, None, None, :]))
    attention = block.cross_attn_token_to_image
    read = _read_image(attention, tokens + code, (shared[0], shared[1], codes[0]), view, norm_bias, whole)
    tokens = block.norm2(tokens + read)
    tokens = block.norm3(tokens + block.mlp(tokens))

    attention = block.cross_attn_image_to_token
    scores = _image_scores(attention, tokens + code, start.bias, shared[2], codes[1], view, whole)
    again = softmax_over_tokens(torch.unflatten(scores, 1, (heads, -1)), whole, view.scale.unsqueeze(1))
    own = split_tokens(attention, attention.v_proj(tokens))
    before, later = centre(seen), centre(spread(attention, own, attention.out_proj.bias + norm_bias))
    first_outputs, outputs = torch.split(split_heads(shared[3], 2 * heads), heads, dim=1)
    by_head = torch.unflatten(mixed, 1, (heads, -1))
    energy = shared[4][:, :1] + view.scale * shared[4][:, 1:]
    products = (before @ before.transpose(1, 2)) @ mixed
    energy = energy + _added_energy(by_head, over_cells(2 * values, first_outputs, whole), products)
    products = (2 * later @ before.transpose(1, 2)) @ mixed + (later @ later.transpose(1, 2)) @ again.flatten(1, 2)
    energy = energy + _added_energy(again, over_cells(2 * own, outputs, whole), products)
    scale = (energy / code.shape[2] + block.norm4.eps * view.scale * view.scale).sqrt()
    return tokens, _View((Added(mixed, before), Added(again.flatten(1, 2), later)), scale)


def _image_scores(
    attention: Attention, x: Tensor, bias: Tensor, queries: Tensor, code: Tensor, view: _View, whole: bool
) -> Tensor:
    """Return (N, heads * n, T) scores of the tokens x as keys of each cell's query; rule 3, the other way round."""
    heads = attention.num_heads
    ((mixed, seen),) = view.added
    own_keys = keys_of(attention, x)
    low_rank = own_keys @ split_tokens(attention, F.linear(seen, attention.q_proj.weight)).transpose(2, 3)
    scores = over_cells(own_keys, split_heads(queries, heads), whole).flatten(1, 2) + low_rank.flatten(1, 2) @ mixed
    biased_keys = torch.cat([own_keys, bias[:, None, :, None].expand(-1, heads, -1, -1)], dim=-1)
    return scores / view.scale + over_cells(biased_keys, code, whole).flatten(1, 2)


def _read_image(
    attention: Attention,
    x: Tensor,
    shared: tuple[Tensor, Tensor, Tensor],
    view: _View,
    norm_bias: Tensor,
    whole: bool,
) -> Tensor:
    """Attend from tokens to an image that is a shared part plus low ranks; rule 3.

    ``shared`` are projected keys, values and positions.
    """
    keys, values, code = shared
    by_head = (attention.num_heads, x.shape[1])
    queries = queries_of(attention, x)
    scores = over_cells(queries, split_heads(keys, by_head[0]), whole).flatten(1, 2)
    for mixed, seen in view.added:
        own_keys = split_tokens(attention, F.linear(seen, attention.k_proj.weight))
        scores = scores + (queries @ own_keys.transpose(2, 3)).flatten(1, 2) @ mixed
    scores = scores / view.scale + over_cells(queries, code, whole).flatten(1, 2)
    weights = scores.softmax(dim=-1) / view.scale
    read = from_cells(torch.unflatten(weights, 1, by_head), split_heads(values, by_head[0]), whole)
    for mixed, seen in view.added:
        own_values = split_tokens(attention, F.linear(seen, attention.v_proj.weight))
        read = read + torch.unflatten(weights @ mixed.transpose(1, 2), 1, by_head) @ own_values
    constant = F.linear(norm_bias, attention.v_proj.weight, attention.v_proj.bias)
    out: Tensor = attention.out_proj(merge_heads(read) + constant)
    return out


def _added_energy(mixed: Tensor, linear: Tensor, products: Tensor) -> Tensor:
    """Return (N, 1, T), ``mixed' (linear + products)`` of (N, heads, n, T) for each cell; rule 2."""
    by_head = mixed * (linear + torch.unflatten(products, 1, mixed.shape[1:3]))
    # In two steps, since one long sum over a middle axis of a single object runs on one thread.
    return by_head.sum(dim=2).sum(dim=1, keepdim=True)


def _energy(image: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
    """Return |image|^2 + 2 bias seen for each cell, (1, T)."""
    return (image * image).sum(dim=0, keepdim=True) + 2 * (bias[None] @ seen)
