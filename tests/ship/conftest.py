# SPDX-License-Identifier: Apache-2.0
import pytest

from segship.ship.contracts import OneObjectDecoder, one_object_decoder_spec
from segship.ship.families.sam.family import MOST_PROMPTS
from segship.ship.families.sam.model import ImageEncoderGraph, MaskDecoderGraph, build_sam
from segship.ship.graph.cut import cut_graph
from segship.ship.graph.trace import trace_graph
from segship.ship.variants import VARIANTS, apply_variant
from segship.spec import image_encoder_spec, mask_decoder_spec
from tests.oracle import SMALL_VIT, seeded_weights
from tests.ship.graph.running import filled, traced_graph


@pytest.fixture(scope="session")
def sam():
    model = build_sam(SMALL_VIT)
    model.load_state_dict(seeded_weights(model))
    return model


@pytest.fixture(scope="session")
def encoder_proto(sam):
    return traced_graph(ImageEncoderGraph(sam), image_encoder_spec(SMALL_VIT.geometry))


@pytest.fixture(scope="session")
def decoder():
    """The decoder as it was traced for the export, so that no test waits for it twice: module, contract, cut graph."""
    sam = build_sam(SMALL_VIT)
    sam.load_state_dict(seeded_weights(sam))
    apply_variant(sam, VARIANTS["onnxruntime"])
    module, spec = MaskDecoderGraph(sam), mask_decoder_spec(SMALL_VIT.geometry)
    return module, spec, cut_graph(trace_graph(module, spec, opset=18, largest_sizes=MOST_PROMPTS), spec)


@pytest.fixture(scope="session")
def decoder_proto(decoder):
    module, spec, cut = decoder
    return filled(cut, module, spec)


@pytest.fixture(scope="session")
def cut_decoder_protos(sam):
    """The one-object decoder with four masks and with the single one."""
    return {
        single: traced_graph(OneObjectDecoder(sam, single), one_object_decoder_spec(SMALL_VIT.geometry, single))
        for single in (False, True)
    }
