"""Dispatch: compile_ins(machine, instruction) -> function that acts on the machine, and instruction classes."""

from __future__ import annotations

from .control import TERM
from .definitions import Unsupported
from .global_memory import compile_buffer, compile_global, compile_smem, drain
from .local_memory import compile_ds
from .scalar import NOPS, compile_salu
from .vector import compile_valu


def klass(op):
    if op.startswith(("v_mfma", "v_smfmac")):
        return "mfma"
    if op.startswith("v_"):
        return "valu"
    if op.startswith("ds_"):
        return "lds"
    if op.startswith(("global_", "flat_", "buffer_", "scratch_")):
        if op in NOPS:
            return "cache_ctl"
        return (
            "vmem_atomic" if "_atomic_" in op else "vmem_store" if "_store_" in op else "vmem_load"
        )
    if op.startswith(("s_load", "s_buffer_load")):
        return "smem"
    if op == "s_barrier":
        return "barrier"
    if op.startswith("s_waitcnt"):
        return "waitcnt"
    if op in ("s_nop", "s_sleep", "s_setprio"):
        return "nop"
    if op in TERM:
        return "branch"
    return "salu"


def compile_ins(M, ins, i):
    op = ins.op
    if op in NOPS:
        return None
    if op.startswith("s_waitcnt"):
        if not M.has_dma:
            return None
        md = ins.mods
        if ins.ops:
            v = int(ins.ops[0], 0)
            n = (v & 15) | ((v >> 14 & 3) << 4)
            if op != "s_waitcnt" or n == 63:
                return None
        elif "vmcnt" in md:
            n = int(md["vmcnt"])
        else:
            return None
        return lambda: drain(M, n)
    if op.startswith("v_"):
        return compile_valu(M, ins, i)
    if op.startswith("ds_"):
        return compile_ds(M, ins, i)
    if op.startswith(("global_", "flat_", "scratch_", "buffer_")):
        f = compile_buffer(M, ins, i) if op.startswith("buffer_") else compile_global(M, ins, i)
        if not M.has_dma:
            return f

        def g():
            f()
            M.vmi[M.act[:, 0]] += 1

        return g
    if op.startswith(("s_load", "s_buffer_load")):
        return compile_smem(M, ins, i)
    if op.startswith("s_"):
        return compile_salu(M, ins, i)
    raise Unsupported(f"instruction {op}")
