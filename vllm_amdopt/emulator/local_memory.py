"""Local data share (LDS): reads, writes, permutes, transposing reads and atomics."""

from __future__ import annotations

import re

import numpy as np

from .definitions import MemFault, Unsupported, i64, u8, u16, u32
from .lane_access import (
    ATOM,
    DSATOM,
    active,
    as_words,
    do_atomic,
    flat,
    getregs,
    note_banks,
    note_race,
    setregs,
    waves_of,
    write_load,
)
from .operands import parse_reg, put, row, src

DSSZ = {
    "b8": 1,
    "u8": 1,
    "i8": 1,
    "b16": 2,
    "u16": 2,
    "i16": 2,
    "b32": 4,
    "b64": 8,
    "b96": 12,
    "b128": 16,
}


SHIFT = {4: 2, 8: 3, 16: 4}  # bytes -> log2


def lds_index(M, av, off, size, ix):
    """-> (offset in the workgroup's LDS without `off`, index into all of it) of the active lanes"""
    base = M.lds_lane_base
    a = av.reshape(-1)
    if ix is not None:
        a, base = a[ix], base[ix]
    if len(a) and int(a.max()) + off + size > M.lds_size:
        raise MemFault(
            f"LDS access of {size} bytes at offset {int(a.max()) + off} beyond the {M.lds_size} bytes allocated"
        )
    g = a + base  # unsigned 32 bits + signed 64 bits
    if off:
        g += off
    return a, g


