"""Makes a virtual environment with vLLM for the CPU and this project in it; not for AMD machines.

    python3 tests/environment/make_environment.py --venv .venv [--vllm 0.32.0]

This file holds only what must run on any Python 3, so that an old one gets a sentence instead of
a SyntaxError; the work is in `installation.py`.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (the point of this file)
    sys.exit(
        "error: this is Python " + ".".join(map(str, sys.version_info[:2])) + ", and vLLM needs "
        "3.11 or later: name a newer one, for example `make PYTHON=python3.12 demo`."
    )

from installation import main

if __name__ == "__main__":
    sys.exit(main())
