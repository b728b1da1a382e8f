"""Scalar ALU instructions."""

from __future__ import annotations

import re

import numpy as np

from .arithmetic import (
    A,
    addc,
    brev32,
    brev64,
    clsx,
    clz,
    ctz,
    mulhi_i,
    mulhi_u,
    popc,
    subb,
)
from .definitions import EXEC, Unsupported, i32, i64, u32, u64
from .operands import DT, call, parse_reg, src


def _b(x):
    return A(x)


def sgn(x, n):
    return ((A(x, u32) << u32(32 - n)).view(i32) >> i32(32 - n)).view(u32)


def bfe64(a, b, signed):
    o, w = (A(b).astype(u64) & u64(63)), ((A(b).astype(u64) >> u64(16)) & u64(0x7F))
    w = np.minimum(w, u64(64) - o)
    sh = u64(64) - w
    v = np.where(w == 0, u64(0), A(a).view(u64) << (sh - o))
    r = (v.view(i64) >> sh.astype(i64)).view(u64) if signed else v >> np.where(w == 0, u64(0), sh)
    return np.where(w == 0, u64(0), r)


def bfe32s(a, b, signed):
    o, w = (A(b) & u32(31)).astype(u64), ((A(b) >> u32(16)) & u32(0x7F)).astype(u64)
    w = np.minimum(w, u64(32) - o)
    v = A(a).view(i32).astype(i64).view(u64) if signed else A(a).astype(u64)
    sh = u64(64) - w
    v = v << np.where(w == 0, u64(0), sh - o)
    r = (
        (v.view(i64) >> np.where(w == 0, u64(0), sh).astype(i64)).view(u64)
        if signed
        else v >> np.where(w == 0, u64(0), sh)
    )
    return np.where(w == 0, u64(0), r).astype(u32)


def ovf_add(a, b):
    r = a + b
    return r, ((a ^ r) & (b ^ r)) < 0


def ovf_sub(a, b):
    r = a - b
    return r, ((a ^ b) & (a ^ r)) < 0


def sadd(n):
    return lambda a, b: (lambda r: (r.astype(u32), r > u64(0xFFFFFFFF)))(
        (A(a).astype(u64) << u64(n)) + A(b).astype(u64)
    )


