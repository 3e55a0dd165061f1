# SPDX-License-Identifier: Apache-2.0
"""Pure functions on masks: run lengths, boxes, scores."""
