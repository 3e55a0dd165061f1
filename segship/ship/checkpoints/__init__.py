# SPDX-License-Identifier: Apache-2.0
"""Published and fine-tuned weight files: surveyed without running them, read safely, loaded strictly.

Importing this loads no torch; only `reading.read_checkpoint` and `reading.load_state` do, when they are called.
"""
