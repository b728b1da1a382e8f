"""The record that names the forms of a kernel that serving uses; it compiles nothing itself.

Each `kernels/<stem>.py` lists its own in a module-level tuple `CODEGEN_VARIANTS`;
`vllm_amdopt.codegen` compiles them for every supported architecture without a GPU and reports
registers, spills and LDS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triton.runtime.jit import JITFunction


@dataclass(frozen=True)
class CodegenVariant:
    """One compiled form of one kernel.

    `signature` maps every run-time argument, in the kernel's order, to a Triton type string
    (`*bf16`, `i32`, `i64`, `fp32`); pointers are taken to be 16-byte aligned, as PyTorch
    allocates them. `divisible_by_16` names the integer arguments that are multiples of 16 in
    serving (strides, mostly): Triton's launcher finds that out by itself and loads 16 bytes per
    lane because of it, so a compilation that leaves it out reports loads that never run.
    `constexprs` holds every compile-time argument; `None` stands for an optional
    pointer that is absent. `waves_per_eu` 0 leaves occupancy to the compiler.
    """

    name: str
    kernel: JITFunction[Any]
    signature: Mapping[str, str]
    constexprs: Mapping[str, object]
    num_warps: int
    num_stages: int = 2
    waves_per_eu: int = 0
    divisible_by_16: tuple[str, ...] = ()
