"""Global, flat, scratch, buffer and scalar memory instructions."""

from __future__ import annotations

import re

import numpy as np

from .arithmetic import A
from .definitions import M0, MemFault, Unsupported, i64, u8, u16, u32, u64
from .lane_access import (
    LOADK,
    STOREK,
    active,
    as_words,
    atomic_desc,
    do_atomic,
    flat,
    getregs,
    note_lines,
    note_race,
    setregs,
    small,
    write_load,
)
from .local_memory import lds_index, lds_load, lds_store
from .operands import call, parse_reg, row, src


def imm_off(md):
    o = md.get("offset", 0)
    return int(o)


def addr_global(M, va, sa, off):
    """-> function(ix) giving int64 addresses of the active lanes"""
    if sa == "off":
        g = src(M, va, "I")

        def f(ix):
            a = flat(np.broadcast_to(g(), (M.W, 64)), ix)
            return a + off if off else a

        return f
    base = src(M, sa, "I")
    v = None if va == "off" else src(M, va, "u")

    def f(ix):
        a = np.broadcast_to(call(base) if v is None else call(base) + v, (M.W, 64))
        a = flat(a, ix)
        return a + off if off else a

    return f


def mem_load(M, adr, r, size, kind, lds=False, off=0):
    full_stats = M.opts.get("stats") == "full"

    def f():
        ix = active(M)
        if ix is not None and len(ix) == 0:
            return
        a = adr(ix)
        M.bytes["global_load"] += len(a) * size
        if full_stats:
            note_lines(M, "load", a, size, ix)
        write_load(M, r, size, kind, M.mem.load(a, size), ix)

    return f


def dma_lds(M, fetch, size, kind, off):
    """memory -> LDS without registers: LDS address = M0 + offset + lane * max(size, 4).  The LDS write is held back until an
    s_waitcnt vmcnt forces it, so a missing wait shows as wrong data (option lazy_dma=False: written at once)."""
    m0 = M.S[:, M0 : M0 + 1]
    step = max(size, 4)

    def f():
        ix = active(M)
        if ix is not None and len(ix) == 0:
            return
        d = fetch(ix)
        M.bytes["global_to_lds"] += len(d) * size
        if size < 4:
            d = small(d, size, kind)[:, None]
        loc = flat(
            (m0.astype(i64) & 0xFFFF if M.arch == "gfx942" else m0.astype(i64) & 0x3FFFF)
            + off
            + M.lane * step
            + np.zeros((M.W, 1), i64),
            ix,
        )
        if int(loc.max()) + step > M.lds_size:
            raise MemFault(
                f"direct-to-LDS write at offset {int(loc.max())} beyond the {M.lds_size} bytes allocated"
            )
        base = flat(np.broadcast_to(M.lds_base, (M.W, 64)), ix)
        g = loc + base
        if not M.opts.get("lazy_dma", True):
            lds_store(M, g, step, d)
            return
        wv = (np.arange(M.W * 64) if ix is None else ix) // 64
        M.vmq.append([M.vmi.copy() + 1, wv, g, step, d])

    return f


def drain(M, n):
    """s_waitcnt vmcnt(n) of the running waves: apply held-back LDS writes older than the n newest vector memory operations"""
    keep = []
    a = M.act[:, 0]
    for e in M.vmq:
        seq, wv, g, step, d = e
        due = a & (M.vmi - seq >= n)
        m = due[wv]
        if M.races is not None and m.any():
            note_race(M, g[m], step, wv[m], True, "direct-to-LDS load")
        if m.all():
            lds_store(M, g, step, d)
            continue
        if m.any():
            lds_store(M, g[m], step, d[m])
            k = ~m
            e = [seq, wv[k], g[k], step, d[k]]
        keep.append(e)
    M.vmq[:] = keep


