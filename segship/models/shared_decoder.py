# SPDX-License-Identifier: Apache-2.0
"""The mask decoder for prompts without a mask input: the same function of the same weights, at a quarter of the work.

`ImageSideGraph` computes once an image what all its prompts share; `SharedDecoderGraph` computes the rest. Together
they equal `segship.models.sam.MaskDecoderGraph` with ``has_mask_input`` 0, to rounding. The ship road exports both.

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
4. Second attention to the tokens: with B1g = P(g1 B1) and B2 = P(v Wo + (bo + b1) / heads), the image is
   Z2 = (P g1 P X0 + B' F) / s1, where B stacks B1g and B2, and F stacks W1 and s1 W2. Its norm follows rule 2 with
   q = |P g1 P X0 + B' F|^2: X2 = g2 (P g1 P X0 + B' F) / s2 + b2 with s2 = sqrt(q / C + eps s1^2). The last attention
   follows rule 3 with F for W1.
5. The first transposed convolution has kernel 2 and stride 2, so it is a matrix U on each cell; U g2 P g1 P X0 comes
   from the image side, and U g2 B' is applied to 2M rows. The norm behind it has no mean to subtract once U's rows are
   centred in each group of channels. The second one is a matrix on each pixel; two of its four output rows at a time,
   so that the pixels come out in the order of the image and nothing has to be interleaved.

Tokens stand last but one, cells last, so that the softmax over few tokens, written out, works on long rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.models.layers import LayerNorm2d
from segship.models.mask_decoder import MASKED_SCORE, Attention, TwoWayBlock
from segship.models.sam import Sam
from segship.spec import LABEL_EMPTY, MASK_TOKENS

# The upscaled image of one object takes 8 MiB at SAM's size. Worked on in strips of this many cells, what an operation
# wrote is still in the cache when the next one reads it.
CELLS_PER_STRIP = 1024


class _Start(NamedTuple):
    """What the tokens are before the first block."""

    code: Tensor
    """(N, n, C), all tokens."""
    bias: Tensor
    """(N, n), added to the scores of each token as a key: 0, or `MASKED_SCORE` for an empty place."""


class _View(NamedTuple):
    """How an object's image differs from the shared one: by ``rows' mixed``, and by a norm's divisor."""

    mixed: Tensor
    """(N, R, T), how much of each row every cell got."""
    rows: Tensor
    """(N, R, C), what was added."""
    values: Tensor
    """(N, R / n, n, d), the values of each token and head that the rows were made from."""
    scale: Tensor
    """(N, 1, T), the divisor."""


class ImageSideGraph(nn.Module):
    """The graph ``image_side`` of segship.spec: image embeddings (1, C, h, w) to what all prompts share."""

    image_code: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam
        self.register_buffer("image_code", sam.prompt_encoder.dense_positions().flatten(2)[0], persistent=False)

    def forward(self, image_embeddings: Tensor) -> tuple[Tensor, ...]:
        final = self.sam.mask_decoder.transformer.final_attn_token_to_image
        first, second = _blocks(self.sam)
        inward, outward = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        later_inward, later_outward = second.cross_attn_token_to_image, second.cross_attn_image_to_token
        image = image_embeddings.flatten(2)[0] + self.sam.prompt_encoder.no_mask_embed.weight.reshape(-1, 1)
        placed = image + self.image_code
        centred = _centre(image, 0)
        scaled = centred * first.norm4.weight[:, None]
        again = _centre(scaled, 0)
        weighted = _centre(again * first.norm4.weight[:, None], 0)
        last = again * second.norm4.weight[:, None]
        tensors = (
            inward.k_proj.weight @ placed,
            _project(inward.v_proj, image),
            _project(outward.q_proj, placed),
            outward.out_proj.weight.T @ centred,
            _energy(centred, outward.out_proj.bias, centred),
            later_inward.k_proj.weight @ scaled,
            later_inward.v_proj.weight @ scaled,
            later_outward.q_proj.weight @ scaled,
            torch.cat([outward.out_proj.weight.T @ weighted, later_outward.out_proj.weight.T @ again]),
            torch.cat(
                [_energy(again, outward.out_proj.bias, weighted), 2 * (_second_bias(first, second)[None] @ again)]
            ),
            final.k_proj.weight @ last,
            final.v_proj.weight @ last,
            _centre_groups(last.T @ _first_kernel(self.sam)),
        )
        return tuple(tensor.unsqueeze(0) for tensor in tensors)


