# SPDX-License-Identifier: Apache-2.0
"""A torch module as an ONNX graph: traced, simplified, lowered to older opsets, stored."""
