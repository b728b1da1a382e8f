"""Packed two-element vector math, dot products and the scaled conversions of gfx950."""

from __future__ import annotations

import re

import numpy as np

from .arithmetic import A, flush32, fma16, fma32
from .definitions import Unsupported, f16, f32, f64, i16, i32, i64, u8, u16, u32
from .operands import DT, bf2f, call, f2bf, parse_reg, put, row, src
from .small_floats import E2M1, E2M3, E3M2, E4M3, E5M2
from .vector_lanes import SPECIALS
from .vector_table import pk16

PK16 = {
    "v_pk_add_f16": ("h", np.add),
    "v_pk_mul_f16": ("h", np.multiply),
    "v_pk_fma_f16": ("h", fma16),
    "v_pk_max_f16": ("h", np.fmax),
    "v_pk_min_f16": ("h", np.fmin),
    "v_pk_fmac_f16": ("h", fma16),
    "v_pk_maximum3_f16": ("h", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_pk_minimum3_f16": ("h", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    "v_pk_add_u16": ("w", np.add),
    "v_pk_sub_u16": ("w", np.subtract),
    "v_pk_mul_lo_u16": ("w", np.multiply),
    "v_pk_mad_u16": ("w", lambda a, b, c: a * b + c),
    "v_pk_add_i16": ("s", np.add),
    "v_pk_sub_i16": ("s", np.subtract),
    "v_pk_mad_i16": ("s", lambda a, b, c: a * b + c),
    "v_pk_max_u16": ("w", np.maximum),
    "v_pk_min_u16": ("w", np.minimum),
    "v_pk_max_i16": ("s", np.maximum),
    "v_pk_min_i16": ("s", np.minimum),
    "v_pk_lshlrev_b16": ("w", lambda a, b: b << (a & u16(15))),
    "v_pk_lshrrev_b16": ("w", lambda a, b: b >> (a & u16(15))),
    "v_pk_ashrrev_i16": ("s", lambda a, b: b >> (a & i16(15))),
}
PK32 = {"v_pk_fma_f32": fma32, "v_pk_mul_f32": np.multiply, "v_pk_add_f32": np.add}


def src_half(M, s, ty, sel):
    """one 16-bit half of a packed operand"""
    if parse_reg(s) is not None:
        return src(M, s, ty, hi=sel)
    try:
        v = int(s, 0) & 0xFFFFFFFF
    except ValueError:
        v = int(f16(float(s)).view(u16))
    return u16((v >> (16 * sel)) & 0xFFFF).view(DT[ty])


def neg_of(x):
    return lambda: -call(x)


def compile_pk(M, ins, base):
    md = ins.mods
    ops = list(ins.ops)
    if base == "v_pk_fmac_f16":
        ops.append(ops[0])
    n = len(ops) - 1
    os_, oh = md.get("op_sel", [0] * n), md.get("op_sel_hi", [1] * n)
    nl, nh = md.get("neg_lo", [0] * n), md.get("neg_hi", [0] * n)
    cl = md.get("clamp")
    k, d, _c = parse_reg(ops[0])
    d = row(M, k, d)
    if base in PK16:
        ty, fn = PK16[base]
        lo, hi = [], []
        for j, s in enumerate(ops[1:]):
            a, b = src_half(M, s, ty, os_[j]), src_half(M, s, ty, oh[j])
            lo.append(neg_of(a) if nl[j] else a)
            hi.append(neg_of(b) if nh[j] else b)
        if cl and ty != "h":  # saturating 16-bit integer forms
            wide_ = {
                "v_pk_add_u16": np.add,
                "v_pk_sub_u16": np.subtract,
                "v_pk_add_i16": np.add,
                "v_pk_sub_i16": np.subtract,
                "v_pk_mad_u16": lambda a, b, c: a * b + c,
                "v_pk_mad_i16": lambda a, b, c: a * b + c,
            }.get(base)
            if wide_ is None:
                raise Unsupported("clamp on " + base)
            lim, dt16 = ((0, 65535), u16) if ty == "w" else ((-32768, 32767), i16)
            fn = lambda *v: np.clip(wide_(*[A(x).astype(i64) for x in v]), *lim).astype(dt16)
            cl = None
        D = M.V[d]
        EX = M.EX

        def f():
            x, y = fn(*[call(v) for v in lo]), fn(*[call(v) for v in hi])
            if cl:
                x, y = (np.clip(np.nan_to_num(v), f16(0), f16(1)) for v in (x, y))
            np.copyto(D, pk16(np.ascontiguousarray(x), np.ascontiguousarray(y)), where=EX)

        return f
    if base in PK32 or base == "v_pk_mov_b32":

        def half(s, sel):
            r = parse_reg(s)
            if r is None:
                if sel:
                    raise Unsupported("high half of a constant in packed f32")
                return src(M, s, "f")
            kk, m, _cnt = r
            return M.Sf[:, m + sel : m + sel + 1] if kk == "s" else M.Vf[row(M, kk, m) + sel]

        if base == "v_pk_mov_b32":
            a, b = half(ops[1], os_[0]), half(ops[2], os_[1] if "op_sel" in md else 0)

            def f():
                w = True if M.full else M.EX
                x, y = np.array(A(a).view(u32)), np.array(A(b).view(u32))
                np.copyto(M.V[d], x, where=w)
                np.copyto(M.V[d + 1], y, where=w)

            return f
        fn = PK32[base]
        lo, hi = [], []
        for j, s in enumerate(ops[1:]):
            a, b = half(s, os_[j]), half(s, oh[j])
            lo.append(neg_of(a) if nl[j] else a)
            hi.append(neg_of(b) if nh[j] else b)
        X, Y, EX = M.Vf[d], M.Vf[d + 1], M.EX

        def f():
            x, y = fn(*[call(v) for v in lo]), fn(*[call(v) for v in hi])
            if M.may_ftz and M.mode["ftz32"]:
                x, y = flush32(x), flush32(y)
            if cl:
                x, y = (np.clip(np.nan_to_num(v), f32(0), f32(1)) for v in (x, y))
            if M.full:
                X[...] = x
                Y[...] = y
            else:
                np.copyto(X, x, where=EX)
                np.copyto(Y, y, where=EX)

        return f
    raise Unsupported(f"instruction {ins.op}")


def _dot(M, ins, base, i):
    """v_dot2/4/8 and the accumulate-in-place v_dotNc forms"""
    m = re.match(r"v_dot(\d)(c?)_([fiu]32)_(\w+)$", base)
    if not m:
        raise Unsupported(base)
    n, rt, t = int(m[1]), m[3], m[4]
    w = 32 // n
    ops = list(ins.ops) + ([ins.ops[0]] if m[2] else [])
    nl, nh = ins.mods.get("neg_lo", [0] * 3), ins.mods.get("neg_hi", [0] * 3)
    os_, oh = ins.mods.get("op_sel", [0] * 3), ins.mods.get("op_sel_hi", [1] * 3)
    ty = {"f32": "f", "i32": "i", "u32": "u"}[rt]
    c = src(M, ops[3], ty) if len(ops) > 3 else None
    cl = ins.mods.get("clamp")
    if t in ("f16", "bf16"):

        def half(s, j, h):
            x = src_half(M, s, "h" if t == "f16" else "w", h)
            ng = (nh if h == oh[j] and h else nl)[j]
            return lambda: (
                (-1 if ng else 1) * (A(call(x)).astype(f32) if t == "f16" else bf2f(A(call(x))))
            )

        lo = [half(ops[1 + j], j, os_[j]) for j in (0, 1)]
        hi = [half(ops[1 + j], j, oh[j]) for j in (0, 1)]
        out = put(M, ins.ops[0], "f")
        return lambda: out(
            (lo[0]().astype(f64) * lo[1]() + hi[0]().astype(f64) * hi[1]() + call(c)).astype(f32)
        )
    tt = t.split("_")
    sg = [x[0] == "i" for x in (tt if len(tt) == 2 else tt * 2)]
    a, b = src(M, ops[1], "u"), src(M, ops[2], "u")
    out = put(M, ins.ops[0], ty)

    def el(x, k, s):
        v = ((A(x) >> u32(w * k)) & u32((1 << w) - 1)).astype(i64)
        return (v ^ (1 << (w - 1))) - (1 << (w - 1)) if s else v

    def f():
        x, y = call(a), call(b)
        r = A(call(c)).astype(i64)
        for k in range(n):
            r = r + el(x, k, sg[0]) * el(y, k, sg[1])
        if cl:
            r = np.clip(r, -(2**31) if ty == "i" else 0, 2**31 - 1 if ty == "i" else 2**32 - 1)
        out(r.astype(DT[ty]))

    return f


for _n in (
    "v_dot2_f32_f16",
    "v_dot2_f32_bf16",
    "v_dot2c_f32_f16",
    "v_dot2c_f32_bf16",
    "v_dot4_i32_i8",
    "v_dot4_u32_u8",
    "v_dot4c_i32_i8",
    "v_dot8_i32_i4",
    "v_dot8_u32_u4",
    "v_dot8c_i32_i4",
    "v_dot2_i32_i16",
    "v_dot2_u32_u16",
    "v_dot2c_i32_i16",
):
    SPECIALS[_n] = _dot


# ---- gfx950 scaled conversions -----------------------------------------------------------------------
def compile_scalef32(M, ins, base):
    """v_cvt_scalef32_[pk_|pk32_..]<dst>_<src>: fp4/fp6/fp8/bf8 <-> f32/f16/bf16 with a power-of-two f32 scale (its exponent counts)"""
    m = re.match(
        r"v_cvt_scalef32_(sr_)?(pk\d*_)?(f32|f16|bf16|fp8|bf8|fp4|fp6|bf6)_(f32|f16|bf16|fp8|bf8|fp4|fp6|bf6)$",
        base,
    )
    if not m or m[1]:
        raise Unsupported(base)
    pk, dt, st = m[2] or "", m[3], m[4]
    FM = {"fp8": E4M3, "bf8": E5M2, "fp4": E2M1, "fp6": E2M3, "bf6": E3M2}
    osel = ins.mods.get("op_sel", [0] * 4)
    k, d, _c = parse_reg(ins.ops[0])
    d = row(M, k, d)
    EX = M.EX
    ex = lambda x: np.ldexp(1.0, ((A(call(x)).view(u32) >> u32(23)) & u32(255)).astype(i32) - 127)
    if pk in ("", "pk_") and st in FM:  # small -> wide
        F = FM[st]
        bits = 4 if st == "fp4" else 8
        x, sc = src(M, ins.ops[1], "u"), src(M, ins.ops[2], "f")
        n = 2 if pk else 1
        sh = 8 * (osel[0] + 2 * osel[1]) if bits == 4 or n == 1 else 16 * osel[0]

        def f():
            v, s = call(x) >> u32(sh), ex(sc)
            r = [
                (F.dec((v >> u32(bits * j)) & u32((1 << bits) - 1)).astype(f64) * s).astype(f32)
                for j in range(n)
            ]
            if dt == "f32":
                for j in range(n):
                    np.copyto(M.Vf[d + j], r[j], where=EX)
            else:
                cv = (lambda z: z.astype(f16).view(u16)) if dt == "f16" else f2bf
                if n == 2:
                    np.copyto(
                        M.V[d], cv(r[0]).astype(u32) | (cv(r[1]).astype(u32) << u32(16)), where=EX
                    )
                else:
                    np.copyto(
                        M.V16[
                            d, :, :, osel[3] if len(osel) > 3 else (osel[2] if len(osel) > 2 else 0)
                        ],
                        cv(r[0]),
                        where=EX,
                    )

        return f
    if pk == "pk_" and dt in FM:  # wide -> small
        F = FM[dt]
        bits = 4 if dt == "fp4" else 8
        if st == "f32":
            g = [src(M, ins.ops[1], "f"), src(M, ins.ops[2], "f")]
            sc = src(M, ins.ops[3], "f")
            os2 = osel[2:] if len(osel) > 2 else [0]
        else:
            ty = "h" if st == "f16" else "b"
            g = [src(M, ins.ops[1], ty, hi=h) for h in (0, 1)]
            sc = src(M, ins.ops[2], "f")
            os2 = osel[2:] if len(osel) > 2 else [0]
        D8 = M.V.view(u8).reshape(*M.V.shape, 4)[d]

        def f():
            s = ex(sc)
            r = [F.enc(A(call(x)).astype(f64) / s, sat=M.mode["fp16_ovfl"]) for x in g]
            if bits == 4:
                np.copyto(
                    D8[..., os2[0] + 2 * (os2[1] if len(os2) > 1 else 0)],
                    (r[0] | (r[1] << u32(4))).astype(u8),
                    where=EX,
                )
            else:
                np.copyto(M.V16[d, :, :, os2[-1]], (r[0] | (r[1] << u32(8))).astype(u16), where=EX)

        return f
    raise Unsupported(base)
