"""Vector instructions that cross lanes, move to scalar registers or need more than a table entry."""

from __future__ import annotations

import numpy as np

from .arithmetic import A, fma32, popc
from .definitions import EXEC, f16, f32, u8, u16, u32
from .operands import DT, call, modded, parse_reg, put, row, src
from .small_floats import bf8, fp8

SPECIALS = {}


def special(*names):
    def deco(f):
        for n in names:
            SPECIALS[n] = f
        return f

    return deco


def wsgpr(M, n, v, W=None):
    """write one SGPR for the running waves; v: (W,) or (W,1) or scalar"""
    d = M.S[:, n : n + 1]
    if getattr(v, "ndim", 0) == 1:
        v = v[:, None]
    if M.allact:
        d[...] = v
    else:
        np.copyto(d, v, where=M.act, casting="unsafe")
    if n >= EXEC:
        M.upd_exec()


@special("v_readfirstlane_b32")
def _rfl(M, ins, base, i):
    n = parse_reg(ins.ops[0])[1]
    x = src(M, ins.ops[1], "u", i=i)
    ar = np.arange(M.W)

    def f():
        v = np.broadcast_to(call(x), (M.W, 64))
        wsgpr(M, n, v[:, 0] if M.full else v[ar, M.EX.argmax(1)])

    return f


@special("v_readlane_b32")
def _rl(M, ins, base, i):
    n = parse_reg(ins.ops[0])[1]
    x = src(M, ins.ops[1], "u")
    l = src(M, ins.ops[2], "u")
    ar = np.arange(M.W)
    return lambda: wsgpr(M, n, x[ar, np.broadcast_to(A(call(l)) & u32(63), (M.W, 1))[:, 0]])


@special("v_writelane_b32")
def _wl(M, ins, base, i):
    k, n, _c = parse_reg(ins.ops[0])
    x = src(M, ins.ops[1], "u")
    l = src(M, ins.ops[2], "u")
    ar = np.arange(M.W)
    D = M.V[row(M, k, n)]

    def f():
        v = np.broadcast_to(call(x), (M.W, 1))[:, 0]
        ln = np.broadcast_to(A(call(l)) & u32(63), (M.W, 1))[:, 0]
        a = M.act[:, 0]
        D[ar[a], ln[a]] = v[a]

    return f


@special("v_mbcnt_lo_u32_b32", "v_mbcnt_hi_u32_b32")
def _mb(M, ins, base, i):
    L = np.arange(64)
    hi = "hi" in base
    below = np.array(
        [((1 << l) - 1) >> 32 if hi else ((1 << min(l, 32)) - 1) & 0xFFFFFFFF for l in L], u32
    )
    a, b = (src(M, s, "u") for s in ins.ops[1:3])
    out = put(M, ins.ops[0], "u")
    return lambda: out(popc(call(a) & below).astype(u32) + call(b))


def _swap(sel_a, sel_b):
    def mk(M, ins, base, i):
        (ka, a, _), (kb, b, _) = parse_reg(ins.ops[0]), parse_reg(ins.ops[1])
        X, Y = M.V[row(M, ka, a)], M.V[row(M, kb, b)]

        def f():
            x, y = X[:, sel_a].copy(), Y[:, sel_b].copy()
            if M.full:
                X[:, sel_a] = y
                Y[:, sel_b] = x
            else:
                m = M.EX
                X[:, sel_a] = np.where(m[:, sel_a], y, x)
                Y[:, sel_b] = np.where(m[:, sel_b], x, y)

        return f

    return mk


_L = np.arange(64)
SPECIALS["v_permlane32_swap_b32"] = _swap(_L[32:], _L[:32])
SPECIALS["v_permlane16_swap_b32"] = _swap(np.r_[16:32, 48:64], np.r_[0:16, 32:48])
SPECIALS["v_swap_b32"] = _swap(_L, _L)


@special("v_bitop3_b32", "v_bitop3_b16")
def _bitop3(M, ins, base, i):
    t = int(ins.mods.get("bitop3", 0))
    w = base.endswith("16")
    ty = "w" if w else "u"
    one = DT[ty]
    g = [modded(M, s, ty, ins.mods, j) for j, s in enumerate(ins.ops[1:4])]
    out = put(M, ins.ops[0], ty)
    simple = {
        0x88: lambda a, b, c: b & c,
        0xC0: lambda a, b, c: a & b,
        0xFC: lambda a, b, c: a | b,
        0x3C: lambda a, b, c: a ^ b,
        0xFE: lambda a, b, c: a | b | c,
        0x80: lambda a, b, c: a & b & c,
        0x96: lambda a, b, c: a ^ b ^ c,
        0xEA: lambda a, b, c: (a & b) | c,
        0xEC: lambda a, b, c: (a & c) | b,
        0xC8: lambda a, b, c: (a | c) & b,
        0xCA: lambda a, b, c: (a & b) | (~a & c),
        0x6C: lambda a, b, c: (a & c) ^ b,
        0x78: lambda a, b, c: a ^ (b & c),
        0x36: lambda a, b, c: (a | c) ^ b,
    }
    fn = simple.get(t)
    if fn is None:

        def fn(a, b, c):
            r = one(0)
            for k in range(8):
                if t >> k & 1:
                    r = r | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
            return r

    return lambda: out(fn(*[A(call(x)) for x in g]))


