"""What became of a variant: registers, spills, LDS, the main loop, occupancy, and its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_amdopt.codegen import assembly
from vllm_amdopt.codegen.compilation import compile_variant
from vllm_amdopt.codegen.occupancy import lds_of, waves_per_simd

if TYPE_CHECKING:
    from vllm_amdopt.kernels.variants import Budget, CodegenVariant

INDEX_BITS = 32
"""Block table entries and lengths: the only loads under 128 bits that a main loop may hold."""


@dataclass(frozen=True)
class CodegenReport:
    """What became of one variant on one chip. Registers are per lane (vgpr, agpr) or wave (sgpr).

    On these chips vgpr counts the whole register file of a lane: ordinary and accumulation
    registers (agpr) together. spills: vector registers, which go to memory; scalar_spills: scalar
    ones, which go to lanes of vector registers. loads and stores: bits per lane -> how many
    instructions. `loop_...` are those of the main loop, empty without one; loop_full_waits: its
    `s_waitcnt vmcnt(0)`; loop_serial_loads: those that find one 128-bit load; loop_shared: its
    barriers, and its reads and writes of LDS.
    """

    variant: str
    gfx: str
    vgpr: int
    agpr: int
    sgpr: int
    spills: int
    scalar_spills: int
    scratch_bytes: int
    lds_bytes: int
    num_warps: int
    waves_per_simd: float
    instructions: int
    matrix: dict[str, int] = field(default_factory=dict)
    loads: dict[int, int] = field(default_factory=dict)
    stores: dict[int, int] = field(default_factory=dict)
    loop_instructions: int = 0
    loop_matrix: dict[str, int] = field(default_factory=dict)
    loop_loads: dict[int, int] = field(default_factory=dict)
    loop_full_waits: int = 0
    loop_serial_loads: int = 0
    loop_shared: int = 0


def report(variant: CodegenVariant, gfx: str) -> CodegenReport:
    """Compile the variant and read the numbers from its assembly and metadata."""
    kernel = compile_variant(variant, gfx)
    return read(kernel.asm["amdgcn"], variant, gfx, int(kernel.metadata.shared))


def read(text: str, variant: CodegenVariant, gfx: str, lds_bytes: int) -> CodegenReport:
    """The numbers of assembly text that was made for the variant."""
    code = assembly.parse(text)
    loop = code.main_loop()
    registers = assembly.number(text, "vgpr_count")
    return CodegenReport(
        variant=variant.name,
        gfx=gfx,
        vgpr=registers,
        agpr=assembly.number(text, "agpr_count"),
        sgpr=assembly.number(text, "sgpr_count"),
        spills=assembly.number(text, "vgpr_spill_count"),
        scalar_spills=assembly.number(text, "sgpr_spill_count"),
        scratch_bytes=assembly.number(text, "private_segment_fixed_size"),
        lds_bytes=lds_bytes,
        num_warps=variant.num_warps,
        waves_per_simd=_waves(variant, registers, lds_bytes, gfx),
        instructions=len(code.instructions),
        matrix=_by_key(assembly.matrix_instructions(code.instructions)),
        loads=_widest_first(code.instructions, "load"),
        stores=_widest_first(code.instructions, "store"),
        loop_instructions=len(loop),
        loop_matrix=_by_key(assembly.matrix_instructions(loop)),
        loop_loads=_widest_first(loop, "load"),
        loop_full_waits=sum(instruction.waits_for_all_loads for instruction in loop),
        loop_serial_loads=assembly.serial_loads(loop),
        loop_shared=sum(instruction.is_shared for instruction in loop),
    )


def _waves(variant: CodegenVariant, registers: int, lds_bytes: int, gfx: str) -> float:
    """By registers and LDS; where `waves_per_eu` is set, the code object asks for no more."""
    waves = waves_per_simd(registers, lds_bytes, variant.num_warps, gfx)
    return min(waves, variant.waves_per_eu) if variant.waves_per_eu else waves


def _by_key(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _widest_first(body: Sequence[assembly.Instruction], kind: str) -> dict[int, int]:
    return dict(sorted(assembly.accesses(body, kind).items(), reverse=True))


def violations(made: CodegenReport, budget: Budget) -> list[str]:
    """What of the budget is not kept, one sentence each."""
    found = []
    if made.spills or made.scratch_bytes:
        found.append(f"{made.spills} registers spill to {made.scratch_bytes} bytes of scratch.")
    if made.scalar_spills > budget.scalar_spills:
        found.append(
            f"{made.scalar_spills} scalar registers spill to vector registers, not "
            f"{budget.scalar_spills}."
        )
    if made.lds_bytes > lds_of(made.gfx):
        found.append(f"{made.lds_bytes} bytes of LDS are more than {made.gfx} has.")
    if made.waves_per_simd < budget.waves_per_simd:
        found.append(
            f"{made.vgpr} registers and {made.lds_bytes} bytes of LDS leave "
            f"{made.waves_per_simd:g} waves per SIMD, not {budget.waves_per_simd:g}."
        )
    wanted = set(budget.matrix.split())
    if set(made.matrix) != wanted:
        found.append(f"the matrix instructions are {_names(made.matrix)}, not {_names(wanted)}.")
    loads = made.loop_loads or made.loads
    if max(loads, default=0) < budget.widest:
        found.append(f"no load is {budget.widest} bits wide.")
    narrow = {bits: n for bits, n in loads.items() if bits < 128}
    for bits, n in narrow.items():
        if n > budget.narrow_loads.get(bits, 0):
            found.append(
                f"{n} loads of the main loop are {bits} bits wide, not "
                f"{budget.narrow_loads.get(bits, 0)}."
            )
    if made.loop_full_waits > budget.full_waits:
        found.append(
            f"the main loop waits for all its loads {made.loop_full_waits} times, not "
            f"{budget.full_waits}."
        )
    if made.loop_serial_loads > budget.serial_loads:
        found.append(
            f"{made.loop_serial_loads} loads of the main loop are waited for one by one, not "
            f"{budget.serial_loads}."
        )
    if budget.wave_private and made.loop_shared:
        found.append(
            f"{made.loop_shared} instructions of the main loop are barriers or use LDS, not 0."
        )
    return found


def _names(matrix: Any) -> str:
    return ", ".join(sorted(matrix)) or "none"
