# SPDX-License-Identifier: Apache-2.0
"""Task 2, semantic: from an image to a class map.

In reading order: `preprocessing`, `views`, `argmax`, `class_map`, `predictor`; `labels` gives masks a class by vote.
"""
