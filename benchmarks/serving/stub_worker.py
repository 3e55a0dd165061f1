# SPDX-License-Identifier: Apache-2.0
"""What a worker of the stub runs."""

import benchmarks.serving.stub  # noqa: F401
from segship.serve.worker import main

if __name__ == "__main__":
    main()
