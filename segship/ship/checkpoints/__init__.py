# SPDX-License-Identifier: Apache-2.0
"""Published and fine-tuned weight files: surveyed without running them, read safely as numpy arrays. No torch."""