def lds_load(M, g, size):
    if size == 1:
        return M.lds[g].astype(u32)
    al = int(np.bitwise_or.reduce(g)) if len(g) else 0
    if size == 2:
        return (
            M.lds16[g >> 1] if al & 1 == 0 else M.lds[g] | (M.lds[g + 1].astype(u16) << u16(8))
        ).astype(u32)
    if al & 3:
        return M.lds[g[:, None] + np.arange(size)].view(u32)
    if al & (size - 1) == 0:
        return M.lds_wide[size].take(g >> SHIFT[size]).view(u32).reshape(-1, size // 4)
    return M.lds32[(g >> 2)[:, None] + np.arange(size // 4)]


def lds_store(M, g, size, d):
    if size == 1:
        M.lds[g] = d.reshape(-1).astype(u8)
        return
    al = int(np.bitwise_or.reduce(g)) if len(g) else 0
    if size == 2:
        d = d.reshape(-1)
        if al & 1:
            M.lds[g] = d.astype(u8)
            M.lds[g + 1] = (d >> u32(8)).astype(u8)
        else:
            M.lds16[g >> 1] = d.astype(u16)
    elif al & 3:
        M.lds[g[:, None] + np.arange(size)] = np.ascontiguousarray(d).view(u8)
    elif al & (size - 1) == 0:
        wide = M.lds_wide[size]
        wide[g >> SHIFT[size]] = np.ascontiguousarray(d).view(wide.dtype).reshape(-1)
    else:
        M.lds32[(g >> 2)[:, None] + np.arange(size // 4)] = d


def compile_ds(M, ins, i):
    op, ops, md = ins.op, ins.ops, ins.mods
    full_stats = M.opts.get("stats") == "full"
    off = int(md.get("offset", 0)) if not isinstance(md.get("offset", 0), str) else 0
    if op in ("ds_bpermute_b32", "ds_permute_b32"):
        out = put(M, ops[0], "u")
        a, x = src(M, ops[1], "u"), src(M, ops[2], "u")
        wv = np.arange(M.W)[:, None]
        if "bpermute" in op:

            def f():
                l = ((a + u32(off)) >> u32(2)) & u32(63)
                v = x[wv, l]
                if not M.full:
                    v = np.where(M.EX[wv, l], v, u32(0))
                out(v)

            return f

        def f():
            l = ((a + u32(off)) >> u32(2)) & u32(63)
            v = np.zeros((M.W, 64), u32)
            if M.full:
                v[wv, l] = x
            else:
                w_, s_ = np.nonzero(M.EX)
                v[w_, l[w_, s_]] = x[w_, s_]
            out(v)

        return f
    if op == "ds_swizzle_b32":
        out = put(M, ops[0], "u")
        x = src(M, ops[1], "u")
        L = np.arange(64)
        o = md.get("offset", 0)
        if isinstance(o, str):
            m = re.match(r"swizzle\((\w+),(.*)\)", o.replace(" ", ""))
            k, p = m[1], [q.strip('"') for q in m[2].split(",")]
            if k == "QUAD_PERM":
                s = (L & ~3) + np.array([int(q) for q in p])[L & 3]
            elif k == "BROADCAST":
                n, q = int(p[0]), int(p[1])
                s = (L // n) * n + q
            elif k == "SWAP":
                s = L ^ int(p[0])
            elif k == "REVERSE":
                s = L ^ (int(p[0]) - 1)
            elif k == "BITMASK_PERM":
                s = L & 32
                for b, c in zip((16, 8, 4, 2, 1), p[0], strict=False):
                    s = s | {"0": 0 * L, "1": 0 * L + b, "p": L & b, "i": (L & b) ^ b}[c]
            else:
                raise Unsupported(o)
        elif o & 0x8000:
            s = (L & ~3) + ((o >> (2 * (L & 3))) & 3)
        else:
            s = (L & 32) | ((((L & 31) & (o & 31)) | (o >> 5 & 31)) ^ (o >> 10 & 31))

        def f():
            v = x[:, s]
            if not M.full:
                v = np.where(M.EX[:, s], v, u32(0))
            out(v)

        return f
    m = re.match(r"ds_(read|write)(2?)(st64)?_(b\d+|[ui]\d+)(?:_(d16|d16_hi))?$", op)
    if op.startswith("ds_write") and op.endswith("_d16_hi"):
        m = re.match(r"ds_(write)()()_(b\d+)_(d16_hi)$", op)
    if m:
        rd, two, st, t, d16 = m[1] == "read", m[2], m[3], m[4], m[5]
        size = DSSZ[t]
        n = max(1, size // 4)
        av = src(M, ops[1 if rd else 0], "u")
        if two:
            sc = size * (64 if st else 1)
            o = [int(md.get("offset0", 0)) * sc, int(md.get("offset1", 0)) * sc]
            rg = (
                [row(M, *parse_reg(ops[0])[:2]), row(M, *parse_reg(ops[0])[:2]) + n]
                if rd
                else [row(M, *parse_reg(x)[:2]) for x in ops[1:3]]
            )
        else:
            o = [off]
            rg = [row(M, *parse_reg(ops[0 if rd else 1])[:2])]
        kind = ("s" if t[0] == "i" else "") + ("hi" if d16 == "d16_hi" else "lo" if d16 else "")
        key = "lds_load" if rd else "lds_store"

        def f():
            ix = active(M)
            if ix is not None and len(ix) == 0:
                return
            addr = (
                np.array(av) if rd and two else av
            )  # read2 may overwrite its own address register
            for oo, r in zip(o, rg, strict=False):
                loc, g = lds_index(M, addr, oo, size, ix)
                M.bytes[key] += len(g) * size
                if M.races is not None:
                    note_race(M, g, size, waves_of(M, ix), not rd, f"{ins.text} [{ins.loc}]")
                if full_stats:
                    note_banks(M, loc.astype(i64) + oo, size, ix, key)
                if rd:
                    write_load(M, r, size, kind, lds_load(M, g, size), ix)
                elif size >= 4:
                    lds_store(M, g, size, getregs(M, r, n, ix))
                else:
                    lds_store(M, g, size, flat(M.V[r], ix) >> u32(16 if d16 == "d16_hi" else 0))

        return f
    m = re.match(r"ds_read_b(64|96)_tr_b(4|6|8|16)$", op)
    if m:
        nb, e = int(m[1]), int(m[2])
        n = nb // 32
        size = nb // 8
        av = src(M, ops[1], "u")
        r = row(M, *parse_reg(ops[0])[:2])
        per = nb // e  # elements per lane
        # in each group of 16 lanes the loaded data form a matrix of `per` rows x 16 columns of e bits; lane c receives column c

        def f():
            ix = active(M)
            if (
                ix is not None
                and (
                    np.bitwise_and.reduce(M.EX.reshape(-1, 16), 1)
                    != np.bitwise_or.reduce(M.EX.reshape(-1, 16), 1)
                ).any()
            ):
                raise Unsupported("partially masked transposing LDS read")
            if ix is not None and len(ix) == 0:
                return
            loc, g = lds_index(M, av, off, size, ix)
            M.bytes["lds_load"] += len(g) * size
            if full_stats:
                note_banks(M, loc, size, ix, "lds_load")
            if M.races is not None:
                note_race(M, g, size, waves_of(M, ix), False, f"{ins.text} [{ins.loc}]")
            raw = np.ascontiguousarray(lds_load(M, g, size)).view(u8).reshape(-1, 16, size)
            if e == 16:
                x = raw.view(u16)
            elif e == 8:
                x = raw
            elif e == 4:
                x = np.stack([raw & 15, raw >> 4], -1).reshape(len(raw), 16, 16)
            else:
                x = (
                    (
                        np.unpackbits(raw, axis=-1, bitorder="little")
                        .reshape(len(raw), 16, 16, 6)
                        .astype(i64)
                        << np.arange(6)
                    )
                    .sum(-1)
                    .astype(u8)
                )
            y = x.reshape(len(raw), per, 16).transpose(0, 2, 1)  # [group][lane c][row]
            if e == 4:
                y = (y[..., 0::2] | (y[..., 1::2] << u8(4))).astype(u8)
            elif e == 6:
                y = np.packbits(
                    ((y[..., None] >> np.arange(6, dtype=u8)) & u8(1)).reshape(len(raw), 16, 96),
                    axis=-1,
                    bitorder="little",
                )
            setregs(M, r, np.ascontiguousarray(y).reshape(-1).view(u32).reshape(-1, n), ix)

        return f
    m = re.match(r"ds_(\w+?)_(rtn_)?([ubif]\d+|f16|bf16)$", op)
    if m and f"{m[1]}_{m[3]}" in DSATOM:
        kind = DSATOM[f"{m[1]}_{m[3]}"]
        ret = bool(m[2])
        w64 = m[3].endswith("64")
        d32, d64, fn, uf = ATOM[kind]
        dt = d64 if w64 else d32
        size = 8 if w64 else 4
        n = size // 4
        o = list(ops)
        dr = row(M, *parse_reg(o.pop(0))[:2]) if ret else None
        av = src(M, o[0], "u")
        rs = [row(M, *parse_reg(x)[:2]) for x in o[1:]]

        def f():
            ix = active(M)
            if ix is not None and len(ix) == 0:
                return
            _loc, g = lds_index(M, av, off, size, ix)
            M.bytes["lds_store"] += len(g) * size
            val = lambda r: np.ascontiguousarray(getregs(M, r, n, ix)).view(dt).reshape(-1)
            if kind == "cmpswap":
                old = do_atomic(M.lds.view(dt), g // size, fn, uf, val(rs[1]), True, val(rs[0]))
            else:
                old = do_atomic(M.lds.view(dt), g // size, fn, uf, val(rs[0]), ret)
            if ret:
                setregs(M, dr, as_words(old), ix)

        return f
    raise Unsupported(f"instruction {op}")
