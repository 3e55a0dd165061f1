# SPDX-License-Identifier: Apache-2.0
"""Torch modules of every architecture, and the configurations that size them."""
