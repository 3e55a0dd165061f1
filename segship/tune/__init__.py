# SPDX-License-Identifier: Apache-2.0
"""Backends measured on a bundle, on this machine: right by how much, and how fast. Needs no torch."""

from segship.tune.candidates import TuneOptions
from segship.tune.tuning import tune_bundle

__all__ = ["TuneOptions", "tune_bundle"]
