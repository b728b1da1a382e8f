"""`python -m vllm_amdopt.codegen`."""

import sys

from vllm_amdopt.codegen.command import main

if __name__ == "__main__":
    sys.exit(main())
