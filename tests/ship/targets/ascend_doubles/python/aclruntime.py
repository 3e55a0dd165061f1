# SPDX-License-Identifier: Apache-2.0
"""A double of ``aclruntime``: only there to be imported."""
