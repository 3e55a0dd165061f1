# SPDX-License-Identifier: Apache-2.0
"""The reference implementation in torch: PyPI's ``segment-anything``, its modules as they are.

MobileSAM is not on PyPI, so the vit_t here is our own plain module, whose arithmetic is MobileSAM's.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.prepared import PHOTO_SIZE, WorkFolder
from benchmarks.subjects.points import CLICK, model_frame_points

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_model(work: Path, model: str) -> Any:
    """Return the reference's whole model with the seeded weights; an architecture with a plain ViT encoder only."""
    from tests.oracle import build_reference

    folder = WorkFolder(work, model)
    sam = build_reference(folder.config)
    sam.load_state_dict(torch.load(folder.checkpoint(), weights_only=True, mmap=True), strict=True)
    return sam.requires_grad_(False)


def plain_encoder(work: Path, model: str) -> nn.Module:
    """Return the reference's image encoder; for vit_t our own, as it was before any rewriting."""
    if model != "vit_t":
        encoder: nn.Module = build_model(work, model).image_encoder
        return encoder
    from segship.ship.loading import load_model

    # A module that nobody has given a variant is the plain one.
    return load_model(WorkFolder(work, model).checkpoint()).module.image_encoder.requires_grad_(False)


def described(model: str, precision: str, threads: int, device: str = "cpu") -> dict[str, Any]:
    """Return what runs, and set torch's threads."""
    where = f" {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else ""
    torch.set_num_threads(threads)
    source = "our plain vit_t module" if model == "vit_t" else f"segment-anything {version('segment-anything')}"
    return {"engine": f"{source}, torch {torch.__version__}{where}", "precision": precision, "threads": threads}


class Encoder:
    """The image encoder on a prepared image."""

    def __init__(self, work: str, model: str, precision: str, threads: int, device: str = "cpu") -> None:
        self.described = described(model, precision, threads, device)
        self._module = plain_encoder(Path(work), model).to(device, DTYPES[precision])
        image = torch.from_numpy(np.load(WorkFolder(Path(work), model).image()))
        self._image = image.to(device, DTYPES[precision])

    def call(self) -> None:
        """Encode, and wait for the device to be done."""
        with torch.inference_mode():
            self._embedding = self._module(self._image)
        if self._image.is_cuda:
            torch.cuda.synchronize()

    def answer(self) -> dict[str, Any]:
        """Return the embedding."""
        return {"image_embeddings": self._embedding.float().cpu().numpy()}

    def figures(self) -> dict[str, Any]:
        """There are no others."""
        return {}


class BatchedDecoder(nn.Module):
    """Prompt encoder and mask decoder of the reference with an axis for objects, as one traceable module.

    Points are embedded by the reference's own ONNX wrapper, whose arithmetic can be traced; padding points (-1) are
    given by the caller, as that wrapper wants it.
    """

    def __init__(self, sam: Any) -> None:
        super().__init__()
        from segment_anything.utils.onnx import SamOnnxModel

        self.wrapper = SamOnnxModel(sam, return_single_mask=False)

    def forward(self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return predicted IoUs (N, 4) and low-resolution logits (N, 4, 4h, 4w)."""
        prompts, decoder = self.wrapper.model.prompt_encoder, self.wrapper.model.mask_decoder
        sparse = self.wrapper._embed_points(point_coords, point_labels)
        dense = prompts.no_mask_embed.weight.reshape(1, -1, 1, 1) + torch.zeros_like(image_embeddings)
        dense = dense.expand(point_coords.shape[0], -1, -1, -1)
        # The reference repeats the embedding for each object.
        masks, ious = decoder.predict_masks(image_embeddings, prompts.get_dense_pe(), sparse, dense)
        return ious, masks


class Decoder:
    """`predict_torch` of the reference on points, one an object, from an embedding; low-resolution masks only."""

    def __init__(self, work: str, model: str, precision: str, threads: int, objects: int) -> None:
        self.described = described(model, precision, threads)
        folder, dtype = WorkFolder(Path(work), model), DTYPES[precision]
        self._sam = build_model(Path(work), model)
        del self._sam.image_encoder
        # The prompt encoder computes positions in float32 and takes no other weights.
        self._sam.mask_decoder.to(dtype)
        self._embedding = torch.from_numpy(np.load(folder.embedding())).to(dtype)
        self._points = torch.from_numpy(model_frame_points(objects, folder.config.image_size))
        self._labels = torch.ones(objects, 1)

    def call(self) -> None:
        """Decode all objects in one call."""
        prompts, decoder = self._sam.prompt_encoder, self._sam.mask_decoder
        with torch.inference_mode():
            sparse, dense = prompts(points=(self._points, self._labels), boxes=None, masks=None)
            self._masks, self._ious = decoder(
                image_embeddings=self._embedding,
                image_pe=prompts.get_dense_pe().to(self._embedding.dtype),
                sparse_prompt_embeddings=sparse.to(self._embedding.dtype),
                dense_prompt_embeddings=dense.to(self._embedding.dtype),
                multimask_output=True,
            )

    def answer(self) -> dict[str, Any]:
        """Return what was decoded."""
        return {"iou_predictions": self._ious.float().numpy(), "low_res_masks": self._masks.float().numpy()}

    def figures(self) -> dict[str, Any]:
        """There are no others."""
        return {}


class Click:
    """`SamPredictor.predict` of the reference with one point, on an image that was encoded before."""

    def __init__(self, work: str, model: str, precision: str, threads: int) -> None:
        from tests.oracle import reference

        self.described = described(model, precision, threads)
        assert precision == "fp32"
        folder = WorkFolder(Path(work), model)
        sam = build_model(Path(work), model)
        self._predictor = reference().SamPredictor(sam)
        width, height = PHOTO_SIZE
        scale = folder.config.image_size / max(width, height)
        self._predictor.original_size = (height, width)
        self._predictor.input_size = (int(height * scale + 0.5), int(width * scale + 0.5))
        self._predictor.features = torch.from_numpy(np.load(folder.embedding()))
        self._predictor.is_image_set = True
        self._point = np.array([CLICK]) * [width, height]

    def call(self) -> None:
        """Ask for the three masks of a click."""
        self._masks, self._ious, _ = self._predictor.predict(self._point, np.ones(1))

    def answer(self) -> dict[str, Any]:
        """Return masks at image size."""
        return {"masks": self._masks[None], "iou_predictions": self._ious[None]}

    def figures(self) -> dict[str, Any]:
        """There are no others."""
        return {}
