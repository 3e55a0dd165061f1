# SPDX-License-Identifier: Apache-2.0
import pytest

from segship.ship.contracts import OneObjectDecoder, one_object_decoder_spec
from segship.ship.families.sam.family import MOST_PROMPTS
from segship.ship.families.sam.model import ImageEncoderGraph, MaskDecoderGraph, build_sam
from segship.ship.graph.trace import trace_graph
from segship.ship.variants import VARIANTS, apply_variant
from segship.spec import image_encoder_spec, mask_decoder_spec
from tests.oracle import SMALL_VIT, seeded_weights


@pytest.fixture(scope="session")
def sam():
    model = build_sam(SMALL_VIT)
    model.load_state_dict(seeded_weights(model))
    return model


@pytest.fixture(scope="session")
def encoder_proto(sam):
    return trace_graph(ImageEncoderGraph(sam), image_encoder_spec(SMALL_VIT.geometry), opset=18)


@pytest.fixture(scope="session")
def decoder_proto():
    """As it was traced for the export, so that no test waits for it twice."""
    sam = build_sam(SMALL_VIT)
    sam.load_state_dict(seeded_weights(sam))
    apply_variant(sam, VARIANTS["onnxruntime"])
    return trace_graph(
        MaskDecoderGraph(sam), mask_decoder_spec(SMALL_VIT.geometry), opset=18, largest_sizes=MOST_PROMPTS
    )


@pytest.fixture(scope="session")
def cut_decoder_protos(sam):
    """The one-object decoder with four masks and with the single one."""
    return {
        single: trace_graph(
            OneObjectDecoder(sam, single), one_object_decoder_spec(SMALL_VIT.geometry, single), opset=18
        )
        for single in (False, True)
    }
