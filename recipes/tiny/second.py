# SPDX-License-Identifier: Apache-2.0
"""What second answers are worth: a score for masks that everything mode asks once more, learned in spare units.

    python -m recipes.tiny.second WEIGHTS --train POOL/train --scenes POOL/validation --out FITTED.safetensors

Training boxes things, and masks that clicks on things give, so the score of mask 0 knows little of boxes around
nothing, and everything mode asks many of them. Hidden units of the IoU head that never fire learn what has to be added
to the score of mask 0, so that it is the IoU with the best known thing for second answers, and what it was for all
other prompts. Scores of masks 1 to 3, by which clicks are ranked, do not change by a bit; nor does any mask.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from recipes.tiny.everything import Setting, ask
from recipes.tiny.samples import CLICKS, SampleBuilder, ScenePool, crop_scene, truth_in_frame
from recipes.tiny.scenes import Scene
from recipes.tiny.scores import ask_grid, ask_prompts, auc, known_things, read_weights
from segship.ship.families.sam.mask_decoder import Mlp
from segship.ship.families.sam.model import Sam

ASKED = Setting(0.3, 0.2, 0.7)
"""Which first answers are asked once more."""
SIDE = 14
STEPS, BATCH, LEARNING_RATE = 2000, 384, 2e-3
KEEP_WEIGHT = 4.0
"""Of what other prompts' scores change, beside what second answers' scores err."""
DECAY = 1.0
"""Of the spare units' weights, beside the learning rate."""
START = 0.7
"""Of the usual deviation of new weights."""


class Second(NamedTuple):
    """Second answers of one or several pictures: tokens (n, C) of the IoU head, and IoUs (n,) with the best thing."""

    tokens: Tensor
    ious: Tensor


def ask_again(sam: Sam, scene: Scene, rng: np.random.Generator, side: int = SIDE) -> Second:
    """Ask a crop of a scene everything, and each mask that stays once more, by its box and itself."""
    picture, full = crop_scene(rng, scene)
    size = sam.config.image_size
    things = known_things(truth_in_frame(full, size), size)[1]
    if not len(things):
        return Second(torch.zeros(0, sam.config.embedding_channels), torch.zeros(0))
    found = ask(sam, picture, things, side, [ASKED])
    return Second(found.tokens, torch.from_numpy(found.second.objects.max(1)))


def spare_units(head: Mlp, tokens: Tensor) -> list[Tensor]:
    """Return which hidden units (hidden,) bool of each but the last layer never fire."""
    spare = []
    for layer in list(head.layers)[:-1]:
        tokens = layer(tokens).relu()
        spare.append((tokens > 0).sum(0) == 0)
    return spare


def fit_spare(head: Mlp, second: Second, kept: list[Tensor], *, steps: int = STEPS, seed: int = 0) -> tuple[int, ...]:
    """Teach spare units what second answers are worth; return how many there are in each layer.

    Parameters
    ----------
    kept
        Tokens (n, C) of prompts whose scores stay as they are, in groups that count alike.
    """
    generator = torch.Generator().manual_seed(seed)
    first, middle, last = (cast(nn.Linear, layer) for layer in head.layers)
    spare = spare_units(head, torch.cat([second.tokens, *kept]))
    masks: dict[Tensor, Tensor] = {last.bias: torch.zeros_like(last.bias)}
    with torch.no_grad():
        meant = [head(tokens)[:, 0] for tokens in kept]
        # What hears a spare unit that begins to fire is another spare one, or mask 0's score.
        middle.weight[:, spare[0]] = 0
        last.weight[:, spare[1]] = 0
        for layer, units in zip((first, middle), spare, strict=True):
            new = torch.randn(int(units.sum()), layer.in_features, generator=generator)
            layer.weight[units] = new * START * (2 / layer.in_features) ** 0.5
            layer.bias[units] = 0
            masks |= {layer.weight: units[:, None].float(), layer.bias: units.float()}
        masks[last.weight] = torch.zeros_like(last.weight)
        masks[last.weight][0] = spare[1].float()
    head.requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(second.tokens), (BATCH,), generator=generator)
        loss = (head(second.tokens[rows])[:, 0] - second.ious[rows]).square().mean()
        for tokens, scores in zip(kept, meant, strict=True):
            rows = torch.randint(len(tokens), (BATCH,), generator=generator)
            loss = loss + KEEP_WEIGHT * (head(tokens[rows])[:, 0] - scores[rows]).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        for parameter in head.parameters():
            assert parameter.grad is not None
            parameter.grad *= masks[parameter]
        optimizer.step()
        with torch.no_grad():
            for parameter in head.parameters():
                parameter -= masks[parameter] * parameter * schedule.get_last_lr()[0] * DECAY
        schedule.step()
    head.requires_grad_(False)
    return tuple(int(units.sum()) for units in spare)


def ask_scenes(sam: Sam, pool: ScenePool, indices: NDArray[np.intp], seed: int) -> tuple[Second, list[Tensor]]:
    """Return second answers of scenes, and tokens of clicks and of other prompts on them."""
    rng, builder = np.random.default_rng(seed), SampleBuilder(sam.config.image_size)
    second, clicks, prompts = [], [], []
    for count, index in enumerate(indices.tolist()):
        scene = pool.scene(index)
        second.append(ask_again(sam, scene, rng))
        if (asked := ask_prompts(sam, scene, rng, builder)) is not None:
            clicks.append(asked.tokens[:CLICKS])
            prompts.append(asked.tokens[CLICKS:])
        # The grids of half of the scenes are enough to know clicks by.
        if count % 2 and (grid := ask_grid(sam, scene, rng, SIDE, SIDE * SIDE)) is not None:
            clicks.append(grid.tokens)
    return Second(*(torch.cat(parts) for parts in zip(*second, strict=True))), [torch.cat(clicks), torch.cat(prompts)]


def main() -> None:
    """Read the command line, fit, and say what became of the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--train", type=Path, required=True, help="a pool to fit on")
    parser.add_argument("--count", type=int, default=120, help="of its scenes, at random")
    parser.add_argument("--scenes", type=Path, required=True, help="a pool that was kept apart")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sam, pool = read_weights(arguments.weights), ScenePool(arguments.train)
    chosen = np.random.default_rng(5).permutation(len(pool))[: arguments.count]
    second, kept = ask_scenes(sam, pool, chosen, 0)
    apart, others = ask_scenes(sam, ScenePool(arguments.scenes), np.arange(20), 1)
    head = sam.mask_decoder.iou_prediction_head
    before = [head(tokens) for tokens in (apart.tokens, *others)]
    spare = fit_spare(head, second, kept)
    after = [head(tokens) for tokens in (apart.tokens, *others)]
    print(f"{len(second.tokens)} second answers; spare units {spare}; apart, with {len(apart.tokens)}:")
    for name, scores in (("before", before[0][:, 0]), ("after", after[0][:, 0])):
        wrong = float((scores - apart.ious).square().mean().sqrt())
        print(f"{name}: error {wrong:.3f}, AUC {auc(scores.numpy(), (apart.ious > 0.5).numpy()):.3f}")
    for name, old, new in zip(("clicks", "other prompts"), before[1:], after[1:], strict=True):
        change = ", ".join(f"{value:.4f}" for value in (new - old).square().mean(0).sqrt().tolist())
        print(f"change of scores of {name}, masks 0 to 3: {change}")
    save_file({name: tensor.contiguous() for name, tensor in sam.state_dict().items()}, str(arguments.out))


if __name__ == "__main__":
    main()
