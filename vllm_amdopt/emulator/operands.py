"""Operands of an instruction: registers, constants, modifiers, and where results go."""

from __future__ import annotations

import re

import numpy as np

from .definitions import (
    EXEC,
    FLAT_SCR,
    M0,
    PRIVATE_APERTURE,
    SHARED_APERTURE,
    VCC,
    Unsupported,
    f16,
    f32,
    f64,
    i16,
    i32,
    i64,
    pack,
    u16,
    u32,
    u64,
)

SPECIAL = {
    "vcc": VCC,
    "vcc_lo": VCC,
    "vcc_hi": VCC + 1,
    "exec": EXEC,
    "exec_lo": EXEC,
    "exec_hi": EXEC + 1,
    "m0": M0,
    "flat_scratch": FLAT_SCR,
    "flat_scratch_lo": FLAT_SCR,
    "flat_scratch_hi": FLAT_SCR + 1,
    "xnack_mask": 104,
    "xnack_mask_lo": 104,
    "xnack_mask_hi": 105,
}
_reg = re.compile(r"^(v|s|a|ttmp|acc)(?:\[(\d+)(?::(\d+))?\]|(\d+))$")


def parse_reg(s):
    """-> (kind 'v'|'s'|'a', index, count) or None; a registers index rows of V above the v registers"""
    if s in SPECIAL:
        return "s", SPECIAL[s], 2 if s in ("vcc", "exec", "flat_scratch", "xnack_mask") else 1
    m = _reg.match(s)
    if not m:
        return None
    k = {"ttmp": "s", "acc": "a"}.get(m[1], m[1])
    lo = int(m[2] or m[4])
    hi = int(m[3] or lo)
    if m[1] == "ttmp":
        lo += 108
        hi += 108
    return k, lo, hi - lo + 1


DT = {
    "u": u32,
    "i": i32,
    "f": f32,
    "U": u64,
    "I": i64,
    "F": f64,
    "h": f16,
    "s": i16,
    "w": u16,
    "b": f32,
}
SIZE = {"u": 4, "i": 4, "f": 4, "U": 8, "I": 8, "F": 8, "h": 2, "s": 2, "w": 2, "b": 2}
FLOATS = "fFhb"


def sym_value(M, s, i):
    """symbol@rel32@lo+4 etc.: relative to the value the nearest preceding s_getpc_b64 returned"""
    m = re.match(r"^([\w.$@]+?)@(?:gotpc)?rel32@(lo|hi)(?:\+(\d+))?$", s)
    if not m:
        return None
    j = i
    while j >= 0 and M.prog.ins[j].op != "s_getpc_b64":
        j -= 1
    if "gotpc" in s:
        raise Unsupported(f"GOT-relative symbol {s}")
    d = M.sym_addr(m[1]) - M.code_addr(j + 1)
    return (d if m[2] == "lo" else d >> 32) & 0xFFFFFFFF


def const(s, ty):
    """inline constant or literal of an operand of type ty -> numpy scalar, or None"""
    dt = DT[ty]
    try:
        v = int(s, 0)
    except ValueError:
        v = None
    if v is not None:
        inline = -16 <= v <= 64
        if ty in "UI":
            if ty == "I" and not inline and v >> 31 == 1:
                v -= 1 << 32
            return u64(v & (1 << 64) - 1).view(dt)
        if ty == "F":
            return (u64(v & (1 << 64) - 1) if inline else u64((v & 0xFFFFFFFF) << 32)).view(f64)
        if ty in "hsw":
            return u16(v & 0xFFFF).view(dt)
        if ty == "b":
            return u32((v & 0xFFFF) << 16).view(f32)
        return u32(v & 0xFFFFFFFF).view(dt)
    try:
        x = float(s)
    except ValueError:
        return None
    if abs(abs(x) - 0.15915494) < 1e-6:
        x = np.copysign(0.15915494309189532, x)
    if ty in "FUI":
        return f64(x).view(dt)
    if ty in "hsw":
        return f16(x).view(dt)
    if ty == "b":
        return f32(x)
    return f32(x).view(dt)


def bf2f(x):
    return (x.astype(u32) << u32(16)).view(f32)


def f2bf(x):
    """f32 -> bf16 bits (u16), round to nearest even"""
    b = np.ascontiguousarray(x, dtype=f32).view(u32)
    r = (b + u32(0x7FFF) + ((b >> u32(16)) & u32(1))) >> u32(16)
    nan = (b & u32(0x7FFFFFFF)) > u32(0x7F800000)
    return np.where(nan, (b >> u32(16)) | u32(0x40), r).astype(u16)


