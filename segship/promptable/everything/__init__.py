# SPDX-License-Identifier: Apache-2.0
"""Everything in a picture: automatic masks ("AMG"), exact or fast, in bounded memory, on any backend.

In reading order: `options`, `grids`, `filters`, `crops`, `cost`, `search`, `records`.
"""
