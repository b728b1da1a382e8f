"""Whether Triton is installed and whether it interprets. Imports Triton only when asked."""

from __future__ import annotations

import importlib.util
from functools import cache


@cache
def triton_installed() -> bool:
    """True where `import triton` would find a package."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """True where kernels that are imported now become interpreted Python instead of machine code.

    Triton decides that once per kernel, when its decorator runs, from `TRITON_INTERPRET` or
    `triton.knobs.runtime.interpret`. False where Triton is missing.
    """
    if not triton_installed():
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)