def src(M, s, ty, hi=0, i=0):
    """operand -> array (fixed view) or zero-argument callable.  Broadcasts to (W, 64).  hi: use the high half (16-bit types)."""
    s = s.strip()
    r = parse_reg(s)
    if r is None:
        c = const(s, ty)
        if c is None:
            v = sym_value(M, s, i)
            if v is not None:
                return u32(v).view(DT[ty])
            if s in (
                "src_shared_base",
                "src_private_base",
                "src_shared_limit",
                "src_private_limit",
            ):
                v = {"src_shared_base": SHARED_APERTURE, "src_private_base": PRIVATE_APERTURE}.get(
                    s, 0xFFFFFFFF
                )
                return u64(v).view(DT[ty]) if ty in "UIF" else u32(v >> 32).view(DT[ty])
            if s in ("scc", "src_scc"):
                return lambda: M.scc.astype(DT[ty])
            if s in ("vccz", "src_vccz"):
                return lambda: (M.S64[:, VCC // 2 : VCC // 2 + 1] == 0).astype(DT[ty])
            if s in ("execz", "src_execz"):
                return lambda: (M.S64[:, EXEC // 2 : EXEC // 2 + 1] == 0).astype(DT[ty])
            if s in M.prog.labels or s in M.prog.data:
                return u32(M.sym_addr(s) & 0xFFFFFFFF)
            raise Unsupported(f"operand {s!r}")
        if hi and ty in "hswb":
            c = DT[ty](0)
        return c
    k, n, _cnt = r
    if k == "s":
        if ty in "UIF":
            if n & 1:
                return lambda: (
                    M.S[:, n : n + 1].astype(u64) | (M.S[:, n + 1 : n + 2].astype(u64) << u64(32))
                ).view(DT[ty])
            return M.S64.view(DT[ty])[:, n // 2 : n // 2 + 1]
        if ty in "hsw":
            return M.S.view(DT[ty])[:, 2 * n + hi : 2 * n + hi + 1]
        if ty == "b":
            x = M.S.view(u16)[:, 2 * n + hi : 2 * n + hi + 1]
            return lambda: bf2f(x)
        return M.S.view(DT[ty])[:, n : n + 1]
    n = row(M, k, n)
    if ty in "UIF":
        a, b, dt = M.V[n], M.V[n + 1], DT[ty]

        def pair():
            o = b.astype(u64)
            o <<= u64(32)
            o |= a
            return o.view(dt)

        return pair
    if ty in "hsw":
        return {"h": M.Vh, "s": M.Vs, "w": M.V16}[ty][n, :, :, hi]
    if ty == "b":
        x = M.V16[n, :, :, hi]
        return lambda: bf2f(x)
    return {"u": M.V, "i": M.Vi, "f": M.Vf}[ty][n]


def row(M, k, n):
    return n if k == "v" else M.nv + n


def call(x):
    return x() if callable(x) else x


def modded(M, s, ty, mods, idx, sdwa=None, i=0):
    """source with neg/abs (textual -x |x|), op_sel and SDWA selects -> array or callable"""
    s = s.strip()
    neg = ab = sx = False
    if s.startswith("neg("):
        neg, s = True, s[4:-1]
    elif s.startswith("-") and (
        s[1:2] == "|" or parse_reg(s[1:]) is not None or s[1:5] in ("abs(", "sext")
    ):
        neg, s = True, s[1:]
    if s.startswith("|"):
        ab, s = True, s.strip("|")
    elif s.startswith("abs("):
        ab, s = True, s[4:-1]
    if s.startswith("sext("):
        sx, s = True, s[5:-1]
    if s.startswith("-") and parse_reg(s[1:]) is not None:
        neg, s = True, s[1:]
    sel = None if sdwa is None else mods.get(f"src{idx}_sel", "DWORD")
    if sel not in (None, "DWORD"):
        x0 = src(M, s, "u", i=i)
        sh, w = {"B": (8 * int(sel[-1]), 8), "W": (16 * int(sel[-1]), 16)}[sel[0]]

        def get():
            x = (call(x0) >> u32(sh)) & u32((1 << w) - 1)
            if sx:
                x = ((x << u32(32 - w)).view(i32) >> i32(32 - w)).view(u32)
            if ty in "hsw":
                return x.astype(u16).view(DT[ty])
            if ty == "b":
                return bf2f(x)
            return x.view(DT[ty])

        x = get
    else:
        osel = mods.get("op_sel") if ty in "hswb" else None
        x = src(M, s, ty, hi=osel[idx] if osel and idx < len(osel) else 0, i=i)
        if sx:
            raise Unsupported("sext without select")
    if not (neg or ab):
        return x
    if ty in FLOATS:
        if callable(x):
            return (
                (lambda: -np.abs(x()))
                if neg and ab
                else (lambda: np.abs(x()))
                if ab
                else (lambda: -x())
            )
        if isinstance(x, np.ndarray):
            return (
                (lambda: -np.abs(x)) if neg and ab else (lambda: np.abs(x)) if ab else (lambda: -x)
            )
        return -np.abs(x) if neg and ab else np.abs(x) if ab else -x
    if ty in "u" and (neg or ab):  # e.g. v_cndmask_b32 with float modifiers: acts on the sign bit

        def g():
            v = call(x)
            if ab:
                v = v & u32(0x7FFFFFFF)
            return v ^ u32(0x80000000) if neg else v

        return g
    if ty in "U" and (neg or ab):

        def g():
            v = call(x)
            if ab:
                v = v & u64(0x7FFFFFFFFFFFFFFF)
            return v ^ u64(1 << 63) if neg else v

        return g
    raise Unsupported(f"neg/abs on {ty}")


def put(M, s, ty, hi=0, preserve=False, sdwa_sel=None, unused=None):
    """destination -> function(value, where) ; where None = M.EX (or everything when M.full)"""
    k, n, _cnt = parse_reg(s)
    if k == "s":  # v_readlane and friends write through wsgpr; here: masks only
        raise Unsupported("vector result to SGPR")
    n = row(M, k, n)
    EX = M.EX
    if sdwa_sel not in (None, "DWORD"):
        sh, w = {"B": (8 * int(sdwa_sel[-1]), 8), "W": (16 * int(sdwa_sel[-1]), 16)}[sdwa_sel[0]]
        d = M.V[n]

        def st(v, where=None):
            v = np.broadcast_to(np.asarray(v), (M.W, 64))
            v = np.ascontiguousarray(v)
            v = f2bf(v) if ty == "b" else v.view({2: u16, 4: u32}[v.dtype.itemsize])
            v = v.astype(u32) & u32((1 << w) - 1)
            if unused == "UNUSED_PRESERVE":
                v = (d & u32(~(((1 << w) - 1) << sh) & 0xFFFFFFFF)) | (v << u32(sh))
            elif unused == "UNUSED_SEXT":
                v = (((v << u32(32 - w)).view(i32) >> i32(32 - w)).view(u32)) << u32(sh)
            else:
                v = v << u32(sh)
            np.copyto(d, v, where=EX if where is None else where)

        return st
    if ty in "UIF":
        a, b = M.V[n], M.V[n + 1]

        def st(v, where=None):
            v = np.asarray(v).view(u64)
            if where is None and M.full:
                a[...] = v
                b[...] = v >> u64(32)
            else:
                w = EX if where is None else where
                np.copyto(a, v, where=w, casting="unsafe")
                np.copyto(b, v >> u64(32), where=w, casting="unsafe")

        return st
    if ty in "hswb":
        d, half = M.V[n], M.V16[n, :, :, hi]

        def st(v, where=None):
            v = np.asarray(v)
            if ty == "b":
                v = f2bf(v)
            elif v.dtype != u16:
                v = np.ascontiguousarray(v).view(u16)
            t = half if (hi or preserve) else d
            np.copyto(t, v, where=EX if where is None else where)

        return st
    d = {"u": M.V, "i": M.Vi, "f": M.Vf}[ty][n]

    def st(v, where=None):
        if where is None and M.full:
            d[...] = v
        else:
            np.copyto(d, v, where=EX if where is None else where, casting="unsafe")

    return st


def put_mask(M, s):
    """lane mask result -> SGPR pair (bits of inactive lanes are 0); inactive waves keep theirs"""
    k, n, _cnt = parse_reg(s)
    assert k == "s" and n % 2 == 0
    d = M.S64[:, n // 2 : n // 2 + 1]
    shape = (M.W, 64)

    def st(v, where=None):
        if not M.full:
            v = v & M.EX
        p = pack(v if getattr(v, "shape", None) == shape else np.broadcast_to(v, shape))
        if M.allact:
            d[...] = p
        else:
            np.copyto(d, p, where=M.act)
        if n == EXEC:
            M.upd_exec()

    return st
