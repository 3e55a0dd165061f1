# SPDX-License-Identifier: Apache-2.0
"""Train ``tiny`` from procedural scenes, on CPU or CUDA; resumable.

    python -m recipes.tiny.train --scenes POOL/train --validation POOL/validation --out RUN --minutes 70

The schedule runs over wall-clock minutes of training (or over ``--steps``): warm-up and cosine on the whole model, at
one image size and then at a larger one, and a last phase in which only the head that predicts IoUs learns, on the
averaged weights. ``RUN/tiny.safetensors`` always holds the averaged weights in fp32; ``RUN/checkpoint.pt`` continues a
run.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from recipes.tiny import forward
from recipes.tiny.batches import Batch, SampleStream
from recipes.tiny.clicks import append_clicks, box_prompts, error_clicks
from recipes.tiny.losses import ambiguous_loss, pair_losses, ranking_loss
from recipes.tiny.samples import CLICKS, TWO_CLICKS, Sample, ScenePool
from recipes.tiny.validation import validate, validation_samples
from segship.ship.families.sam.config import SAM_ARCHITECTURES
from segship.ship.families.sam.hybrid_vit import StemBlock
from segship.ship.families.sam.model import Sam, build_sam

# The prompts of a picture that are decoded a second time, with corrective clicks: one click, two clicks, one box.
REFINED = (0, CLICKS, CLICKS + TWO_CLICKS)
MAX_EXTRA_CLICKS = 3
SINGLE_MASK_WEIGHT, TOP_WEIGHT, CLEAR_WEIGHT, REFINE_WEIGHT, IOU_WEIGHT, RANKING_WEIGHT = 0.3, 0.5, 1.3, 0.7, 1.0, 2.0
AGAIN_WEIGHT = 0.4
MEANT = 0.4
"""The least IoU of a click's mask with a known thing, from which on asking once more means that thing."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What a run is made with; kept in its checkpoint."""

    scenes: Path
    validation: Path
    out: Path
    init: Path | None = None
    minutes: float = 180.0
    steps: int = 0
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 150
    image_size: int = 256
    final_image_size: int = 384
    final_size_from: float = 0.72
    iou_phase_from: float = 0.96
    ema_decay: float = 0.998
    seed: int = 0
    device: str = "cpu"
    threads: int = 2
    workers: int = 1
    save_every_minutes: float = 3.0
    validate_every_minutes: float = 8.0
    validation_scenes: int = 150


def new_model(image_size: int) -> Sam:
    """Build ``tiny`` at an image size, with the start that suits it."""
    sam = build_sam(replace(SAM_ARCHITECTURES["tiny"], image_size=image_size)).train()
    for module in sam.modules():
        if isinstance(module, StemBlock):
            nn.init.constant_(cast(nn.BatchNorm2d, module.conv2[1]).weight, 0.2)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    return _channels_last(sam)


def _channels_last(sam: Sam) -> Sam:
    # Convolutions are faster so; torch's stubs do not know the option for modules.
    moved: Sam = cast(Any, sam).to(memory_format=torch.channels_last)
    return moved


def resize_positions(state: dict[str, Tensor], grid: int) -> dict[str, Tensor]:
    """Return a state dict whose table of positions (1, g, g, C) fits another grid."""
    table = state["image_encoder.pos_embed"].permute(0, 3, 1, 2)
    table = F.interpolate(table, (grid, grid), mode="bicubic", align_corners=False)
    return state | {"image_encoder.pos_embed": table.permute(0, 2, 3, 1).contiguous()}


