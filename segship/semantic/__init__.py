# SPDX-License-Identifier: Apache-2.0
"""Task 2, semantic: from an image to a class map.

`predictor` looks at images as `views` says, after `preprocessing`; `argmax` decides the class of each pixel,
`class_map` is the answer, and `labels` gives masks a class by vote.
"""
