"""Matrix-core instructions (MFMA): operand layouts and the product."""

from __future__ import annotations

import re

import numpy as np

from .arithmetic import A
from .definitions import Unsupported, f16, f32, f64, i32, i64, u8, u16, u32
from .operands import bf2f, call, const, parse_reg, row, src
from .small_floats import E2M1, E2M3, E3M2, bf8, fp8


def _tf32(x):
    b = x.view(u32)
    return ((b + u32(0xFFF) + ((b >> u32(13)) & u32(1))) & u32(0xFFFFE000)).view(f32)


def mat_elems(M, raw, t):
    """raw u32 (W, 64, nreg) -> elements (W, 64, kk) as f64 (integers exactly)"""
    raw = np.ascontiguousarray(raw)
    if t in ("f32", "xf32"):
        x = raw.view(f32)
        return (_tf32(x) if t == "xf32" else x).astype(f64)
    if t == "f64":
        return raw.view(f64)
    if t == "f16":
        return raw.view(f16).astype(f64)
    if t == "bf16":
        return bf2f(raw.view(u16)).astype(f64)
    if t == "i8":
        return raw.view(np.int8).astype(f64)
    if t == "fp8":
        return fp8(M).dec(raw.view(u8)).astype(f64)
    if t == "bf8":
        return bf8(M).dec(raw.view(u8)).astype(f64)
    if t == "fp4":
        b = raw.view(u8)
        return E2M1.dec(np.stack([b & 15, b >> 4], -1).reshape(*b.shape[:2], -1)).astype(f64)
    if t in ("fp6", "bf6"):
        bits = np.unpackbits(raw.view(u8), axis=-1, bitorder="little").reshape(
            *raw.shape[:2], -1, 6
        )
        return (
            (E2M3 if t == "fp6" else E3M2)
            .dec((bits.astype(i64) << np.arange(6)).sum(-1))
            .astype(f64)
        )
    raise Unsupported(f"matrix type {t}")


