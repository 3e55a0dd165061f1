# SPDX-License-Identifier: Apache-2.0
"""The ship road, from a checkpoint to a bundle: besides `segship.backends.torch` the only place for torch and onnx.

The use road never imports this package.
"""
