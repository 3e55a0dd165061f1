# SPDX-License-Identifier: Apache-2.0
"""Drawn streets in the layouts of Cityscapes and ADE20K, for tests and first steps."""
