# SPDX-License-Identifier: Apache-2.0
"""A double of ``ais_bench``."""
