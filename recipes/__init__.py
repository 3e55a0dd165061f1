# SPDX-License-Identifier: Apache-2.0
"""How things that ship with the project were made."""
