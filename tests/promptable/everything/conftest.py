# SPDX-License-Identifier: Apache-2.0
"""One thread for torch: with several it adds the four corners of a bilinear value in another order."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
