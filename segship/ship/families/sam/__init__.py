# SPDX-License-Identifier: Apache-2.0
"""SAM, MobileSAM and tiny: three image encoders, one decoder."""
