"""The seam between a test and the machine code of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vllm_amdopt.emulator import launch


@pytest.fixture
def emulate() -> Callable[..., Any]:
    """`with emulate("gfx942") as device:` runs every `kernel[grid](...)` inside as machine code.

    Any Triton or Gluon kernel, on CPU tensors. Triton's own launcher specialises and compiles it as
    on a GPU (integers that are 1 or divisible by 16, tensors under 2 GiB) and keeps what it
    compiled in its cache on disk. `device.launches[-1]` holds the counts of the last launch.
    """
    return launch.emulate
