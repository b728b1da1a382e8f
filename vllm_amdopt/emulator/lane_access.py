"""What all memory instructions share: active lanes, register blocks, atomics, race and bank notes."""

from __future__ import annotations

import numpy as np

from .definitions import Unsupported, f16, f32, f64, i32, i64, u16, u32, u64
from .operands import bf2f, f2bf
from .scalar import sgn


def active(M):
    """flat indices of the active lanes, or None when all are"""
    return None if M.full else np.flatnonzero(M.EX)


def flat(x, ix):
    x = x.reshape(-1)
    return x if ix is None else x[ix]


def getregs(M, r, n, ix):
    """n consecutive VGPRs of the active lanes -> u32 [lanes, n]"""
    x = M.V[r : r + n].reshape(n, -1)
    return x.T if ix is None else x[:, ix].T


def setregs(M, r, data, ix):
    n = data.shape[1]
    x = M.V[r : r + n].reshape(n, -1)
    if ix is None:
        x[...] = data.T
    else:
        x[:, ix] = data.T


LOADK = {  # suffix -> (bytes, kind)
    "dword": (4, ""),
    "dwordx2": (8, ""),
    "dwordx3": (12, ""),
    "dwordx4": (16, ""),
    "ubyte": (1, ""),
    "sbyte": (1, "s"),
    "ushort": (2, ""),
    "sshort": (2, "s"),
    "short_d16": (2, "lo"),
    "short_d16_hi": (2, "hi"),
    "ubyte_d16": (1, "lo"),
    "ubyte_d16_hi": (1, "hi"),
    "sbyte_d16": (1, "slo"),
    "sbyte_d16_hi": (1, "shi"),
}
STOREK = {
    "dword": (4, 0),
    "dwordx2": (8, 0),
    "dwordx3": (12, 0),
    "dwordx4": (16, 0),
    "byte": (1, 0),
    "short": (2, 0),
    "byte_d16_hi": (1, 16),
    "short_d16_hi": (2, 16),
}


def small(v, size, kind):
    """extend a 1/2-byte load (u32 [n]) ; 's' sign"""
    if "s" in kind:
        v = sgn(v, 8 * size)
    return v & u32(0xFFFF) if ("lo" in kind or "hi" in kind) else v


