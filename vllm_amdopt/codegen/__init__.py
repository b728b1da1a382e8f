"""Compile every kernel variant for gfx942 and gfx950 without a GPU; report what came out.

    python -m vllm_amdopt.codegen [--gfx gfx942] [--kernel NAME_PART] [--json]
    python -m vllm_amdopt.codegen --write docs/codegen.md      (or --check)

Registers, spills, LDS, matrix instructions, the widths of loads and the waits of the main loop come
from the assembly that Triton's compiler emits for the chip, and are held against the budgets that
stand beside the kernels. The bytes moved, in the document, come from running the kernels in the
emulator. Nothing is timed.
"""

from vllm_amdopt.codegen.command import main
from vllm_amdopt.codegen.compilation import (
    ARCHITECTURES,
    CodegenError,
    compile_variant,
    variants,
)
from vllm_amdopt.codegen.report import CodegenReport, read, report, violations

__all__ = [
    "ARCHITECTURES",
    "CodegenError",
    "CodegenReport",
    "compile_variant",
    "main",
    "read",
    "report",
    "variants",
    "violations",
]
