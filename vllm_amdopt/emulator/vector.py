"""Vector ALU instructions: DPP, SDWA, clamp and output modifiers around the functions of the table."""

from __future__ import annotations

import numpy as np

from .arithmetic import A, flush32, s24, u24
from .definitions import EXEC, Unsupported, f32, i16, i32, i64, u16, u32, u64, unpack
from .matrix import compile_mfma
from .operands import DT, call, modded, parse_reg, put, put_mask, row
from .vector_lanes import SPECIALS
from .vector_packed import compile_pk, compile_scalef32
from .vector_table import VALU


def dpp_map(mods):
    """-> (source lane per lane, valid per lane, row/bank write mask)"""
    L = np.arange(64)
    r, p = L & ~15, L & 15
    sl, ok = L.copy(), np.ones(64, bool)
    if "quad_perm" in mods:
        sl = (L & ~3) + np.array(mods["quad_perm"])[L & 3]
    elif "row_shl" in mods:
        q = p + mods["row_shl"]
        ok = q < 16
        sl = r + (q & 15)
    elif "row_shr" in mods:
        q = p - mods["row_shr"]
        ok = q >= 0
        sl = r + (q & 15)
    elif "row_ror" in mods:
        sl = r + ((p - mods["row_ror"]) & 15)
    elif "wave_shl" in mods:
        ok = L + 1 < 64
        sl = (L + 1) & 63
    elif "wave_rol" in mods:
        sl = (L + 1) & 63
    elif "wave_shr" in mods:
        ok = L >= 1
        sl = (L - 1) & 63
    elif "wave_ror" in mods:
        sl = (L - 1) & 63
    elif "row_mirror" in mods:
        sl = r + 15 - p
    elif "row_half_mirror" in mods:
        sl = (L & ~7) + 7 - (L & 7)
    elif "row_bcast" in mods:
        if mods["row_bcast"] == 15:
            ok = L >= 16
            sl = np.maximum(r - 1, 0)
        else:
            ok = L >= 32
            sl = np.full(64, 31)
    elif "row_newbcast" in mods:
        sl = r + mods["row_newbcast"]
    elif "row_share" in mods:
        sl = r + mods["row_share"]
    else:
        raise Unsupported("DPP control")
    rm, bm = mods.get("row_mask", 15), mods.get("bank_mask", 15)
    return sl, ok, ((rm >> (L >> 4)) & 1).astype(bool) & ((bm >> ((L >> 2) & 3)) & 1).astype(bool)


SUFFIX = ("_e64_dpp", "_e32", "_e64", "_sdwa", "_dpp")
UF2 = {
    np.add,
    np.subtract,
    np.multiply,
    np.fmax,
    np.fmin,
    np.bitwise_and,
    np.bitwise_or,
    np.bitwise_xor,
    np.maximum,
    np.minimum,
}


def base_name(op):
    for s in SUFFIX:
        if op.endswith(s):
            return op[: -len(s)], s
    return op, ""