def write_load(M, r, size, kind, v, ix):
    if size >= 4:
        return setregs(M, r, v, ix)
    v = small(v, size, kind)
    if kind in ("", "s"):
        return setregs(M, r, v[:, None], ix)
    h = M.V16[r, :, :, 1 if "hi" in kind else 0]
    if ix is None:
        h[...] = v.reshape(M.W, 64)
    else:
        h[ix // 64, ix % 64] = v


def note_lines(M, what, a, size, ix):
    """distinct 64-byte segments per wave of one vector memory instruction"""
    w = (np.arange(M.W * 64) if ix is None else ix) // 64
    lo, hi = a >> 6, (a + size - 1) >> 6
    key = np.unique(
        np.concatenate([(w << 46) | (lo & ((1 << 46) - 1)), (w << 46) | (hi & ((1 << 46) - 1))])
    )
    M.sectors[what] += len(key)


def note_banks(M, a, size, ix, what):
    """LDS cycles of one instruction: per group of lanes that can be served at once (128 B), the fullest bank decides"""
    nb = 64 if M.arch == "gfx950" else 32
    l = np.arange(M.W * 64) if ix is None else ix
    k = max(1, size // 4)
    per = max(1, 64 // k) if nb == 64 else max(1, 32 // k)
    grp = (l // 64) * 64 + (l % 64) // per
    dw = ((a >> 2)[:, None] + np.arange(k)).reshape(-1)
    g = np.repeat(grp, k)
    u = np.unique((g.astype(i64) << 32) | dw)
    gb = (u >> 32) * nb + (u & 0xFFFFFFFF) % nb
    ub, cn = np.unique(gb, return_counts=True)
    worst = np.zeros(int(grp.max()) + 1, i64)
    np.maximum.at(worst, ub // nb, cn)
    M.lds_cycles[0] += int(worst.sum())
    M.lds_cycles[1] += len(np.unique(grp))


# ---- atomics -----------------------------------------------------------------------------------------------
def _pkadd(dt):
    def f(o, d):
        if dt == f16:
            return (np.ascontiguousarray(o).view(f16) + np.ascontiguousarray(d).view(f16)).view(u32)
        return f2bf(
            bf2f(np.ascontiguousarray(o).view(u16)) + bf2f(np.ascontiguousarray(d).view(u16))
        ).view(u32)

    return f


ATOM = {  # name -> (dtype 32, dtype 64, fn(old, data), ufunc or None)
    "add": (u32, u64, lambda o, d: o + d, np.add),
    "sub": (u32, u64, lambda o, d: o - d, np.subtract),
    "smin": (i32, i64, np.minimum, np.minimum),
    "smax": (i32, i64, np.maximum, np.maximum),
    "umin": (u32, u64, np.minimum, np.minimum),
    "umax": (u32, u64, np.maximum, np.maximum),
    "and": (u32, u64, np.bitwise_and, np.bitwise_and),
    "or": (u32, u64, np.bitwise_or, np.bitwise_or),
    "xor": (u32, u64, np.bitwise_xor, np.bitwise_xor),
    "swap": (u32, u64, lambda o, d: d, None),
    "inc": (u32, u64, lambda o, d: np.where(o >= d, o.dtype.type(0), o + o.dtype.type(1)), None),
    "dec": (u32, u64, lambda o, d: np.where((o == 0) | (o > d), d, o - o.dtype.type(1)), None),
    "add_f32": (f32, None, np.add, np.add),
    "min_f32": (f32, None, np.fmin, None),
    "max_f32": (f32, None, np.fmax, None),
    "add_f64": (None, f64, np.add, np.add),
    "min_f64": (None, f64, np.fmin, np.fmin),
    "max_f64": (None, f64, np.fmax, np.fmax),
    "pk_add_f16": (u32, None, _pkadd(f16), None),
    "pk_add_bf16": (u32, None, _pkadd(None), None),
    "cmpswap": (u32, u64, None, None),
}
DSATOM = {
    "add_u32": "add",
    "sub_u32": "sub",
    "min_i32": "smin",
    "max_i32": "smax",
    "min_u32": "umin",
    "max_u32": "umax",
    "and_b32": "and",
    "or_b32": "or",
    "xor_b32": "xor",
    "inc_u32": "inc",
    "dec_u32": "dec",
    "add_f32": "add_f32",
    "min_f32": "min_f32",
    "max_f32": "max_f32",
    "wrxchg_b32": "swap",
    "wrxchg_rtn_b32": "swap",
    "cmpst_b32": "cmpswap",
    "add_u64": "add",
    "sub_u64": "sub",
    "min_i64": "smin",
    "max_i64": "smax",
    "min_u64": "umin",
    "max_u64": "umax",
    "and_b64": "and",
    "or_b64": "or",
    "xor_b64": "xor",
    "inc_u64": "inc",
    "dec_u64": "dec",
    "wrxchg_b64": "swap",
    "cmpst_b64": "cmpswap",
    "add_f64": "add_f64",
    "min_f64": "min_f64",
    "max_f64": "max_f64",
    "pk_add_f16": "pk_add_f16",
    "pk_add_bf16": "pk_add_bf16",
}


def do_atomic(arr, idx, fn, uf, data, ret, cmp=None):
    """sequential in lane order; returns the old values

    One that changes nothing writes nothing: atomics are not indivisible between processes, and a process that polls
    by adding 0 must not undo what another one writes meanwhile."""
    if not ret and uf is not None:
        uf.at(arr, idx, data)
        return None
    old = np.empty(len(idx), arr.dtype)
    o = np.argsort(idx, kind="stable")
    si = idx[o]
    first = np.r_[True, si[1:] != si[:-1]]
    rank = np.empty(len(idx), i64)
    pos = np.arange(len(idx))
    rank[o] = pos - np.maximum.accumulate(np.where(first, pos, 0))
    for r in range(int(rank.max()) + 1 if len(rank) else 0):
        m = np.flatnonzero(rank == r)
        ii = idx[m]
        ov = arr[ii]
        old[m] = ov
        new = np.where(ov == cmp[m], data[m], ov) if cmp is not None else fn(ov, data[m])
        changed = new != ov
        if changed.all():
            arr[ii] = new
        elif changed.any():
            arr[ii[changed]] = new[changed]
    return old


def atomic_desc(name):
    x2 = name.endswith("_x2")
    n = name[:-3] if x2 else name
    if n not in ATOM:
        raise Unsupported(f"atomic {name}")
    d32, d64, fn, uf = ATOM[n]
    wide_ = x2 or d32 is None
    return n, (d64 if wide_ else d32), 8 if wide_ else 4, fn, uf


def as_words(x):
    return np.ascontiguousarray(x).view(u32).reshape(len(x), -1)


def note_race(M, g, size, wv, write, where):
    """LDS bytes touched by two waves of a workgroup between the same two barriers, one of them writing (writes of both are not flagged:
    Triton stores replicated values)"""
    ww, we, rw, re_ = M.races
    b = (g[:, None] + np.arange(size)).reshape(-1)
    w = np.repeat(wv, size)
    ep = M.epoch[M.wgid[w]]
    if write:
        m = (re_[b] == ep) & (rw[b] != w)
        ww[b] = w
        we[b] = ep
    else:
        m = (we[b] == ep) & (ww[b] != w)
        other = (re_[b] == ep) & (rw[b] != w)
        rw[b] = np.where(other, -2, w)
        re_[b] = ep
    if m.any() and len(M.race_log) < 100:
        i = int(np.argmax(m))
        M.race_log.append(
            f"{'write' if write else 'read'} of LDS offset {int(b[i] - M.lds_base[w[i], 0])} by wave {int(w[i]) % M.nw} races with wave {int((rw if write else ww)[b[i]]) % M.nw if (rw if write else ww)[b[i]] >= 0 else 'several'}: {where}"
        )


def waves_of(M, ix):
    return (np.arange(M.W * 64) if ix is None else ix) // 64