def mem_store(M, adr, r, size, sh):
    full_stats = M.opts.get("stats") == "full"
    n = max(1, size // 4)

    def f():
        ix = active(M)
        if ix is not None and len(ix) == 0:
            return
        a = adr(ix)
        M.bytes["global_store"] += len(a) * size
        if full_stats:
            note_lines(M, "store", a, size, ix)
        M.mem.store(a, size, getregs(M, r, n, ix) if size >= 4 else flat(M.V[r], ix) >> u32(sh))

    return f


def mem_atomic(M, name, adr, dr, vr, inb=None):
    kind, dt, size, fn, uf = atomic_desc(name)
    n = size // 4

    def f():
        ix = active(M)
        if inb is not None:
            ix = inb(ix)
        if ix is not None and len(ix) == 0:
            return
        a = adr(ix)
        M.bytes["global_atomic"] += len(a) * size
        val = lambda r: np.ascontiguousarray(getregs(M, r, n, ix)).view(dt).reshape(-1)
        data, compare = val(vr), val(vr + n) if kind == "cmpswap" else None
        before = None if dr is None else np.empty(len(a), dt)
        for arr, idx, lanes in M.mem.views(a, size, dt):
            old = do_atomic(
                arr,
                idx,
                fn,
                uf,
                data[lanes],
                dr is not None or compare is not None,
                None if compare is None else compare[lanes],
            )
            if before is not None:
                before[lanes] = old
        if before is not None:
            setregs(M, dr, as_words(before), ix)

    return f


def compile_global(M, ins, i):
    op, ops, md = ins.op, list(ins.ops), ins.mods
    kind, _, rest = op.partition("_")
    off = imm_off(md)
    R = lambda s: row(M, *parse_reg(s)[:2])
    if kind == "scratch":
        return compile_scratch(M, ins, rest, ops, off)
    if rest.startswith("load_lds_"):
        size, k = LOADK[rest[9:]]
        adr = addr_global(M, ops[0], ops[1], off)
        return dma_lds(M, lambda ix: M.mem.load(adr(ix), size), size, k, off)
    if kind == "flat":
        ops = [*ops[:], "off"]
    if rest.startswith("load_"):
        size, k = LOADK[rest[5:]]
        adr = addr_global(M, ops[1], ops[2], off)
        f = mem_load(M, adr, R(ops[0]), size, k)
    elif rest.startswith("store_"):
        size, sh = STOREK[rest[6:]]
        adr = addr_global(M, ops[0], ops[2], off)
        f = mem_store(M, adr, R(ops[1]), size, sh)
    elif rest.startswith("atomic_"):
        ret = bool(md.get("sc0") or md.get("glc"))
        o = ops if not ret else ops[1:]
        return mem_atomic(
            M, rest[7:], addr_global(M, o[0], o[2], off), R(ops[0]) if ret else None, R(o[1])
        )
    else:
        raise Unsupported(f"instruction {op}")
    if kind != "flat":
        return f

    def g():  # flat: apertures select LDS / scratch
        ix = active(M)
        a = adr(ix)
        if len(a) == 0:
            return
        hi = a >> 48
        if not (hi == 1).any() and not (hi == 2).any():
            return f()
        if (hi == 1).all():
            _loc, gg = lds_index(M, (flat_full(M, a, ix) & 0xFFFFFFFF).astype(u32), 0, size, ix)
            if rest.startswith("load"):
                write_load(M, R(ops[0]), size, k, lds_load(M, gg, size), ix)
            else:
                lds_store(
                    M,
                    gg,
                    size,
                    getregs(M, R(ops[1]), max(1, size // 4), ix)
                    if size >= 4
                    else flat(M.V[R(ops[1])], ix) >> u32(sh),
                )
            return
        raise Unsupported("flat access mixing address spaces")

    return g


def flat_full(M, a, ix):
    if ix is None:
        return a.reshape(M.W, 64)
    x = np.zeros(M.W * 64, i64)
    x[ix] = a
    return x.reshape(M.W, 64)


def compile_scratch(M, ins, rest, ops, off):
    R = lambda s: row(M, *parse_reg(s)[:2])
    ld = rest.startswith("load_")
    size, k = LOADK[rest[5:]] if ld else STOREK[rest[6:]]
    va, data, sa = (ops[1], ops[0], ops[2]) if ld else (ops[0], ops[1], ops[2])
    v = None if va == "off" else src(M, va, "u")
    s = None if sa == "off" else src(M, sa, "u")
    r = R(data)
    n = max(1, size // 4)
    s32 = M.scratch.view(u32)
    s16 = M.scratch.view(u16)

    def f():
        ix = active(M)
        if ix is not None and len(ix) == 0:
            return
        o = np.zeros((M.W, 64), i64) + off
        if v is not None:
            o = o + v
        if s is not None:
            o = o + s
        o = flat(o, ix)
        if int(o.max()) + size > M.scratch_size or int(o.min()) < 0:
            raise MemFault(f"scratch access at {int(o.max())} beyond {M.scratch_size} bytes")
        g = o + flat(M.scratch_base, ix)
        M.bytes["scratch"] += len(g) * size
        if size >= 4:
            j = (g >> 2)[:, None] + np.arange(n)
            if ld:
                setregs(M, r, s32[j], ix)
            else:
                s32[j] = getregs(M, r, n, ix)
        elif ld:
            write_load(M, r, size, k, (M.scratch[g] if size == 1 else s16[g >> 1]).astype(u32), ix)
        else:
            d = flat(M.V[r], ix) >> u32(k)
            if size == 1:
                M.scratch[g] = d.astype(u8)
            else:
                s16[g >> 1] = d.astype(u16)

    return f


def compile_buffer(M, ins, i):
    op, ops, md = ins.op, list(ins.ops), ins.mods
    rest = op[7:]
    off = imm_off(md)
    R = lambda s: row(M, *parse_reg(s)[:2])
    if md.get("idxen") or md.get("addr64"):
        raise Unsupported("indexed buffer access")
    lds = bool(md.get("lds"))
    full_stats = M.opts.get("stats") == "full"
    vdata = None if lds else ops.pop(0)
    va, rs, so = ops[0], ops[1], ops[2]
    if not md.get("offen"):
        va = None
    q = parse_reg(rs)[1]
    D = M.S[:, q : q + 4]
    soff = src(M, so, "u")
    v = None if va is None else src(M, va, "u")
    zero = np.zeros((M.W, 64), u32)

    no_soffset = not callable(soff) and np.ndim(soff) == 0 and soff == 0
    # words 0 and 1 of the descriptor as one number: the base address is the low 48 bits
    low = M.S64[:, q // 2 : q // 2 + 1]
    wave_of_lane = np.repeat(np.arange(M.W), 64)

    def addr(ix):
        """-> (addresses, byte offset to check, num_records) of the lanes in ix"""
        swizzled = D[:, 1] >> u32(31)
        if swizzled.any() and M.act[swizzled == 1].any():
            raise Unsupported("swizzled buffer resource")
        base, lim = (low & u64(0xFFFFFFFFFFFF)).view(i64), D[:, 2:3].astype(i64)
        if not no_soffset:
            so_ = A(call(soff)).astype(i64)
            base, lim = base + so_, lim - so_
        o = (zero if v is None else v).astype(i64)
        if off:
            o += off
        if ix is None:
            a = (base + o).reshape(-1)
            return a, o.reshape(-1), lim[0] if M.W == 1 else np.repeat(lim[:, 0], 64)
        o, w = o.reshape(-1)[ix], wave_of_lane[ix]
        return base[w, 0] + o, o, lim[w, 0]

    def fetch(ix, size):
        a, o, lim = addr(ix)
        n = max(1, size // 4)
        ok = o + size <= lim
        count = int(np.count_nonzero(ok))
        if full_stats and count:
            note_lines(M, "load", a[ok], size, (np.arange(M.W * 64) if ix is None else ix)[ok])
        M.bytes["global_load"] += count * size
        if count == len(a):
            return M.mem.load(a, size)
        out = np.zeros((len(a), n) if size >= 4 else len(a), u32)
        if ok.any():
            out[ok] = M.mem.load(a[ok], size)
        if n > 1:  # partly in range: dword by dword
            part = ~ok & (o + 4 <= lim)
            for j in range(n if part.any() else 0):
                w = part & (o + 4 * j + 4 <= lim)
                if w.any():
                    out[w, j] = M.mem.load(a[w] + 4 * j, 4)[:, 0]
        return out

    if rest.startswith("load_"):
        nm = rest[5:]
        if nm.startswith("lds_"):
            nm = nm[4:]
            lds = True
        size, k = LOADK[nm]
        if lds:
            return dma_lds(M, lambda ix: fetch(ix, size), size, k, off)
        r = R(vdata)

        def f():
            ix = active(M)
            if ix is not None and len(ix) == 0:
                return
            write_load(M, r, size, k, fetch(ix, size), ix)

        return f
    if rest.startswith("store_"):
        size, sh = STOREK[rest[6:]]
        r = R(vdata)
        n = max(1, size // 4)

        def f():
            ix = active(M)
            if ix is not None and len(ix) == 0:
                return
            a, o, lim = addr(ix)
            d = getregs(M, r, n, ix) if size >= 4 else flat(M.V[r], ix) >> u32(sh)
            ok = o + size <= lim
            if not ok.all():
                part = ~ok & (o + 4 <= lim)
                if n > 1 and part.any():
                    for j in range(n):
                        w = part & (o + 4 * j + 4 <= lim)
                        if w.any():
                            M.mem.store(a[w] + 4 * j, 4, d[w, j : j + 1])
                if not ok.any():
                    return
                a, d = a[ok], d[ok]
            if full_stats:
                note_lines(M, "store", a, size, (np.arange(M.W * 64) if ix is None else ix)[ok])
            M.bytes["global_store"] += len(a) * size
            M.mem.store(a, size, d)

        return f
    if rest.startswith("atomic_"):
        ret = bool(md.get("sc0") or md.get("glc"))
        nm = rest[7:]
        size = atomic_desc(nm)[2]
        r = R(vdata)

        def inb(ix):
            _a, o, lim = addr(ix)
            ok = o + size <= lim
            if ok.all():
                return ix
            full = np.arange(M.W * 64) if ix is None else ix
            if ret:
                setregs(M, r, np.zeros((int((~ok).sum()), size // 4), u32), full[~ok])
            return full[ok]

        return mem_atomic(M, nm, lambda ix: addr(ix)[0], r if ret else None, r, inb)
    raise Unsupported(f"instruction {op}")


def compile_smem(M, ins, i):
    op, ops, md = ins.op, ins.ops, ins.mods
    m = re.match(r"s_(buffer_)?load_(dword|ubyte|sbyte|ushort|sshort)(?:x(\d+))?$", op)
    if not m:
        raise Unsupported(f"instruction {op}")
    n = int(m[3] or 1)
    _k, d, _c = parse_reg(ops[0])
    buf = bool(m[1])
    base_r = parse_reg(ops[1])[1]
    o = ops[2] if len(ops) > 2 else "0"
    off = int(md.get("offset", 0))
    size = {"dword": 4 * n, "ubyte": 1, "sbyte": 1, "ushort": 2, "sshort": 2}[m[2]]
    x = None
    if parse_reg(o):
        x = src(M, o, "u")
    else:
        off += int(o, 0)
    B = M.S64[:, base_r // 2 : base_r // 2 + 1]
    D = M.S[:, base_r : base_r + 4]

    def f():
        a = (
            B[:, 0].view(i64)
            if not buf
            else (D[:, 0].astype(i64) | ((D[:, 1] & u32(0xFFFF)).astype(i64) << 32))
        ) + off
        if x is not None:
            a = a + np.broadcast_to(x, (M.W, 1))[:, 0]
        if size >= 4:
            a = a & ~3
        act = M.act[:, 0]
        ix = np.flatnonzero(act)
        a = a[ix]
        if buf:
            lim = D[ix, 2].astype(i64)
            oo = off + (np.broadcast_to(x, (M.W, 1))[ix, 0].astype(i64) if x is not None else 0)
            v = np.zeros((len(ix), n), u32)
            for j in range(n):
                w = np.flatnonzero(np.broadcast_to(oo + 4 * j + 4 <= lim, (len(ix),)))
                if len(w):
                    v[w, j] = M.mem.load(a[w] + 4 * j, 4)[:, 0]
        else:
            try:
                v = M.mem.load(a, size)
            except MemFault:
                if n == 1:
                    raise
                v = np.zeros((len(ix), n), u32)
                ok0 = False  # a widened load may run past the buffer inside one 64-byte line
                for j in range(n):
                    try:
                        v[:, j] = M.mem.load(a + 4 * j, 4)[:, 0]
                        ok0 = True
                    except MemFault:
                        if not ok0:
                            raise
        M.bytes["smem_load"] += len(ix) * size
        if size < 4:
            v = small(v, size, "s" if m[2][0] == "s" else "")[:, None]
        if M.allact:
            M.S[:, d : d + n] = v
        else:
            M.S[ix, d : d + n] = v

    return f
