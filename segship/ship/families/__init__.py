# SPDX-License-Identifier: Apache-2.0
"""How weights are laid out and become graphs: one folder a family."""
