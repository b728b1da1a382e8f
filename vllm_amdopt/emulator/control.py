"""Instructions that end a basic block: branches, calls, barriers and the end of the program."""

from __future__ import annotations

import numpy as np

from .definitions import BAR, END, EXEC, VCC, EmuError, i64, u64
from .operands import call, src
from .scalar import sput

TERM = {
    "s_branch",
    "s_cbranch_scc0",
    "s_cbranch_scc1",
    "s_cbranch_vccz",
    "s_cbranch_vccnz",
    "s_cbranch_execz",
    "s_cbranch_execnz",
    "s_endpgm",
    "s_endpgm_saved",
    "s_barrier",
    "s_setpc_b64",
    "s_swappc_b64",
    "s_trap",
    "s_call_b64",
}


def compile_term(M, ins, i):
    op = ins.op
    nx = i + 1
    if op == "s_branch":
        t = M.prog.labels[ins.ops[0]]
        return lambda: t
    if op in ("s_endpgm", "s_endpgm_saved"):

        def f():
            M.status[M.act[:, 0]] = END
            M.release()
            return -1

        return f
    if op == "s_barrier":

        def f():
            if M.allact:
                M.epoch += 1
                return nx
            a = M.act[:, 0]
            M.status[a] = BAR
            M.pc[a] = nx
            M.release()
            return -1

        return f
    if op == "s_trap":

        def f():
            raise EmuError("s_trap executed (device assert / unreachable)")

        return f
    if op in ("s_setpc_b64", "s_swappc_b64"):
        x = src(M, ins.ops[-1], "U")
        out = sput(M, ins.ops[0], "U") if op == "s_swappc_b64" else None

        def f():
            t = np.broadcast_to(call(x), (M.W, 1))[:, 0].copy()
            if out:
                out(u64(M.code_addr(nx)))
            a = M.act[:, 0]
            M.pc[a] = (t[a].astype(i64) - M.code_addr(0)) // 4
            return -1

        return f
    if op == "s_call_b64":
        t = M.prog.labels[ins.ops[1]]
        out = sput(M, ins.ops[0], "U")
        v = u64(M.code_addr(nx))

        def f():
            out(v)
            return t

        return f
    t = M.prog.labels[ins.ops[0]]
    k = op[10:]
    if k in ("scc0", "scc1"):
        w = k == "scc1"
        c = M.scc[:, 0]
        cond = (lambda: c) if w else lambda: ~c
    else:
        col = M.S64[:, (VCC if "vcc" in k else EXEC) // 2]
        z = k.endswith("z") and not k.endswith("nz")
        cond = (lambda: col == 0) if z else (lambda: col != 0)

    def f():
        c_ = cond()
        if not M.allact:
            c_ = c_ & M.act[:, 0]
        n = int(np.count_nonzero(c_))
        if n == M.nact:
            return t
        if n == 0:
            return nx
        a = M.act[:, 0]
        M.pc[c_] = t
        M.pc[a & ~c_] = nx
        return -1

    return f
