"""The records that name the forms of a kernel that serving uses, and what the compiler may spend.

Each `kernels/<stem>.py` lists its own in a module-level tuple `CODEGEN_VARIANTS`;
`vllm_amdopt.codegen` compiles them for every supported architecture without a GPU, reports
registers, spills and LDS, and holds them against the budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triton.runtime.jit import JITFunction


@dataclass(frozen=True)
class Budget:
    """What the machine code of one variant on one chip has to keep.

    Two things go without saying: no vector register spills to memory, and the LDS is the chip's.
    waves_per_simd: at least so many, from registers and LDS. matrix: the matrix instructions, with
    spaces between them, without `v_mfma_`; "" is none. narrow_loads: bits -> how many loads of the
    main loop (of the kernel, if it has no loop) may be narrower than 128 bits; block tables and
    lengths are, streams are not. widest: bits that its widest loads have at least.
    full_waits: how often the main loop may wait for every load under way (`s_waitcnt vmcnt(0)`):
    each is a trip to memory that nothing hides except other waves.
    serial_loads: 128-bit loads of the main loop that such a wait finds alone under way.
    scalar_spills: scalar registers that may be kept in lanes of vector registers, at most.
    wave_private: the main loop holds neither a barrier nor a read or write of LDS.
    The aim of full_waits, serial_loads and scalar_spills is 0; more is what a kernel costs today,
    written down so that it cannot grow unnoticed.
    """

    waves_per_simd: float
    matrix: str = ""
    narrow_loads: Mapping[int, int] = field(default_factory=dict)
    full_waits: int = 0
    serial_loads: int = 0
    scalar_spills: int = 0
    wave_private: bool = False
    widest: int = 128


@dataclass(frozen=True)
class CodegenVariant:
    """One compiled form of one kernel.

    `signature` maps every run-time argument, in the kernel's order, to a Triton type string
    (`*bf16`, `i32`, `i64`, `fp32`; `*fp8` is the chip's own e4m3); pointers are taken to be 16-byte
    aligned, as PyTorch allocates them. `divisible_by_16` names the integer arguments that are
    multiples of 16 in serving (strides, mostly): Triton's launcher finds that out by itself and
    loads 16 bytes per lane because of it, so a compilation that leaves it out reports loads that
    never run.
    `over_2_gib` names the pointers whose storage is larger than that in serving, as a KV cache's
    is: all others are addressed with 32 bits, which takes fewer registers.
    `constexprs` holds every compile-time argument; `None` stands for an optional
    pointer that is absent; `by_gfx` holds further ones, those that differ between chips.
    `waves_per_eu` 0 leaves occupancy to the compiler.
    `budgets`: gfx -> what the machine code has to keep there.
    """

    name: str
    kernel: JITFunction[Any]
    signature: Mapping[str, str]
    constexprs: Mapping[str, object]
    num_warps: int
    num_stages: int = 2
    waves_per_eu: int = 0
    divisible_by_16: tuple[str, ...] = ()
    over_2_gib: tuple[str, ...] = ()
    by_gfx: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    budgets: Mapping[str, Budget] = field(default_factory=dict)
