# SPDX-License-Identifier: Apache-2.0
"""Graphs on the ship road: traced from a module, simplified, lowered, written in other people's contracts."""
