# SPDX-License-Identifier: Apache-2.0
import torch

from segship.ship.families.sam.config import SAM_ARCHITECTURES
from segship.ship.families.sam.model import build_sam


@torch.inference_mode()
def test_tiny_has_the_geometry_of_its_configuration():
    config = SAM_ARCHITECTURES["tiny"]
    sam = build_sam(config)
    embedding = sam.image_encoder(torch.randn(2, 3, config.image_size, config.image_size))
    assert embedding.shape == (2, config.embedding_channels, config.embedding_size, config.embedding_size)


@torch.inference_mode()
def test_images_of_a_batch_do_not_meet():
    config = SAM_ARCHITECTURES["tiny"]
    encoder = build_sam(config).image_encoder
    images = torch.randn(2, 3, config.image_size, config.image_size)
    assert torch.allclose(encoder(images)[1:], encoder(images[1:]), atol=1e-5)
