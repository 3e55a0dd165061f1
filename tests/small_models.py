# SPDX-License-Identifier: Apache-2.0
"""Predictors over a seeded small SAM, for tests of the whole use road."""

from functools import cache

import torch

from segship.backends.torch import Session
from segship.promptable.predictor import Predictor
from segship.ship.families.sam.model import ImageEncoderGraph, MaskDecoderGraph, build_sam
from segship.ship.families.sam.shared_decoder import ImageSideGraph, SelectiveDecoderGraph
from segship.spec import image_encoder_spec, image_side_spec, mask_decoder_spec, selective_decoder_spec
from tests.oracle import SMALL_VIT, build_reference, reference, seeded_weights
from tests.small_bundle import small_manifest


@cache
def small_sam():
    sam = build_sam(SMALL_VIT)
    sam.load_state_dict(seeded_weights(sam))
    return sam


def small_sam_manifest():
    return small_manifest(SMALL_VIT.geometry)


def small_predictor():
    """A predictor over torch sessions, without any file."""
    sam, geometry = small_sam(), SMALL_VIT.geometry
    sessions = {
        spec.name: Session(module, spec)
        for module, spec in (
            (ImageEncoderGraph(sam), image_encoder_spec(geometry)),
            (MaskDecoderGraph(sam), mask_decoder_spec(geometry)),
            (ImageSideGraph(sam), image_side_spec(geometry)),
            (SelectiveDecoderGraph(sam), selective_decoder_spec(geometry)),
        )
    }
    return Predictor(small_sam_manifest(), sessions, encoder_sha256="0" * 64, backend="torch")


def reference_predictor():
    """The reference's own predictor with the same weights."""
    model = build_reference(SMALL_VIT)
    model.load_state_dict(small_sam().state_dict(), strict=True)
    return reference().SamPredictor(model)


def save_checkpoint(path, *, wrap=None):
    """Write the small model as a checkpoint, as it is or inside what ``wrap`` makes of its state dict."""
    state = small_sam().state_dict()
    torch.save(state if wrap is None else wrap(state), path)
    return path
