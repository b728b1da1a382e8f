"""Whether Triton is installed and whether it interprets. Imports Triton only when asked."""

from __future__ import annotations

import importlib.util
import inspect
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


@cache
def gluon_for_cdna() -> bool:
    """True where Triton has Gluon, Triton's lower dialect, with what `kernels/cdna` uses of it."""
    try:
        from triton.experimental import gluon
        from triton.experimental.gluon import language
    except ImportError:
        return False
    places = (
        (gluon, "constexpr_function"),
        (language, "DistributedLinearLayout"),
        (language, "atomic_add"),
        (getattr(language, "amd", None), "AMDMFMALayout"),
        (getattr(getattr(language, "amd", None), "cdna3", None), "mfma"),
        (getattr(getattr(language, "amd", None), "cdna3", None), "buffer_load"),
        (getattr(getattr(language, "amd", None), "hint", None), "sched_barrier"),
    )
    if not all(hasattr(module, name) for module, name in places):
        return False
    return "assert_trivial" in inspect.signature(language.convert_layout).parameters


def current_gfx() -> str | None:
    """The AMD GPU that Triton would compile for now, emulated ones included; None is another."""
    if not triton_installed():
        return None
    from triton.runtime import driver

    try:
        target = driver.active.get_current_target()
    except RuntimeError:  # no GPU of any kind
        return None
    return str(target.arch).partition(":")[0] if target.backend == "hip" else None
