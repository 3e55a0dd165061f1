# SPDX-License-Identifier: Apache-2.0
"""Whether a graph gives what its model gives, and a backend what its graph gives.

`cases` holds the images and prompts, `agreement` the arithmetic and the bars; neither needs torch. `promptable` and
`semantic` run the torch models of the two families beside their graphs.
"""