@special("v_prng_b32")
def _prng(M, ins, base, i):
    a = src(M, ins.ops[1], "u")
    out = put(M, ins.ops[0], "u")
    return lambda: out(
        (A(call(a)) << u32(1)) ^ np.where(A(call(a)) >> u32(31) == 1, u32(197), u32(0))
    )


@special("v_cvt_f32_fp8", "v_cvt_f32_bf8", "v_cvt_pk_f32_fp8", "v_cvt_pk_f32_bf8")
def _cvt_from8(M, ins, base, i):
    F = fp8(M) if base.endswith("_fp8") else bf8(M)
    pk = "_pk_" in base
    sel, osel = ins.mods.get("src0_sel"), ins.mods.get("op_sel", [0, 0])
    x = src(M, ins.ops[1], "u")
    k, n, _c = parse_reg(ins.ops[0])
    n = row(M, k, n)
    if pk:
        sh = 16 * (int(sel[-1]) if sel and sel.startswith("WORD") else osel[0])
    else:
        sh = 8 * (
            int(sel[-1])
            if sel and sel.startswith("BYTE")
            else (osel[0] + 2 * osel[1] if len(osel) > 1 else osel[0])
        )

    def f():
        v = call(x) >> u32(sh)
        w = True if M.full else M.EX
        lo = F.dec(v & u32(255))
        if pk:
            hi = F.dec((v >> u32(8)) & u32(255))
            np.copyto(M.Vf[n + 1], hi, where=w)
        np.copyto(M.Vf[n], lo, where=w)

    return f


@special("v_cvt_pk_fp8_f32", "v_cvt_pk_bf8_f32", "v_cvt_sr_fp8_f32", "v_cvt_sr_bf8_f32")
def _cvt_to8(M, ins, base, i):
    F = fp8(M) if "_fp8" in base else bf8(M)
    osel = ins.mods.get("op_sel", [])
    k, n, _c = parse_reg(ins.ops[0])
    n = row(M, k, n)
    a = modded(M, ins.ops[1], "f", {}, 0)
    sr = "_sr_" in base
    b = modded(M, ins.ops[2], "u" if sr else "f", {}, 1)
    D8 = M.V.view(u8).reshape(*M.V.shape, 4)[n]
    if sr:
        byte = (osel[2] + 2 * osel[3]) if len(osel) > 3 else 0
        drop = 23 - F.mbits

        def f():
            bits = np.ascontiguousarray(np.broadcast_to(call(a), (M.W, 64))).view(u32)
            r = np.broadcast_to(A(call(b)), (M.W, 64)) >> u32(32 - drop)
            t = ((bits + r) & u32(0xFFFFFFFF ^ ((1 << drop) - 1))).view(
                f32
            )  # stochastic: add random low bits, then truncate (normal range)
            np.copyto(
                D8[..., byte],
                F.enc(np.where(np.isfinite(call(a)), t, call(a)), sat=M.mode["fp16_ovfl"]).astype(
                    u8
                ),
                where=M.EX,
            )

        return f
    hi = osel[2] if len(osel) > 2 else (osel[3] if len(osel) > 3 else 0)
    if len(osel) == 4:
        hi = osel[3]
    half = M.V16[n, :, :, hi]

    def f():
        lo, h = F.enc(call(a), sat=M.mode["fp16_ovfl"]), F.enc(call(b), sat=M.mode["fp16_ovfl"])
        np.copyto(half, (lo | (h << u32(8))).astype(u16), where=M.EX)

    return f


@special(
    "v_fma_mix_f32",
    "v_fma_mixlo_f16",
    "v_fma_mixhi_f16",
    "v_mad_mix_f32",
    "v_mad_mixlo_f16",
    "v_mad_mixhi_f16",
)
def _mix(M, ins, base, i):
    osel, oh = ins.mods.get("op_sel", [0] * 3), ins.mods.get("op_sel_hi", [0] * 3)
    g = []
    for j, s in enumerate(ins.ops[1:4]):
        if oh[j]:
            x = modded(M, s, "h", {"op_sel": osel}, j)
            g.append(lambda x=x: A(call(x)).astype(f32))
        else:
            g.append(modded(M, s, "f", {}, j))
    cl = ins.mods.get("clamp")
    r32 = base.endswith("f32")
    out = put(M, ins.ops[0], "f" if r32 else "h", hi=int("hi_" in base), preserve=True)

    def f():
        v = fma32(*[call(x) for x in g])
        if cl:
            v = np.clip(np.nan_to_num(v), f32(0), f32(1))
        out(v if r32 else v.astype(f16))

    return f
