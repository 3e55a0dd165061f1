# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from segship.ship.families.sam.config import SAM_ARCHITECTURES
from segship.ship.families.sam.model import build_sam

# Keys and parameters of the published checkpoints; keys and elements of each one's encoder.
PUBLISHED = {
    "vit_b": (314, 93_735_472, 177, 89_670_912),
    "vit_l": (482, 312_342_832, 345, 308_278_272),
    "vit_h": (594, 641_090_608, 457, 637_026_048),
    "vit_t": (439, 10_130_092, 302, 6_075_415),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_architecture_has_the_published_keys_and_parameters(name):
    with torch.device("meta"):
        sam = build_sam(SAM_ARCHITECTURES[name])
    encoder = sam.image_encoder
    counts = (
        len(sam.state_dict()),
        sum(parameter.numel() for parameter in sam.parameters()),
        len(encoder.state_dict()),
        sum(tensor.numel() for tensor in encoder.state_dict().values()),
    )
    assert counts == PUBLISHED[name]


@pytest.mark.parametrize("name", SAM_ARCHITECTURES)
def test_geometry_follows_from_the_configuration(name):
    config = SAM_ARCHITECTURES[name]
    geometry = config.geometry
    assert geometry.embedding_size * config.encoder.stride == geometry.image_size
    assert geometry.low_res_size == 4 * geometry.embedding_size