class Trainer:
    """A run: the model, its average, the optimizer, and where the schedule stands."""

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        self.step, self.elapsed, self.images = 0, 0.0, 0
        self.image_size = options.image_size
        self.in_iou_phase = False
        self._adopt(self._start(), None)
        self.sums: dict[str, float] = {}
        self.samples: list[Sample] = []

    def _start(self) -> dict[str, Tensor]:
        """Return new weights, or those of an earlier run at this run's image size."""
        options = self.options
        state = new_model(options.image_size).state_dict()
        if options.init is None:
            return state
        given = {name: tensor.float() for name, tensor in load_file(str(options.init)).items()}
        given = {name: tensor.to(state[name].dtype) for name, tensor in given.items()}
        return resize_positions(given, options.image_size // SAM_ARCHITECTURES["tiny"].encoder.stride)

    def _adopt(self, state: dict[str, Tensor], average: dict[str, Tensor] | None) -> None:
        """Take weights at the current image size; the optimizer starts anew."""
        self.model = new_model(self.image_size).to(self.device)
        self.model.load_state_dict(state)
        self.average = copy.deepcopy(self.model)
        if average is not None:
            self.average.load_state_dict(average)
        self.average.requires_grad_(False)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.options.learning_rate, betas=(0.9, 0.99))

    @property
    def progress(self) -> float:
        """How much of the schedule is done, 0 to 1."""
        options = self.options
        return self.step / options.steps if options.steps else self.elapsed / (60 * options.minutes)

    def grow(self) -> None:
        """Go on at the final image size; moments of unchanged parameters stay."""
        moments = self.optimizer.state_dict()["state"]
        self.image_size = self.options.final_image_size
        grid = self.image_size // self.model.config.encoder.stride
        states = (resize_positions(dict(m.state_dict()), grid) for m in (self.model, self.average))
        self._adopt(*states)
        order = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(order):
            if index in moments and moments[index]["exp_avg"].shape == parameter.shape:
                self.optimizer.state[parameter] = moments[index]

    def enter_iou_phase(self) -> None:
        """Freeze the averaged weights and go on with their IoU head alone."""
        self.in_iou_phase = True
        self.model.load_state_dict(self.average.state_dict())
        self.model.eval().requires_grad_(False)
        head = self.model.mask_decoder.iou_prediction_head.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(head.parameters(), lr=self.options.learning_rate, weight_decay=0.0)

    def set_learning_rate(self) -> None:
        """Warm up, then follow a cosine to the end of the phase."""
        options = self.options
        start, end = (options.iou_phase_from, 1.0) if self.in_iou_phase else (0.0, options.iou_phase_from)
        within = min(max((self.progress - start) / (end - start), 0.0), 1.0)
        rate = options.learning_rate * max(0.5 + 0.5 * math.cos(math.pi * within), 0.005)
        if not self.in_iou_phase:
            rate *= min(1.0, (self.step + 1) / options.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def train_step(self, batch: Batch) -> None:
        """Learn from one batch of tensors."""
        self.set_learning_rate()
        losses = self._losses(Batch(*(part.to(self.device, non_blocking=True) for part in batch)))
        total = sum(losses[name] * weight for name, weight in self._loss_weights().items())
        assert isinstance(total, Tensor)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        norm = nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], 1.0)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.step += 1
        self.images += len(batch[0])
        self._update_average()
        for name, value in (losses | {"norm": norm, "count": torch.ones(())}).items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())

    def _loss_weights(self) -> dict[str, float]:
        if self.in_iou_phase:
            return {"iou": IOU_WEIGHT, "ranking": RANKING_WEIGHT}
        return {
            "click": 1.0,
            "clear": CLEAR_WEIGHT,
            "single": SINGLE_MASK_WEIGHT,
            "top": TOP_WEIGHT,
            "refine": REFINE_WEIGHT,
            "again": AGAIN_WEIGHT,
            "iou": IOU_WEIGHT,
        }

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        images, coords, labels, targets, weights = batch
        images = images.contiguous(memory_format=torch.channels_last)
        with forward.autocast(self.device), torch.set_grad_enabled(not self.in_iou_phase):
            image = forward.encode(self.model, images)
        with forward.autocast(self.device):
            logits, predicted = forward.decode(self.model, image, coords, labels)
        truth = targets.flatten(3).float() / 4
        flat, predicted = logits.flatten(3).float(), predicted.float()
        # Clicks: the three masks share out what the click may mean. Everything else is clear and has mask 0.
        share = weights[:, :CLICKS].flatten(0, 1)
        clicks = pair_losses(flat[:, :CLICKS].flatten(0, 1), truth[:, :CLICKS].flatten(0, 1))
        clear = pair_losses(flat[:, CLICKS:, :1].flatten(0, 1), truth[:, CLICKS:, :1].flatten(0, 1))
        # Mask 0 and the predicted IoUs answer what the click was made for, target 0: in the mean over clicks that is
        # what a person most likely means there.
        single = clicks.loss[:, 0, 0].mean()
        ambiguous = clicks._replace(loss=clicks.loss[:, 1:])
        goal = clicks.iou[:, :, 0]
        guess = predicted[:, :CLICKS].flatten(0, 1)
        # So does the mask that the model itself ranks first, as well as it can beside its part in the three.
        first = 1 + guess[:, 1:].argmax(1, keepdim=True)
        top = clicks.loss[:, :, 0].gather(1, first).mean()
        clear_guess = predicted[:, CLICKS:, :1].flatten(0, 1)
        refined = self._refine(image, batch, logits.detach(), predicted.detach(), clicks.iou[:, 1:, 0])
        ranked = clicks.iou[torch.arange(len(first), device=self.device), first[:, 0]]
        again = self._ask_again(image, batch, logits.detach(), first, ranked)
        known = (share > 0).float()
        reached = (clicks.iou[:, 1:].max(1).values * known).sum() / known.sum()
        return {
            "click": ambiguous_loss(ambiguous, share),
            "single": single,
            "top": top,
            "clear": clear.loss.mean(),
            "refine": refined[0],
            "again": again[0],
            "iou": F.mse_loss(guess, goal)
            + F.mse_loss(clear_guess, clear.iou[:, :, 0])
            + 0.5 * (refined[1] + again[1]),
            "ranking": ranking_loss(guess[:, 1:], goal[:, 1:]),
            "click_iou": reached.detach(),
            "clear_iou": clear.iou.mean(),
            "refine_iou": refined[2],
            "again_iou": again[2],
        }

    def _refine(
        self, image: Tensor, batch: Batch, logits: Tensor, predicted: Tensor, click_iou: Tensor
    ) -> tuple[Tensor, ...]:
        """Decode some prompts again with corrective clicks, mostly with the first mask; loss, IoU error, IoU."""
        size = len(batch.image)
        rows = torch.arange(size, device=self.device)
        targets = batch.targets[:, REFINED, 0].float() / 4
        first = logits[:, REFINED, 0].float()
        ranked_first = predicted[:, 0, 1:].argmax(1)
        nearest = click_iou.view(size, CLICKS, -1)[:, 0].argmax(1)
        chosen = torch.where(torch.rand(size, device=self.device) < 0.5, ranked_first, nearest)
        first[:, 0] = logits[rows, 0, 1 + chosen].float()
        clicks = error_clicks(first.flatten(0, 1), targets.flatten(0, 1), MAX_EXTRA_CLICKS)
        places, kinds = (part[:, REFINED].flatten(0, 1) for part in (batch.coords, batch.labels))
        used = int(torch.randint(1, MAX_EXTRA_CLICKS + 1, ()))
        places, kinds = append_clicks(places, kinds, clicks, used)
        places, kinds = places.view(size, len(REFINED), -1, 2), kinds.view(size, len(REFINED), -1)
        mask_input = first if float(torch.rand(())) < 0.7 else None
        with forward.autocast(self.device):
            masks, guess = forward.decode(self.model, image, places, kinds, mask_input)
        pairs = pair_losses(
            masks[:, :, :1].float().flatten(3).flatten(0, 1), targets.flatten(0, 1).flatten(1).unsqueeze(1)
        )
        error = F.mse_loss(guess[:, :, 0].float().flatten(), pairs.iou.flatten())
        return pairs.loss.mean(), error, pairs.iou.mean()

    def _ask_again(
        self, image: Tensor, batch: Batch, logits: Tensor, first: Tensor, likeness: Tensor
    ) -> tuple[Tensor, ...]:
        """Ask the masks that clicks rank first once more, by box and mask, as everything does; loss, IoU error, IoU.

        What is meant is the known thing that is most like the first mask, by ``likeness`` (B * CLICKS, targets). Where
        there is none, only the score learns.
        """
        size, asked = len(batch.image), CLICKS - 1
        rank = first.view(size, CLICKS)[:, 1:].flatten()
        masks = logits[:, 1:CLICKS].float().flatten(0, 1)[torch.arange(size * asked, device=self.device), rank]
        targets = batch.targets[:, 1:CLICKS].float().flatten(0, 1).flatten(2) / 4
        places, kinds = (part.unflatten(0, (size, asked)) for part in box_prompts(masks > 0))
        with forward.autocast(self.device):
            again, guess = forward.decode(self.model, image, places, kinds, masks.unflatten(0, (size, asked)))
        known = (batch.weights[:, 1:CLICKS].flatten(0, 1) > 0).float()
        like, meant = (likeness.unflatten(0, (size, CLICKS))[:, 1:].flatten(0, 1) * known).max(1)
        pairs = pair_losses(again[:, :, :1].float().flatten(3).flatten(0, 1), targets)
        clear = (like > MEANT).float()
        loss = pairs.loss[:, 0].gather(1, meant[:, None])[:, 0]
        reached = (pairs.iou[:, 0] * known).max(1).values
        error = ((guess[:, :, 0].float().flatten() - reached).square() * (like > 0)).mean()
        return (loss * clear).mean(), error, (reached * clear).sum() / clear.sum().clamp(min=1)

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = 0.0 if self.in_iou_phase else min(self.options.ema_decay, self.step / (self.step + 20))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        for mine, new in zip(self.average.buffers(), self.model.buffers(), strict=True):
            if mine.dtype.is_floating_point:
                mine.lerp_(new, 1 - decay)
            else:
                mine.copy_(new)

    def report(self, seconds: float) -> str:
        """Return the means since the last report on one line."""
        count = self.sums.pop("count")
        means = " ".join(f"{name} {value / count:.4f}" for name, value in self.sums.items())
        self.sums = {}
        rate = count * self.options.batch_size / seconds
        where = f"{self.elapsed / 60:.2f} min step {self.step} images {self.images} size {self.image_size}"
        return f"{where} {means} | {rate:.1f} images/s"

    def save(self) -> None:
        """Write the checkpoint and the averaged weights, each into place by a rename."""
        out = self.options.out
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            **{name: getattr(self, name) for name in ("step", "elapsed", "images", "image_size", "in_iou_phase")},
        }
        torch.save(state, out / "checkpoint.part")
        (out / "checkpoint.part").rename(out / "checkpoint.pt")
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.average.state_dict().items()}
        note = {"architecture": "tiny", "image_size": str(self.image_size), "images_seen": str(self.images)}
        save_file(tensors, out / "tiny.part", metadata=note)
        (out / "tiny.part").rename(out / "tiny.safetensors")

    def resume(self) -> bool:
        """Continue from the checkpoint if there is one."""
        path = self.options.out / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.image_size = state["image_size"]
        self._adopt(state["model"], state["average"])
        if state["in_iou_phase"]:
            self.enter_iou_phase()
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        self.step, self.elapsed, self.images = state["step"], state["elapsed"], state["images"]
        return True

    def batches(self) -> Iterator[Batch]:
        """Stream batches at the current image size."""
        options = self.options
        stream = SampleStream(options.scenes, self.image_size, (options.seed, self.step))
        prefetch = {"prefetch_factor": 4} if options.workers else {}
        loader = DataLoader(stream, options.batch_size, num_workers=options.workers, **prefetch)  # type: ignore[arg-type]
        return (Batch(*batch) for batch in loader)

    def run(self) -> None:
        """Train to the end of the schedule."""
        options = self.options
        self.load_validation()
        batches = self.batches()
        clock = time.monotonic()
        reported, next_save = self.elapsed, self.elapsed
        next_check = self.elapsed + 60 * options.validate_every_minutes
        while self.progress < 1:
            if self.image_size != options.final_image_size and self.progress >= options.final_size_from:
                self.grow()
                self.load_validation()
                batches = self.batches()
            if not self.in_iou_phase and self.progress >= options.iou_phase_from:
                print("before the IoU phase:", self.check(), flush=True)
                self.enter_iou_phase()
                clock = time.monotonic()
            self.train_step(next(batches))
            now = time.monotonic()
            self.elapsed, clock = self.elapsed + now - clock, now
            if self.step % 50 == 0:
                print(self.report(self.elapsed - reported), flush=True)
                reported = self.elapsed
            if self.elapsed >= next_save:
                next_save = self.elapsed + 60 * options.save_every_minutes
                self.save()
            if self.elapsed >= next_check:
                next_check = self.elapsed + 60 * options.validate_every_minutes
                print("validation:", self.check(), flush=True)
                clock = time.monotonic()
        self.save()
        print("validation at the end:", self.check(), flush=True)

    def load_validation(self) -> None:
        """Build the held-out samples at the current image size."""
        pool = ScenePool(self.options.validation)
        self.samples = validation_samples(pool, self.image_size, self.options.validation_scenes)

    def check(self) -> str:
        """Return the averaged weights' scores on the held-out samples; this takes no training time."""
        return validate(self.average, self.samples, self.device).line()


def parse_options() -> TrainOptions:
    """Read the command line: an option for each field of `TrainOptions`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"Path": Path, "Path | None": Path, "float": float, "int": int, "str": str}
    for field in fields(TrainOptions):
        kind = kinds[str(field.type)]
        required = field.name in ("scenes", "validation", "out")
        default = None if required else field.default
        parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=default, required=required)
    return TrainOptions(**vars(parser.parse_args()))


def main() -> None:
    """Train, or go on with the run that lies in the folder."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(options)
    resumed = trainer.resume()
    print("options:", json.dumps(asdict(options), default=str), f"resumed at step {trainer.step}" if resumed else "")
    trainer.run()


if __name__ == "__main__":
    main()
