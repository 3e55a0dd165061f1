# SPDX-License-Identifier: Apache-2.0
import numpy as np
import torch

from segship.compat import TensorArray, as_array, as_tensor_array


def test_tensor_array_is_an_array_that_answers_like_a_tensor():
    array = np.arange(6.0).reshape(2, 3)
    wrapped = as_tensor_array(array)
    assert isinstance(wrapped[0], TensorArray) and np.shares_memory(wrapped, array)
    assert type(wrapped.detach().cpu().numpy()) is np.ndarray
    assert torch.equal(torch.as_tensor(wrapped), torch.as_tensor(array))
    assert wrapped[1, 2].item() == 5


def test_arrays_come_from_lists_arrays_and_tensors():
    tensor = torch.ones(2, requires_grad=True)
    for given in ([1.0, 1.0], np.ones(2), tensor, as_tensor_array(np.ones(2))):
        assert type(as_array(given)) is np.ndarray and as_array(given).tolist() == [1, 1]
