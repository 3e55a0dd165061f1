# SPDX-License-Identifier: Apache-2.0
"""Ship Segment Anything to any machine: from a published checkpoint to verified, fast, servable masks."""

__version__ = "0.1.0"