def compile_valu(M, ins, i):
    base, suf = base_name(ins.op)
    mods, ops = ins.mods, list(ins.ops)
    sp = SPECIALS.get(base)
    if sp is not None:
        return sp(M, ins, base, i)
    if base.startswith(("v_mfma", "v_smfmac")):
        return compile_mfma(M, ins, base)
    if base.startswith("v_pk_"):
        return compile_pk(M, ins, base)
    if base.startswith("v_cvt_scalef32"):
        return compile_scalef32(M, ins, base)
    if base not in VALU or VALU[base] is None:
        if base == "v_nop":
            return None
        raise Unsupported(f"instruction {ins.op}")
    dst, st, fn = VALU[base]
    nd = len(dst)
    if base in (
        "v_fmaak_f32",
        "v_fmamk_f32",
        "v_madak_f32",
        "v_madmk_f32",
        "v_madak_f16",
        "v_madmk_f16",
    ):
        pass
    dops, sops = ops[:nd], ops[nd:]
    if dst == "x" or (dst == "m" and nd == 1):
        dops, sops = ops[:1], ops[1:]
    if "D" in st:
        sops = [*sops[: st.index("D")], dops[0]]
    if len(sops) < len(st) and st[-1] == "m":
        sops.append("vcc")
    assert len(sops) == len(st), f"{len(sops)} operands for {st}"
    sdwa = suf == "_sdwa"
    dpp = suf in ("_dpp", "_e64_dpp")
    get = []
    for j, (s, t) in enumerate(zip(sops, st, strict=False)):
        if t == "m":
            k, n, c = parse_reg(s)
            get.append(lambda n=n: unpack(M.S8, n))
            continue
        if t == "D":
            t = dst[0]
        if t in "pq":
            t = st[0]
        get.append(modded(M, s, t, mods, j, sdwa if sdwa and j < 2 else None, i))
    wmask = None
    if dpp:
        sl, ok, wm = dpp_map(mods)
        g0 = get[0]
        bc = "bound_ctrl" in mods  # before gfx11 both spellings, :0 and :1, set the bit
        allok = bool(ok.all())

        def perm0():
            x = call(g0)
            x = np.broadcast_to(x, (M.W, 64))[:, sl]
            v = None if (allok and M.full) else (ok & M.EX[:, sl])
            if v is not None and bc:
                x = np.where(v, x, x.dtype.type(0))
            return x

        get[0] = perm0

        def wmask():
            m = M.EX & wm
            return m if bc else m & ok & M.EX[:, sl]

    d0 = dst[0]
    if d0 in "mx":
        out = put_mask(M, dops[0])
        if d0 == "x":
            ex = put_mask(M, "exec")
            o1 = out

            def out(v):
                if not M.full:
                    v = v & M.EX
                if parse_reg(dops[0])[1] != EXEC:
                    o1(v)
                ex(v)

        a, b = get
        if (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.ndim and b.ndim) or True:

            def f():
                out(fn(call(a), call(b)))

        return f
    clamp, omod = mods.get("clamp"), mods.get("mul", 1) / mods.get("div", 1)
    osel = mods.get("op_sel")
    hi = 0
    if d0 in "hswpq" and osel:
        hi = osel[len(st)] if len(osel) > len(st) else 0
    dty = {"p": "h", "q": st[0]}.get(d0, d0)
    out = put(
        M,
        dops[0],
        dty,
        hi=hi,
        preserve=d0 in "pq",
        sdwa_sel=mods.get("dst_sel") if sdwa else None,
        unused=mods.get("dst_unused"),
    )
    outm = put_mask(M, dops[1]) if nd > 1 else None
    isf = dty in "fFhb"
    if clamp and not isf:
        U = {
            "v_add_u32": lambda a, b: np.minimum(A(a).astype(u64) + b, u64(0xFFFFFFFF)).astype(u32),
            "v_sub_u32": lambda a, b: np.where(a > b, a - b, u32(0)),
            "v_subrev_u32": lambda a, b: np.where(b > a, b - a, u32(0)),
            "v_add_i32": lambda a, b: np.clip(
                A(a).view(i32).astype(i64) + A(b).view(i32), -(2**31), 2**31 - 1
            ).astype(i32),
            "v_sub_i32": lambda a, b: np.clip(
                A(a).view(i32).astype(i64) - A(b).view(i32), -(2**31), 2**31 - 1
            ).astype(i32),
            "v_add_u16": lambda a, b: np.minimum(A(a).astype(u32) + b, u32(65535)).astype(u16),
            "v_sub_u16": lambda a, b: np.where(a > b, a - b, u16(0)),
            "v_add_i16": lambda a, b: np.clip(A(a).astype(i32) + b, -32768, 32767).astype(i16),
            "v_sub_i16": lambda a, b: np.clip(A(a).astype(i32) - b, -32768, 32767).astype(i16),
            "v_mad_u16": lambda a, b, c: np.minimum(A(a).astype(u64) * b + c, u64(65535)).astype(
                u16
            ),
            "v_mad_i32_i24": lambda a, b, c: np.clip(
                s24(a).astype(i64) * s24(b) + c, -(2**31), 2**31 - 1
            ).astype(i32),
            "v_mad_u32_u24": lambda a, b, c: np.minimum(
                u24(a).astype(u64) * u24(b) + c, u64(0xFFFFFFFF)
            ).astype(u32),
        }
        if base not in U:
            raise Unsupported(f"clamp on {base}")
        fn = U[base]
        clamp = None
    D = {"u": M.V, "i": M.Vi, "f": M.Vf}.get(dty)
    ftz = M.may_ftz and dty == "f" and base not in ("v_mov_b32", "v_cndmask_b32") and "f" in st
    if (
        isinstance(fn, np.ufunc)
        and fn in UF2
        and D is not None
        and st == dty * 2
        and not (sdwa or dpp or clamp or omod != 1 or ftz)
        and nd == 1
    ):
        a, b = get
        k, n, c = parse_reg(dops[0])
        D = D[row(M, k, n)]
        EX = M.EX
        if not callable(a) and not callable(b):

            def f():
                if M.full:
                    fn(a, b, out=D)
                else:
                    fn(a, b, out=D, where=EX)
        else:

            def f():
                if M.full:
                    fn(call(a), call(b), out=D)
                else:
                    fn(call(a), call(b), out=D, where=EX)

        return f
    if (
        base in ("v_mov_b32", "v_accvgpr_read_b32", "v_accvgpr_write_b32", "v_accvgpr_mov_b32")
        and not (sdwa or dpp)
        and not callable(get[0])
    ):
        k, n, c = parse_reg(dops[0])
        D = M.V[row(M, k, n)]
        a = get[0]
        EX = M.EX

        def f():
            if M.full:
                D[...] = a
            else:
                np.copyto(D, a, where=EX)

        return f
    if isf and (clamp or omod != 1 or ftz):
        g = fn
        one = DT[dty](1)
        om = DT[dty](omod)

        def fn(*a):
            fl = ftz and M.mode["ftz32"]
            if fl:
                a = [flush32(x) if getattr(x, "dtype", None) == f32 else x for x in a]
            v = g(*a)
            rest = None
            if isinstance(v, tuple):
                v, rest = v
            if fl:
                v = flush32(v)
            if omod != 1 and M.mode["ftz32" if dty == "f" else "ftz16"]:
                v = v * om  # output modifiers are ignored while denormals are on
            if clamp:
                v = np.where(np.isnan(v), DT[dty](0), np.clip(v, DT[dty](0), one))
            return v if rest is None else (v, rest)

    if nd > 1:

        def f():
            v, m = fn(*[call(x) for x in get])
            if base.startswith("v_div_scale") is False and wmask is not None:
                out(v, wmask())
            else:
                out(v)
            outm(m)

        return f
    if wmask is not None:

        def f():
            out(fn(*[call(x) for x in get]), wmask())

        return f
    if len(get) == 1:
        a = get[0]
        if callable(a):

            def f():
                out(fn(a()))
        else:

            def f():
                out(fn(a))
    elif len(get) == 2:
        a, b = get
        if callable(a) or callable(b):

            def f():
                out(fn(call(a), call(b)))
        else:

            def f():
                out(fn(a, b))
    else:
        a, b, c = get[:3]
        if len(get) == 4:
            d = get[3]

            def f():
                out(fn(call(a), call(b), call(c), call(d)))
        elif callable(a) or callable(b) or callable(c):

            def f():
                out(fn(call(a), call(b), call(c)))
        else:

            def f():
                out(fn(a, b, c))

    return f
