"""Which modifiers each kind of instruction takes: what is not named here stops the kernel.

A modifier that were read over would give plausible wrong results, so the decoders of the vector
instructions (vector.py and the modules beside it) and of the memory instructions call
`refuse_unknown` with what they honour. The syntax is that of LLVM's "Syntax of AMDGPU Instruction
Modifiers".
"""

from __future__ import annotations

from collections.abc import Collection

from .assembly import Instruction
from .definitions import Unsupported

DPP_CONTROLS = frozenset(
    {
        "quad_perm",
        "row_shl",
        "row_shr",
        "row_ror",
        "row_mirror",
        "row_half_mirror",
        "row_bcast",
        "row_newbcast",
        "wave_shl",
        "wave_rol",
        "wave_shr",
        "wave_ror",
    }
)
DPP = DPP_CONTROLS | {"row_mask", "bank_mask", "bound_ctrl"}
SDWA_SOURCES = frozenset({"src0_sel", "src1_sel"})
SDWA = SDWA_SOURCES | {"dst_sel", "dst_unused"}
OUTPUT = frozenset({"clamp", "mul", "div"})
PACKED = frozenset({"op_sel", "op_sel_hi", "neg_lo", "neg_hi"})

# Scope and cache policy change when other waves see memory, not what this one sees: with one
# interleaving and no caches they have nothing to do. sc0 of an atomic asks for the old value.
CACHE = frozenset({"sc0", "sc1", "nt"})
GLOBAL = CACHE | {"offset"}
BUFFER = CACHE | {"offset", "offen", "lds"}
SCALAR_MEMORY = frozenset({"offset", "glc"})
LDS = frozenset({"offset"})
LDS_PAIR = frozenset({"offset0", "offset1"})
WAIT_COUNTERS = frozenset({"vmcnt", "lgkmcnt", "expcnt"})


def refuse_unknown(instruction: Instruction, accepted: Collection[str] = ()) -> None:
    """Stop at a modifier that the instruction's decoder does not honour."""
    for name, value in instruction.modifiers.items():
        if name not in accepted:
            written = name if value is True else f"{name}:{value}"
            raise Unsupported(f"modifier {written} on {instruction.op}")