SALU = {  # name -> (dst, srcs, fn, scc: '' | 'nz' | 'r' (fn returns value, scc)); source C = SCC
    "s_mov_b32": ("u", "u", _b, ""),
    "s_mov_b64": ("U", "U", _b, ""),
    "s_not_b32": ("u", "u", np.bitwise_not, "nz"),
    "s_not_b64": ("U", "U", np.bitwise_not, "nz"),
    "s_brev_b32": ("u", "u", brev32, ""),
    "s_brev_b64": ("U", "U", brev64, ""),
    "s_wqm_b64": (
        "U",
        "U",
        lambda a: sum(
            (
                np.where((A(a) >> u64(4 * i)) & u64(15) != 0, u64(15 << 4 * i), u64(0))
                for i in range(16)
            ),
            u64(0),
        ),
        "nz",
    ),
    "s_bcnt0_i32_b32": ("i", "u", lambda a: 32 - popc(a).astype(i32), "nz"),
    "s_bcnt0_i32_b64": ("i", "U", lambda a: 64 - popc(a).astype(i32), "nz"),
    "s_bcnt1_i32_b32": ("i", "u", lambda a: popc(a).astype(i32), "nz"),
    "s_bcnt1_i32_b64": ("i", "U", lambda a: popc(a).astype(i32), "nz"),
    "s_ff1_i32_b32": ("i", "u", lambda a: ctz(a, 32), ""),
    "s_ff1_i32_b64": ("i", "U", lambda a: ctz(a, 64), ""),
    "s_ff0_i32_b32": ("i", "u", lambda a: ctz(~A(a), 32), ""),
    "s_ff0_i32_b64": ("i", "U", lambda a: ctz(~A(a), 64), ""),
    "s_flbit_i32_b32": ("i", "u", lambda a: clz(a, 32), ""),
    "s_flbit_i32_b64": ("i", "U", lambda a: clz(a, 64), ""),
    "s_flbit_i32": ("i", "i", lambda a: clsx(a, 32), ""),
    "s_flbit_i32_i64": ("i", "I", lambda a: clsx(a, 64), ""),
    "s_sext_i32_i8": ("u", "u", lambda a: sgn(a, 8), ""),
    "s_sext_i32_i16": ("u", "u", lambda a: sgn(a, 16), ""),
    "s_abs_i32": ("i", "i", np.abs, "nz"),
    "s_bitset0_b32": ("u", "uD", lambda a, d: d & ~(u32(1) << (A(a) & u32(31))), ""),
    "s_bitset1_b32": ("u", "uD", lambda a, d: d | (u32(1) << (A(a) & u32(31))), ""),
    "s_bitset0_b64": ("U", "uD", lambda a, d: d & ~(u64(1) << (A(a).astype(u64) & u64(63))), ""),
    "s_bitset1_b64": ("U", "uD", lambda a, d: d | (u64(1) << (A(a).astype(u64) & u64(63))), ""),
    "s_bitreplicate_b64_b32": (
        "U",
        "u",
        lambda a: sum(
            (((A(a).astype(u64) >> u64(i)) & u64(1)) * u64(3 << 2 * i) for i in range(32)), u64(0)
        ),
        "",
    ),
    "s_cmov_b32": ("u", "uDC", lambda a, d, c: np.where(c, a, d), ""),
    "s_cmov_b64": ("U", "UDC", lambda a, d, c: np.where(c, a, d), ""),
    "s_add_u32": ("u", "uu", lambda a, b: addc(a, b, u32(0)), "r"),
    "s_sub_u32": ("u", "uu", lambda a, b: subb(a, b, i64(0)), "r"),
    "s_addc_u32": ("u", "uuC", addc, "r"),
    "s_subb_u32": ("u", "uuC", subb, "r"),
    "s_add_i32": ("i", "ii", ovf_add, "r"),
    "s_sub_i32": ("i", "ii", ovf_sub, "r"),
    "s_min_i32": ("i", "ii", lambda a, b: (np.minimum(a, b), a < b), "r"),
    "s_max_i32": ("i", "ii", lambda a, b: (np.maximum(a, b), a >= b), "r"),
    "s_min_u32": ("u", "uu", lambda a, b: (np.minimum(a, b), a < b), "r"),
    "s_max_u32": ("u", "uu", lambda a, b: (np.maximum(a, b), a >= b), "r"),
    "s_cselect_b32": ("u", "uuC", lambda a, b, c: np.where(c, a, b), ""),
    "s_cselect_b64": ("U", "UUC", lambda a, b, c: np.where(c, a, b), ""),
    "s_mul_i32": ("u", "uu", np.multiply, ""),
    "s_mul_hi_u32": ("u", "uu", mulhi_u, ""),
    "s_mul_hi_i32": ("i", "ii", mulhi_i, ""),
    "s_absdiff_i32": ("i", "ii", lambda a, b: np.abs(a - b), "nz"),
    "s_lshl1_add_u32": ("u", "uu", sadd(1), "r"),
    "s_lshl2_add_u32": ("u", "uu", sadd(2), "r"),
    "s_lshl3_add_u32": ("u", "uu", sadd(3), "r"),
    "s_lshl4_add_u32": ("u", "uu", sadd(4), "r"),
    "s_lshl_b32": ("u", "uu", lambda a, b: A(a) << (b & u32(31)), "nz"),
    "s_lshr_b32": ("u", "uu", lambda a, b: A(a) >> (b & u32(31)), "nz"),
    "s_ashr_i32": ("i", "iu", lambda a, b: A(a) >> (A(b) & u32(31)).astype(i32), "nz"),
    "s_lshl_b64": ("U", "Uu", lambda a, b: A(a) << (A(b) & u32(63)).astype(u64), "nz"),
    "s_lshr_b64": ("U", "Uu", lambda a, b: A(a) >> (A(b) & u32(63)).astype(u64), "nz"),
    "s_ashr_i64": ("I", "Iu", lambda a, b: A(a) >> (A(b) & u32(63)).astype(i64), "nz"),
    "s_bfm_b32": (
        "u",
        "uu",
        lambda a, b: ((u32(1) << (A(a) & u32(31))) - u32(1)) << (A(b) & u32(31)),
        "",
    ),
    "s_bfm_b64": (
        "U",
        "uu",
        lambda a, b: (
            ((u64(1) << (A(a) & u32(63)).astype(u64)) - u64(1)) << (A(b) & u32(63)).astype(u64)
        ),
        "",
    ),
    "s_bfe_u32": ("u", "uu", lambda a, b: bfe32s(a, b, False), "nz"),
    "s_bfe_i32": ("u", "uu", lambda a, b: bfe32s(a, b, True), "nz"),
    "s_bfe_u64": ("U", "Uu", lambda a, b: bfe64(a, b, False), "nz"),
    "s_bfe_i64": ("U", "Uu", lambda a, b: bfe64(a, b, True), "nz"),
    "s_pack_ll_b32_b16": ("u", "uu", lambda a, b: (A(a) & u32(0xFFFF)) | (A(b) << u32(16)), ""),
    "s_pack_lh_b32_b16": (
        "u",
        "uu",
        lambda a, b: (A(a) & u32(0xFFFF)) | (A(b) & u32(0xFFFF0000)),
        "",
    ),
    "s_pack_hh_b32_b16": ("u", "uu", lambda a, b: (A(a) >> u32(16)) | (A(b) & u32(0xFFFF0000)), ""),
}
BOOL = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "andn2": lambda a, b: a & ~A(b),
    "orn2": lambda a, b: a | ~A(b),
    "nand": lambda a, b: ~(A(a) & b),
    "nor": lambda a, b: ~(A(a) | b),
    "xnor": lambda a, b: ~(A(a) ^ b),
}
for _n, _f in BOOL.items():
    SALU[f"s_{_n}_b32"] = ("u", "uu", _f, "nz")
    SALU[f"s_{_n}_b64"] = ("U", "UU", _f, "nz")
