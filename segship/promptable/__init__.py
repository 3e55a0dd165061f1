# SPDX-License-Identifier: Apache-2.0
"""Task 1, promptable: from an image and prompts to masks.

In reading order: `prompts`, `prompt_text`, `transforms`, `decoder`, `prediction`, `predictor`, `everything`.
"""