def compile_mfma(M, ins, base):
    m = re.match(
        r"v_mfma_(scale_)?(f32|i32|f64)_(\d+)x(\d+)x(\d+)_?(?:(\d+)b_)?(f8f6f4|xf32|f32|f16|bf16|i8|fp8|bf8|f64)(?:_(fp8|bf8|1k))?$",
        base,
    )
    if not m:
        raise Unsupported(f"instruction {ins.op}")
    scaled, rt, mm, nn, kk = m[1], m[2], int(m[3]), int(m[4]), int(m[5])
    ta = m[7]
    tb = m[8] if m[8] in ("fp8", "bf8") else ta
    nb = int(m[6] or 1)
    md = ins.mods
    f84 = ta == "f8f6f4"
    if f84:
        FMT = ["fp8", "bf8", "fp6", "bf6", "fp4"]
        ta, tb = FMT[md.get("cbsz", 0)], FMT[md.get("blgp", 0)]
    elif md.get("cbsz") or (md.get("blgp") and rt != "f64"):
        raise Unsupported("mfma cbsz/blgp broadcast")
    if (nb == 1 and rt != "f64" and mm == 32 and kk in (1,)) or (mm == 4 and nb == 1):
        nb = {32: 2, 16: 4, 4: 16 if rt != "f64" else 4}[mm]
    if nb == 1 and not f84:  # old spelling without _2b/_4b: recognise by the accumulator size
        kd, _dd, dc = parse_reg(ins.ops[0])
        if rt != "f64" and dc * 64 > mm * nn:
            nb = dc * 64 // (mm * nn)
    (ka, a, na), (kb, b, nbr) = parse_reg(ins.ops[1]), parse_reg(ins.ops[2])
    kd, d, nd = parse_reg(ins.ops[0])
    ra, rb, rd = row(M, ka, a), row(M, kb, b), row(M, kd, d)
    cr = parse_reg(ins.ops[3])
    rc = row(M, cr[0], cr[1]) if cr else None
    cc = None if cr else const(ins.ops[3], {"f32": "f", "i32": "i", "f64": "F"}[rt])
    W = M.W
    neg = md.get("neg_lo", md.get("neg")) if rt == "f64" else None
    if f84:
        need = {"fp8": 8, "bf8": 8, "fp6": 6, "bf6": 6, "fp4": 4}
        na, nbr = need[ta], need[tb]
    if scaled:
        osl, osh = md.get("op_sel", [0, 0, 0]), md.get("op_sel_hi", [0, 0, 0])
        sa, sb = src(M, ins.ops[4], "u"), src(M, ins.ops[5], "u")
        sha, shb = (8 * (osl[j] + 2 * osh[j]) for j in (0, 1))

    def operand16(r, n, t, size):
        """the usual case, one block of bf16 or f16: reordered while it is still 16 bits wide"""
        g = 64 // size
        x = M.V16[r : r + n].reshape(n, W, g, size, 2).transpose(1, 3, 2, 0, 4)
        x = np.ascontiguousarray(x).reshape(W, size, g * n * 2)
        return (bf2f(x) if t == "bf16" else x.view(f16)).astype(f64)

    def operand(r, n, t, size):
        if nb == 1 and t in ("bf16", "f16"):
            return operand16(r, n, t, size)
        x = mat_elems(M, M.V[r : r + n].transpose(1, 2, 0), t)
        if nb > 1:
            if rt == "f64":
                return x.reshape(W, 4, 4, 4).transpose(0, 2, 3, 1)  # lane = k*16 + block*4 + i
            return x.reshape(W, nb, size, -1)
        g = 64 // size
        e = x.shape[-1]
        x = x.reshape(W, g, size, e)
        if f84 and t in ("fp8", "bf8"):
            return (
                x.reshape(W, g, size, 2, e // 2).transpose(0, 2, 3, 1, 4).reshape(W, size, g * e)
            )  # two runs of 16 k
        return x.transpose(0, 2, 1, 3).reshape(W, size, g * e)

    def scale(x, sc, sh, size):
        e = (np.broadcast_to(A(call(sc)), (W, 64)) >> u32(sh)) & u32(255)
        s = np.where(e == 255, np.nan, np.ldexp(1.0, e.astype(i32) - 127))
        s = s.reshape(W, 64 // size, size).transpose(
            0, 2, 1
        )  # lane group g scales k block g (32 elements)
        return (x.reshape(W, size, 64 // size, 32) * s[..., None]).reshape(W, size, -1)

    if rt == "f64":
        if nb == 1:
            fwd = lambda z: z.reshape(4, W, 4, 16).transpose(1, 0, 2, 3).reshape(W, 16, 16)
            bwd = lambda z: z.reshape(W, 4, 4, 16).transpose(1, 0, 2, 3).reshape(4, W, 64)
        else:
            fwd = lambda z: z.reshape(W, 4, 4, 4).transpose(0, 2, 1, 3)
            bwd = lambda z: z.transpose(0, 2, 1, 3).reshape(1, W, 64)
    elif mm == 32:
        fwd = lambda z: (
            z.reshape(nb, 4, 4, W, 2, 32).transpose(3, 0, 1, 4, 2, 5).reshape(W, nb, 32, 32)
        )
        bwd = lambda z: z.reshape(W, nb, 4, 2, 4, 32).transpose(1, 2, 4, 0, 3, 5).reshape(-1, W, 64)
    elif mm == 16:
        fwd = lambda z: z.reshape(nb, 4, W, 4, 16).transpose(2, 0, 3, 1, 4).reshape(W, nb, 16, 16)
        bwd = lambda z: z.reshape(W, nb, 4, 4, 16).transpose(1, 3, 0, 2, 4).reshape(-1, W, 64)
    else:
        fwd = lambda z: z.reshape(4, W, 16, 4).transpose(1, 2, 0, 3)
        bwd = lambda z: z.transpose(2, 0, 1, 3).reshape(-1, W, 64)
    sq = (lambda z: z[:, 0]) if nb == 1 and rt != "f64" else (lambda z: z)

    def f():
        x, y = operand(ra, na, ta, mm), operand(rb, nbr, tb, nn)
        if neg:
            if neg[0]:
                x = -x
            if neg[1]:
                y = -y
        if scaled:
            x, y = scale(x, sa, sha, mm), scale(y, sb, shb, nn)
        p = np.matmul(x, y.swapaxes(-1, -2))
        if rc is None:
            c = cc
        elif rt == "f64":
            c = sq(
                fwd(
                    np.ascontiguousarray(
                        M.V[rc : rc + nd].reshape(nd // 2, 2, W, 64).transpose(0, 2, 3, 1)
                    ).view(f64)[..., 0]
                )
            )
        else:
            c = sq(fwd((M.Vf if rt == "f32" else M.Vi)[rc : rc + nd]))
        if rt == "i32":
            r = (p.astype(i64) + c).astype(i32).view(u32)
        elif rt == "f32":
            r = (p + c).astype(f32).view(u32)
        else:
            r = (
                np.ascontiguousarray(bwd(p + (-c if neg and len(neg) > 2 and neg[2] else c)))
                .view(u32)
                .reshape(-1, W, 64, 2)
                .transpose(0, 3, 1, 2)
                .reshape(nd, W, 64)
            )
            if M.allact:
                M.V[rd : rd + nd] = r
            else:
                np.copyto(M.V[rd : rd + nd], r, where=M.act)
            return
        r = bwd(r)
        if M.allact:
            M.V[rd : rd + nd] = r
        else:
            np.copyto(M.V[rd : rd + nd], r, where=M.act)

    return f
