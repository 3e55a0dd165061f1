# SPDX-License-Identifier: Apache-2.0
"""SeMask-FPN: a Swin encoder with semantic layers, and an FPN head."""