class SharedDecoderGraph(nn.Module):
    """The graph ``shared_decoder`` of segship.spec: objects of one image, none with a mask input."""

    key_code: Tensor
    final_key_code: Tensor
    query_code: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam
        first, second = _blocks(sam)
        code = sam.prompt_encoder.dense_positions().flatten(2)[0]
        final = sam.mask_decoder.transformer.final_attn_token_to_image
        heads = first.self_attn.num_heads
        with torch.no_grad():
            keys = second.cross_attn_token_to_image.k_proj.weight @ code
            queries = _project(second.cross_attn_image_to_token.q_proj, code + first.norm4.bias[:, None])
            last = final.k_proj.weight @ code
            self.register_buffer("key_code", _split(keys.unsqueeze(0), heads), persistent=False)
            self.register_buffer("final_key_code", _split(last.unsqueeze(0), heads), persistent=False)
            rows = _split(queries.unsqueeze(0), heads)
            # Multiplied by the bias of an empty place, the row of ones masks it out.
            rows = torch.cat([rows, torch.ones_like(rows[:, :, :1])], dim=2)
            self.register_buffer("query_code", rows, persistent=False)

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
        first, second = _blocks(self.sam)
        start = self._tokens(point_coords, point_labels)
        shared = (first_keys, first_values, first_queries, first_outputs, first_energy)
        tokens, view = _first_block(first, start, shared)
        seen = view.rows * first.norm4.weight
        shared = (second_keys, second_values, second_queries, second_outputs, second_energy)
        codes = (self.key_code, self.query_code)
        tokens, view = _second_block(second, start, tokens, view, seen, shared, codes, first.norm4)
        transformer = self.sam.mask_decoder.transformer
        seen = view.rows * second.norm4.weight
        shared_last = (final_keys, final_values, self.final_key_code)
        attention = transformer.final_attn_token_to_image
        read = _read_image(attention, tokens + start.code, shared_last, view, seen, second.norm4.bias)
        tokens = transformer.norm_final_attn(tokens + read)
        iou_predictions = self.sam.mask_decoder.iou_prediction_head(tokens[:, 0])
        return iou_predictions, self._masks(tokens, view, seen, upscaled)

    def _tokens(self, point_coords: Tensor, point_labels: Tensor) -> _Start:
        decoder = self.sam.mask_decoder
        points = self.sam.prompt_encoder.embed_points(point_coords, point_labels)
        fixed = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight], dim=0)
        tokens = torch.cat([fixed.unsqueeze(0).expand(points.shape[0], -1, -1), points], dim=1)
        bias = (point_labels == LABEL_EMPTY).to(points.dtype) * MASKED_SCORE
        return _Start(tokens, F.pad(bias, (1 + MASK_TOKENS, 0)))

    def _masks(self, tokens: Tensor, view: _View, seen: Tensor, upscaled: Tensor) -> Tensor:
        """Return (N, 4, 4h, 4w) logits; rule 5."""
        decoder = self.sam.mask_decoder
        kernel, bias = _first_kernel(self.sam), _convolutions(self.sam)[0].bias
        assert bias is not None
        grid = self.sam.prompt_encoder.embedding_size
        offset = _centre_groups(_blocks(self.sam)[1].norm4.bias @ kernel + bias.repeat(4))
        rows = _centre_groups(seen @ kernel)
        kernels = torch.stack([m(tokens[:, 1 + i]) for i, m in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
        strips = []
        size = grid * _rows_per_strip(grid)
        for begin in range(0, grid * grid, size):
            part = slice(begin, begin + size)
            inverse = 1 / view.scale[:, :, part]
            shared = upscaled[:, part] * inverse.transpose(1, 2) + offset
            pixels = self._pixel_rows((view.mixed[:, :, part] * inverse).transpose(1, 2), rows, shared, kernels)
            strips.append(pixels.view(-1, MASK_TOKENS, 4 * size // grid, 4 * grid))
        return torch.cat(strips, dim=2)

    def _pixel_rows(self, mixed: Tensor, rows: Tensor, shared: Tensor, kernels: Tensor) -> Tensor:
        """Return the logits of a strip, (N, 4, rows of cells, 4, 4 * w), from its cells (N, cells, 2M)."""
        norm, transposed = self.sam.mask_decoder.output_upscaling[1], _convolutions(self.sam)[1]
        assert isinstance(norm, LayerNorm2d) and transposed.bias is not None
        channels, width = norm.weight.shape[0], transposed.weight.shape[1]
        # (row, column, out, in) of the second kernel; a row of it makes two pixels beside each other.
        second = transposed.weight.permute(2, 3, 1, 0).reshape(2, 2 * width, channels)
        cells, grid = mixed.shape[1], self.sam.prompt_encoder.embedding_size
        lines = []
        for upper in range(2):
            half = slice(upper * 2 * channels, (upper + 1) * 2 * channels)
            x = mixed @ rows[:, :, half] + shared[:, :, half]
            x = F.gelu(F.layer_norm(x.reshape(-1, channels), (channels,), norm.weight, norm.bias, norm.eps))
            for lower in range(2):
                y = F.gelu(F.linear(x, second[lower], transposed.bias.repeat(2))).view(-1, 4 * cells, width)
                lines.append((kernels @ y.transpose(1, 2)).view(-1, MASK_TOKENS, cells // grid, 1, 4 * grid))
        return torch.cat(lines, dim=3)


def _blocks(sam: Sam) -> tuple[TwoWayBlock, TwoWayBlock]:
    first, second = sam.mask_decoder.transformer.layers
    assert isinstance(first, TwoWayBlock) and isinstance(second, TwoWayBlock)
    return first, second


def _first_block(block: TwoWayBlock, start: _Start, shared: Sequence[Tensor]) -> tuple[Tensor, _View]:
    """Return the tokens after the first block and the image as they left it; rules 1 and 2."""
    heads, code = block.self_attn.num_heads, start.code
    keys, values, queries, outputs, energy = shared
    tokens = block.norm1(block.self_attn(code, code, code, start.bias[:, None, None, :]))
    attention = block.cross_attn_token_to_image
    weights = (_queries(attention, tokens + code) @ _split(keys, heads)).softmax(dim=-1)
    tokens = block.norm2(tokens + attention.out_proj(_merge(weights @ _split(values, heads).transpose(2, 3))))
    tokens = block.norm3(tokens + block.mlp(tokens))

    attention = block.cross_attn_image_to_token
    scores = _keys(attention, tokens + code) @ _split(queries, heads) + start.bias[:, None, :, None]
    mixed = _softmax_over_tokens(scores).flatten(1, 2)
    own = _heads(attention, attention.v_proj(tokens))
    rows = _centre(_spread(attention, own, attention.out_proj.bias))
    energy = energy + _low_rank_energy(mixed, rows, own, _split(outputs, heads))
    scale = (energy / code.shape[2] + block.norm4.eps).sqrt()
    return tokens, _View(mixed, rows, own, scale)


def _second_block(
    block: TwoWayBlock,
    start: _Start,
    tokens: Tensor,
    view: _View,
    seen: Tensor,
    shared: Sequence[Tensor],
    codes: tuple[Tensor, Tensor],
    norm: nn.LayerNorm,
) -> tuple[Tensor, _View]:
    """Return the tokens after the second block and the image as they left it; rules 3 and 4.

    ``seen`` are the rows of the view with the weight of the first block's ``norm``; ``codes`` are positions as keys and
    as queries.
    """
    heads, code = block.self_attn.num_heads, start.code
    keys, values, queries, outputs, energy = shared
    placed = tokens + code
    tokens = block.norm1(tokens + block.self_attn(placed, placed, tokens, start.bias[:, None, None, :]))
    attention = block.cross_attn_token_to_image
    read = _read_image(attention, tokens + code, (keys, values, codes[0]), view, seen, norm.bias)
    tokens = block.norm2(tokens + read)
    tokens = block.norm3(tokens + block.mlp(tokens))

    attention = block.cross_attn_image_to_token
    own_keys = _keys(attention, tokens + code)
    low_rank = own_keys @ _heads(attention, F.linear(seen, attention.q_proj.weight)).transpose(2, 3)
    scores = (own_keys @ _split(queries, heads)).flatten(1, 2) + low_rank.flatten(1, 2) @ view.mixed
    biased_keys = torch.cat([own_keys, start.bias[:, None, :, None].expand(-1, heads, -1, -1)], dim=-1)
    scores = scores / view.scale + (biased_keys @ codes[1]).flatten(1, 2)
    again = _softmax_over_tokens(torch.unflatten(scores, 1, (heads, code.shape[1])), view.scale.unsqueeze(1))
    own = _heads(attention, attention.v_proj(tokens))
    later = _centre(_spread(attention, own, attention.out_proj.bias + norm.bias))
    mixed = torch.cat([view.mixed, again.flatten(1, 2)], dim=1)
    rows = torch.cat([_centre(seen), later], dim=1)
    own = torch.cat([view.values, own], dim=1)
    energy = energy[:, :1] + view.scale * energy[:, 1:]
    energy = energy + _low_rank_energy(mixed, rows, own, _split(outputs, 2 * heads))
    scale = (energy / code.shape[2] + block.norm4.eps * view.scale * view.scale).sqrt()
    return tokens, _View(mixed, rows, own, scale)


def _read_image(
    attention: Attention,
    x: Tensor,
    shared: tuple[Tensor, Tensor, Tensor],
    view: _View,
    seen: Tensor,
    norm_bias: Tensor,
) -> Tensor:
    """Attend from tokens to an image that is a shared part plus a low rank; rule 3.

    ``shared`` are projected keys, values and positions; ``seen`` are the rows of the view with the norm's weight.
    """
    keys, values, code = shared
    by_head = (attention.num_heads, x.shape[1])
    queries = _queries(attention, x)
    own_keys = _heads(attention, F.linear(seen, attention.k_proj.weight))
    own_values = _heads(attention, F.linear(seen, attention.v_proj.weight))
    low_rank = (queries @ own_keys.transpose(2, 3)).flatten(1, 2) @ view.mixed
    scores = ((queries @ _split(keys, by_head[0])).flatten(1, 2) + low_rank) / view.scale
    weights = (scores + (queries @ code).flatten(1, 2)).softmax(dim=-1) / view.scale
    read = torch.unflatten(weights, 1, by_head) @ _split(values, by_head[0]).transpose(2, 3)
    read = read + torch.unflatten(weights @ view.mixed.transpose(1, 2), 1, by_head) @ own_values
    constant = F.linear(norm_bias, attention.v_proj.weight, attention.v_proj.bias)
    out: Tensor = attention.out_proj(_merge(read) + constant)
    return out


def _low_rank_energy(mixed: Tensor, rows: Tensor, values: Tensor, outputs: Tensor) -> Tensor:
    """Return what ``rows' mixed`` adds to the squared length of a shared image for each cell, (N, 1, T); rule 2."""
    products = (2 * values @ outputs).flatten(1, 2) + (rows @ rows.transpose(1, 2)) @ mixed
    # In two steps, since one long sum over a middle axis of a single object runs on one thread.
    by_head = torch.unflatten(mixed * products, 1, (values.shape[1], values.shape[2]))
    return by_head.sum(dim=2).sum(dim=1, keepdim=True)


def _softmax_over_tokens(scores: Tensor, scale: Tensor | None = None) -> Tensor:
    """Softmax of (N, heads, n, T) over the n tokens, times ``scale`` (N, 1, 1, T)."""
    powers = (scores - scores.amax(dim=2, keepdim=True)).exp()
    total = powers.sum(dim=2, keepdim=True)
    return powers * (1 / total if scale is None else scale / total)


def _spread(attention: Attention, values: Tensor, bias: Tensor) -> Tensor:
    """Apply the output projection to each token's values of each head: (N, heads, n, d) to (N, heads * n, C)."""
    heads = attention.num_heads
    weight = attention.out_proj.weight.T.reshape(1, heads, attention.head_dim, -1)
    return (values @ weight + bias / heads).flatten(1, 2)


def _second_bias(first: TwoWayBlock, second: TwoWayBlock) -> Tensor:
    return second.cross_attn_image_to_token.out_proj.bias + first.norm4.bias


def _energy(image: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
    """Return |image|^2 + 2 bias seen for each cell, (1, T)."""
    return (image * image).sum(dim=0, keepdim=True) + 2 * (bias[None] @ seen)


def _convolutions(sam: Sam) -> tuple[nn.ConvTranspose2d, nn.ConvTranspose2d]:
    first, _, _, second, _ = sam.mask_decoder.output_upscaling
    assert isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.ConvTranspose2d)
    return first, second


def _first_kernel(sam: Sam) -> Tensor:
    """Return the first transposed convolution as a matrix (C, 4 * out), its columns (row, column, out)."""
    weight = _convolutions(sam)[0].weight
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _centre_groups(x: Tensor) -> Tensor:
    """Subtract from each of the four groups of the last axis its mean, as the norm behind the convolution will."""
    return _centre(torch.unflatten(x, -1, (4, -1))).flatten(-2)


def _centre(x: Tensor, dim: int = -1) -> Tensor:
    return x - x.mean(dim=dim, keepdim=True)


def _project(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to the columns of (C, T)."""
    return linear.weight @ x + linear.bias[:, None]


def _split(x: Tensor, heads: int) -> Tensor:
    """Split (1, heads * d, T) to (1, heads, d, T)."""
    return torch.unflatten(x, 1, (heads, -1))


def _queries(attention: Attention, x: Tensor) -> Tensor:
    return _heads(attention, attention.q_proj(x) * attention.scale)


def _keys(attention: Attention, x: Tensor) -> Tensor:
    # The keys are the tokens here, fewer than the queries, so they carry the scale.
    return _heads(attention, attention.k_proj(x) * attention.scale)


def _heads(attention: Attention, x: Tensor) -> Tensor:
    """Split (N, n, heads * d) to (N, heads, n, d)."""
    return x.view(x.shape[0], -1, attention.num_heads, attention.head_dim).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _rows_per_strip(grid: int) -> int:
    """Return how many rows of cells make a strip: a divisor of the grid, near `CELLS_PER_STRIP` cells."""
    return max(rows for rows in range(1, max(1, CELLS_PER_STRIP // grid) + 1) if grid % rows == 0)
