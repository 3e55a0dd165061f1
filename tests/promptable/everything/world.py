# SPDX-License-Identifier: Apache-2.0
"""A picture whose masks are known, answered alike by a session of ours and by a model of the reference.

A world holds objects with ragged outlines, some with holes and islands, at places of the image. Asked at a point, the
decoder gives logits of the three objects nearest to it, each a little different from call to call as a real decoder's
are. Both sides get the same bits, so what differs afterwards differs in the code that is tested.
"""

from __future__ import annotations

import types
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from segship.backends.fake import Session
from segship.promptable.everything.grids import crop_boxes
from segship.promptable.predictor import Predictor
from segship.promptable.transforms import Preprocessing, prepare_image, resized_size
from segship.spec import SamGeometry, image_encoder_spec, mask_decoder_spec
from tests.oracle import reference
from tests.small_bundle import small_manifest

PREPROCESSING = Preprocessing(512, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@dataclass
class World:
    """Objects in an image, and the crops that a generator may look at."""

    size_hw: tuple[int, int]
    objects: int = 150
    n_layers: int = 0
    image_size: int = 512
    seed: int = 0
    radii: tuple[float, float] = (0.012, 0.2)
    sharpness: tuple[float, float] = (60, 1500)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        height, width = self.size_hw
        self.geometry = SamGeometry(
            image_size=self.image_size, embedding_channels=2, embedding_size=self.image_size // 16
        )
        self.centres = rng.uniform(0, (width, height), (self.objects, 2))
        low, high = np.log(np.array(self.radii) * max(self.size_hw))
        self.sizes = np.exp(rng.uniform(low, high, self.objects))
        self.flatness = rng.uniform(0.5, 1, self.objects)
        self.angles = rng.uniform(0, np.pi, self.objects)
        self.waves = rng.uniform(0, 0.12, self.objects)
        self.phases = rng.uniform(0, 2 * np.pi, self.objects)
        self.slopes = np.exp(rng.uniform(*np.log(self.sharpness), self.objects))
        self.quality = rng.uniform(0.8, 1.0, self.objects)
        self.holes = rng.random(self.objects) < 0.3
        self.islands = rng.random(self.objects) < 0.3
        # Ramps, so that a crop is known by its mean colour.
        ramp_y, ramp_x = np.mgrid[:height, :width]
        self.image = np.stack(
            [255 * ramp_x / width, 255 * ramp_y / height, 255 * (ramp_x * ramp_y) / (width * height)], axis=-1
        ).astype(np.uint8)
        self.crops = [crop.box_xyxy for crop in crop_boxes(self.size_hw, self.n_layers, 512 / 1500)]
        settings = Preprocessing(self.image_size, PREPROCESSING.pixel_mean, PREPROCESSING.pixel_std)
        self.colours = np.array(
            [prepare_image(self.image[y0:y1, x0:x1], settings).mean(axis=(0, 2, 3)) for x0, y0, x1, y1 in self.crops]
        )
        self.cache = {}

    def crop_of(self, frame):
        """Return the index of the crop that a prepared image (1, 3, S, S) shows."""
        distance = np.abs(self.colours - frame.mean(axis=(0, 2, 3))).sum(axis=1)
        assert distance.min() < 1e-3
        return int(distance.argmin())

    def logits(self, crop, index):
        """Return the logits (4h, 4w) of an object as a crop shows it."""
        if (crop, index) not in self.cache:
            self.cache[crop, index] = self._draw(crop, index)
        return self.cache[crop, index]

    def _draw(self, crop, index):
        x0, y0, x1, y1 = self.crops[crop]
        input_size = resized_size((y1 - y0, x1 - x0), self.image_size)
        cells = self.geometry.low_res_size
        places = (np.arange(cells) + 0.5) * self.image_size / cells
        x = x0 + places[None, :] * (x1 - x0) / input_size[1] - self.centres[index, 0]
        y = y0 + places[:, None] * (y1 - y0) / input_size[0] - self.centres[index, 1]
        cos, sin = np.cos(self.angles[index]), np.sin(self.angles[index])
        along, across = cos * x + sin * y, (cos * y - sin * x) / self.flatness[index]
        radius, angle = np.hypot(along, across), np.arctan2(across, along)
        outline = self.sizes[index] * (1 + self.waves[index] * np.sin(5 * angle + self.phases[index]))
        distance = (outline - radius) / max(self.size_hw)
        if self.holes[index]:
            hole = np.hypot(along - 0.3 * self.sizes[index], across) - 0.15 * self.sizes[index]
            distance = np.minimum(distance, hole / max(self.size_hw))
        if self.islands[index]:
            island = 0.15 * self.sizes[index] - np.hypot(along - 1.5 * self.sizes[index], across)
            distance = np.maximum(distance, island / max(self.size_hw))
        texture = np.random.default_rng(index).normal(size=(cells // 8, cells // 8))
        texture = cv2.resize(texture, (cells, cells), interpolation=cv2.INTER_CUBIC)
        return (self.slopes[index] * 4 * distance + 0.3 * texture).clip(-25, 25).astype(np.float32)

    def answer(self, crop, point_coords):
        """Return (N, 4) predicted IoUs and (N, 4, 4h, 4w) logits at points (N, 2) of the model frame."""
        x0, y0, x1, y1 = self.crops[crop]
        input_size = resized_size((y1 - y0, x1 - x0), self.image_size)
        # On a grid of 1/16 pixel, so that the rounding of coordinates on either side changes nothing.
        coords = np.round(np.asarray(point_coords, np.float64) * 16) / 16
        places = coords * np.array([(x1 - x0) / input_size[1], (y1 - y0) / input_size[0]]) + np.array([x0, y0])
        cells = self.geometry.low_res_size
        ious = np.zeros((len(coords), 4), np.float32)
        masks = np.zeros((len(coords), 4, cells, cells), np.float32)
        for row, (place, coord) in enumerate(zip(places, coords, strict=True)):
            rng = np.random.default_rng([crop, *(coord * 16).astype(int).tolist()])
            distance = np.hypot(*(self.centres - place).T) / self.sizes
            for token, index in enumerate(np.argsort(distance, kind="stable")[:3], start=1):
                scale, shift, noise = rng.normal(size=3)
                drawn = self.logits(crop, int(index))
                masks[row, token] = drawn * np.float32(1 + 0.05 * scale) + np.float32(0.3 * shift)
                ious[row, token] = self.quality[index] + 0.03 * noise
        return ious, masks

    def predictor(self):
        """Return our predictor over this world."""
        geometry = self.geometry

        def encode(inputs):
            shape = (1, 2, geometry.embedding_size, geometry.embedding_size)
            return {"image_embeddings": np.full(shape, self.crop_of(inputs["image"]), np.float32)}

        def decode(inputs):
            crop = int(inputs["image_embeddings"].flat[0])
            assert inputs["point_labels"].tolist() == [[1, -1]] * len(inputs["point_labels"])
            ious, masks = self.answer(crop, inputs["point_coords"][:, 0])
            return {"iou_predictions": ious, "low_res_masks": masks}

        manifest = small_manifest(geometry)
        encoder = Session(image_encoder_spec(geometry), encode)
        decoder = Session(mask_decoder_spec(geometry), decode)
        sessions = {"image_encoder": encoder, "mask_decoder": decoder}
        return Predictor(manifest, sessions, encoder_sha256="0" * 64, backend="fake")

    def reference_records(self, **parameters):
        """Return what the reference's generator gives for this world."""
        return reference_generator(self, **parameters).generate(self.image)


def reference_generator(world, **parameters):
    """Return the reference's generator over a world."""
    reference()
    from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator

    return SamAutomaticMaskGenerator(_reference_model(world), **parameters)


def _reference_model(world):
    """Return a model of the reference whose networks answer from the world; its pre- and postprocessing are its own."""
    from segment_anything.modeling import Sam

    class Encoder(torch.nn.Module):
        img_size = world.image_size

        def forward(self, image):
            return torch.full((1, 2, 1, 1), float(world.crop_of(image.numpy())))

    class PromptEncoder(torch.nn.Module):
        def forward(self, points, boxes, masks):
            assert boxes is None and masks is None and (points[1] == 1).all()
            return points[0], None

        def get_dense_pe(self):
            return None

    class Decoder(torch.nn.Module):
        def forward(self, image_embeddings, sparse_prompt_embeddings, **_):
            ious, masks = world.answer(int(image_embeddings.flatten()[0]), sparse_prompt_embeddings[:, 0].numpy())
            return torch.from_numpy(masks[:, 1:]), torch.from_numpy(ious[:, 1:])

    settings = PREPROCESSING
    model = Sam(Encoder(), PromptEncoder(), Decoder(), list(settings.pixel_mean), list(settings.pixel_std))
    assert isinstance(model.postprocess_masks, types.MethodType)
    return model.eval()
