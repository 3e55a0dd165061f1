# SPDX-License-Identifier: Apache-2.0
"""Graphs in lower precisions, and what each costs in masks: from a bundle to further artifacts of it, without torch.

`opened` holds a float32 graph apart from its weights, `ranges` records what its tensors hold, `integers`, `storage` and
`half` write the precisions, `quantizing` takes a bundle through all of them and mends what misses its bar.
"""
