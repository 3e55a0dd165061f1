# SPDX-License-Identifier: Apache-2.0
"""A double of ``npu-smi info``; ``DOUBLE_CHIP`` names the chip."""

import os
import sys

TABLE = """\
+--------------------------------------------------------------------------------------------------------+
| npu-smi 23.0.rc3                                 Version: 23.0.rc3.b070                                 |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 0       {chip:<22}| OK              | NA           49                0     / 0             |
| 0       0                     | 0000:01:00.0    | 0            1693 / 21534                            |
+===============================+=================+======================================================+
"""

if __name__ == "__main__":
    if sys.argv[1:] != ["info"]:
        sys.exit("Error parameter")
    print(TABLE.format(chip=os.environ.get("DOUBLE_CHIP", "310P3")), end="")