SAVEEXEC = {
    **{f"s_{n}_saveexec_b64": f for n, f in BOOL.items()},
    "s_andn1_saveexec_b64": lambda a, b: ~A(a) & b,
    "s_orn1_saveexec_b64": lambda a, b: ~A(a) | b,
}
SCMP = {
    "eq": np.equal,
    "lg": np.not_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
}
NOPS = {
    "s_nop",
    "s_sleep",
    "s_setprio",
    "s_sethalt",
    "s_sendmsg",
    "s_inst_prefetch",
    "s_icache_inv",
    "s_dcache_inv",
    "s_dcache_wb",
    "s_dcache_inv_vol",
    "s_dcache_wb_vol",
    "s_ttracedata",
    "s_incperflevel",
    "s_decperflevel",
    "s_dcache_discard",
    "buffer_inv",
    "buffer_wbl2",
    "buffer_wbinvl1",
    "buffer_wbinvl1_vol",
    "s_setkill",
    "s_code_end",
    "s_wakeup",
    "s_set_gpr_idx_off",
    "ds_nop",
    "v_clrexcp",
    "s_waitcnt_depctr",
}


def sput(M, s, ty):
    k, n, _c = parse_reg(s)
    assert k == "s"
    if ty in "UI":
        if n & 1:
            raise Unsupported("odd SGPR pair")
        d = M.S64.view(DT[ty])[:, n // 2 : n // 2 + 1]
    else:
        d = M.S.view(DT[ty])[:, n : n + 1]
    ex = n in (EXEC, EXEC + 1)

    def st(v):
        if M.allact:
            d[...] = v
        else:
            np.copyto(d, v, where=M.act, casting="unsafe")
        if ex:
            M.upd_exec()

    return st


def set_scc(M, v):
    if M.allact:
        M.scc[...] = v
    else:
        np.copyto(M.scc, v, where=M.act)


def compile_salu(M, ins, i):
    op, ops = ins.op, ins.ops
    if op in SALU:
        dt, st, fn, sm = SALU[op]
        out = sput(M, ops[0], dt)
        rest = list(ops[1:])
        g = []
        for t in st:
            if t == "D":
                g.append(src(M, ops[0], dt, i=i))
            elif t == "C":
                g.append(M.scc)
            else:
                g.append(src(M, rest.pop(0), t, i=i))
        if sm == "":
            if len(g) == 1 and not callable(g[0]):
                a = g[0]
                return lambda: out(fn(a))
            return lambda: out(fn(*[call(x) for x in g]))
        if sm == "nz":

            def f():
                v = fn(*[call(x) for x in g])
                out(v)
                set_scc(M, v != 0)

            return f

        def f():
            v, c = fn(*[call(x) for x in g])
            out(v)
            set_scc(M, c)

        return f
    if op in ("s_andn1_wrexec_b64", "s_andn2_wrexec_b64"):
        a = src(M, ops[1], "U")
        out = sput(M, ops[0], "U")
        e1 = sput(M, "exec", "U")
        ex = M.S64[:, EXEC // 2 : EXEC // 2 + 1]

        def f():
            s, o = np.array(call(a)), ex.copy()
            v = (~s & o) if "1" in op[:8] else (s & ~o)
            out(v)
            e1(v)
            set_scc(M, v != 0)

        return f
    if op in SAVEEXEC:
        fn = SAVEEXEC[op]
        a = src(M, ops[1], "U")
        out = sput(M, ops[0], "U")
        ex = M.S64[:, EXEC // 2 : EXEC // 2 + 1]

        def f():
            s = np.array(call(a))
            old = ex.copy()
            v = fn(s, old)
            out(old)
            if M.allact:
                ex[...] = v
            else:
                np.copyto(ex, v, where=M.act)
            M.upd_exec()
            set_scc(M, v != 0)

        return f
    m = re.match(r"s_cmp_(\w\w)_(i32|u32|u64)$", op)
    if m:
        t = {"i32": "i", "u32": "u", "u64": "U"}[m[2]]
        a, b = src(M, ops[0], t, i=i), src(M, ops[1], t, i=i)
        fn = SCMP[m[1]]
        return lambda: set_scc(M, fn(call(a), call(b)))
    m = re.match(r"s_cmpk_(\w\w)_(i32|u32)$", op)
    if m:
        v = int(ops[1], 0) & 0xFFFF
        t = m[2][0]
        b = i32(v - 65536 if v > 32767 else v) if t == "i" else u32(v)
        a = src(M, ops[0], t)
        fn = SCMP[m[1]]
        return lambda: set_scc(M, fn(a, b))
    m = re.match(r"s_bitcmp([01])_b(32|64)$", op)
    if m:
        w = int(m[2])
        t = "u" if w == 32 else "U"
        dt = DT[t]
        a, b = src(M, ops[0], t), src(M, ops[1], "u")
        one = int(m[1])
        return lambda: set_scc(
            M, ((A(call(a)) >> (A(call(b)) & u32(w - 1)).astype(dt)) & dt(1)) == one
        )
    if op in ("s_movk_i32", "s_cmovk_i32", "s_addk_i32", "s_mulk_i32"):
        v = int(ops[1], 0) & 0xFFFF
        v = i32(v - 65536 if v > 32767 else v)
        out = sput(M, ops[0], "i")
        d = src(M, ops[0], "i")
        if op == "s_movk_i32":
            return lambda: out(v)
        if op == "s_cmovk_i32":
            return lambda: out(np.where(M.scc, v, d))
        if op == "s_mulk_i32":
            return lambda: out(d * v)

        def f():
            r, c = ovf_add(d, v)
            out(r)
            set_scc(M, c)

        return f
    if op == "s_getpc_b64":
        out = sput(M, ops[0], "U")
        v = u64(M.code_addr(i + 1))
        return lambda: out(v)
    if op in ("s_setreg_imm32_b32", "s_setreg_b32", "s_getreg_b32"):
        hw = ops[0] if op != "s_getreg_b32" else ops[1]
        m = re.match(r"hwreg\((?:HW_REG_)?(\w+)(?:,\s*(\d+),\s*(\d+))?\)", hw)
        nm, off, wd = m[1], int(m[2] or 0), int(m[3] or 32)
        if op == "s_getreg_b32":
            out = sput(M, ops[0], "u")

            def f():
                if nm == "MODE":
                    v = 0xF0 & ~(
                        (0x30 if M.mode["ftz32"] else 0) | (0xC0 if M.mode["ftz16"] else 0)
                    )
                elif nm == "XCC_ID":
                    v = (M.wg_linear % 8)[:, None]
                else:
                    v = 0
                out((A(v, u32) >> u32(off)) & u32((1 << wd) - 1))

            return f
        if nm != "MODE":
            return None
        x = src(M, ops[1], "u")

        def f():
            v = int(np.max(call(x)))
            cur = (
                0xF0 & ~((0x30 if M.mode["ftz32"] else 0) | (0xC0 if M.mode["ftz16"] else 0))
                | M.mode["round32"]
                | (M.mode["fp16_ovfl"] << 23)
            )
            new = (cur & ~(((1 << wd) - 1) << off)) | ((v & ((1 << wd) - 1)) << off)
            M.mode.update(
                ftz32=(new >> 4 & 3) != 3,
                ftz16=(new >> 6 & 3) != 3,
                round32=new & 15,
                fp16_ovfl=new >> 23 & 1,
            )
            if new & 15:
                raise Unsupported("rounding mode other than nearest even")

        return f
    if op == "s_denorm_mode":
        v = int(ops[0], 0)

        def f():
            M.mode.update(ftz32=(v & 3) != 3, ftz16=(v >> 2 & 3) != 3)

        return f
    if op in ("s_memtime", "s_memrealtime"):
        out = sput(M, ops[0], "U")

        def f():
            M.clock += 100
            out(u64(M.clock))

        return f
    raise Unsupported(f"instruction {op}")
