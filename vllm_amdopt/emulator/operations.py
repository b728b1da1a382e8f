"""Dispatch: which module decodes an instruction, and what class it counts under."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .assembly import Instruction
from .buffer_memory import compile_buffer
from .control import TERMINATORS
from .definitions import Unsupported
from .direct_to_lds import apply_held_back
from .global_memory import compile_global
from .local_memory import compile_local
from .modifiers import CACHE, WAIT_COUNTERS, refuse_unknown
from .scalar import compile_scalar
from .scalar_memory import compile_scalar_memory
from .vector import compile_vector

Execute = Callable[[], Any]

VECTOR_MEMORY = ("global_", "flat_", "scratch_", "buffer_")
SCALAR_LOADS = ("s_load", "s_buffer_load")

CACHE_CONTROL = {
    "buffer_inv",
    "buffer_wbl2",
    "s_icache_inv",
    "s_dcache_inv",
    "s_dcache_wb",
    "s_dcache_inv_vol",
    "s_dcache_wb_vol",
    "s_dcache_discard",
}
NO_EFFECT = {
    "s_nop",
    "s_sleep",
    "s_setprio",
    "s_wakeup",
    "s_sendmsg",
    "s_ttracedata",
    "s_incperflevel",
    "s_decperflevel",
    "ds_nop",
}
"""Timing, tracing and messages to the host: nothing that results depend on (CDNA4 ISA, 12.5)."""


def instruction_class(op: str) -> str:
    """The class that an instruction counts under, for example `valu`."""
    if op.startswith(("v_mfma", "v_smfmac")):
        return "mfma"
    if op.startswith("v_"):
        return "valu"
    if op.startswith("ds_"):
        return "lds"
    if op.startswith(VECTOR_MEMORY):
        if op in CACHE_CONTROL:
            return "cache_ctl"
        if "_atomic_" in op:
            return "vmem_atomic"
        return "vmem_store" if "_store_" in op else "vmem_load"
    if op.startswith(SCALAR_LOADS):
        return "smem"
    if op == "s_barrier":
        return "barrier"
    if op.startswith("s_waitcnt"):
        return "waitcnt"
    if op in ("s_nop", "s_sleep", "s_setprio"):
        return "nop"
    if op in TERMINATORS:
        return "branch"
    return "salu"


def _vector_count(counter: int) -> int:
    """vmcnt of an encoded s_waitcnt operand: bits 3:0 and 15:14."""
    return (counter & 15) | (counter >> 14 & 3) << 4


def compile_wait(machine: Any, instruction: Instruction) -> Execute | None:
    """s_waitcnt: lets direct-to-LDS loads land; everything else has landed already."""
    refuse_unknown(instruction, WAIT_COUNTERS)
    if instruction.operands:
        count = _vector_count(int(instruction.operands[0], 0))
    else:
        count = int(instruction.modifiers.get("vmcnt", 63))
    if not machine.has_direct_to_lds or count >= 63:
        return None
    return lambda: apply_held_back(machine, count)


def _counted(machine: Any, execute: Execute) -> Execute:
    """Count the vector memory operations of each wave, where s_waitcnt vmcnt matters."""

    def execute_and_count() -> None:
        execute()
        machine.vector_memory_issued[machine.running[:, 0]] += 1

    return execute_and_count


def compile_instruction(machine: Any, instruction: Instruction, index: int) -> Execute | None:
    """The function of an instruction that does not end a block; None when it does nothing."""
    op = instruction.op
    if op in NO_EFFECT:
        return None
    if op in CACHE_CONTROL:
        refuse_unknown(instruction, CACHE)
        return None
    if op == "s_waitcnt":
        return compile_wait(machine, instruction)
    if op.startswith("v_"):
        return compile_vector(machine, instruction, index)
    if op.startswith("ds_"):
        return compile_local(machine, instruction)
    if op.startswith(VECTOR_MEMORY):
        compile_memory = compile_buffer if op.startswith("buffer_") else compile_global
        execute = compile_memory(machine, instruction)
        return _counted(machine, execute) if machine.has_direct_to_lds else execute
    if op.startswith(SCALAR_LOADS):
        return compile_scalar_memory(machine, instruction)
    if op.startswith("s_"):
        return compile_scalar(machine, instruction, index)
    raise Unsupported(f"instruction {op}")
