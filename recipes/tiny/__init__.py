# SPDX-License-Identifier: Apache-2.0
"""The recipe of `tiny`: procedural scenes, training samples, training."""
