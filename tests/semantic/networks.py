# SPDX-License-Identifier: Apache-2.0
"""A network small enough to be done again by hand: one seeded convolution, behind a session that counts its runs."""

from types import SimpleNamespace

import numpy as np
import torch

from segship.backends.fake import Session
from segship.datasets.classes import ClassTable
from segship.semantic.predictor import SemanticPredictor
from segship.semantic.preprocessing import ScaleLimits, SemanticPreprocessing
from segship.spec import GraphSpec, TensorSpec

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
TABLE = ClassTable("own", ("wood", "stone", "glass", "air", "none of these"), tuple((k, 2 * k, 9) for k in range(5)))


def seeded_convolution():
    convolution = torch.nn.Conv2d(3, len(TABLE.classes), 5, padding=2)
    generator = torch.Generator().manual_seed(3)
    for values in convolution.parameters():
        values.data = torch.randn(values.shape, generator=generator)
    return convolution


CONVOLUTION = seeded_convolution()


@torch.inference_mode()
def logits_of(images):
    """(B, 3, H, W) float32 to (B, K, H, W) float32: depends on neighbours, as real networks do."""
    return CONVOLUTION(torch.from_numpy(images)).numpy()


class Network:
    """A predictor around the convolution, and the shapes that its graph has been run on."""

    def __init__(self, output="logits", size=None, batch="batch", scale=(60, 40), answer=None, on_gpu=False):
        self.shapes = []
        self.closed = False
        height, width = size or ("height", "width")
        shape = (batch, len(TABLE.classes), height, width) if output == "logits" else (batch, height, width)
        kind = "float32" if output == "logits" else "uint8"
        spec = GraphSpec(
            "semantic",
            (TensorSpec("image", "float32", (batch, 3, height, width)),),
            (TensorSpec(output, kind, shape),),
        )
        self.output = output
        self.answer = answer or self.usual_answer
        preprocessing = SemanticPreprocessing(ScaleLimits(*scale), MEAN, STD)
        manifest = SimpleNamespace(table=TABLE, preprocessing=preprocessing, architecture="semask_t")
        session = Session(spec, self.run)
        session.on_gpu = on_gpu
        self.predictor = SemanticPredictor(manifest, session, backend="fake")

    def run(self, inputs):
        self.shapes.append(inputs["image"].shape)
        return {self.output: self.answer(inputs["image"])}

    def usual_answer(self, images):
        logits = logits_of(images)
        return logits if self.output == "logits" else logits.argmax(1).astype(np.uint8)


def picture(height=55, width=83, seed=0):
    """Smooth noise, so that neighbouring pixels have something to do with one another."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 5 + 2, width // 5 + 2, 3)).astype(np.uint8)
    return np.ascontiguousarray(small.repeat(5, 0).repeat(5, 1)[:height, :width])
