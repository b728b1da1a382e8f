"""Arithmetic the vector and scalar instructions are made of, on NumPy arrays; no machine state."""

from __future__ import annotations

import numpy as np

from .definitions import f16, f32, f64, i32, i64, u16, u32, u64


def A(x, dt=None):
    return np.asarray(x) if dt is None else np.asarray(x, dtype=dt)


def fma32(a, b, c):
    """correctly rounded f32 fused multiply-add: exact product in f64, f64 sum, double-rounding cases repaired"""
    p = np.multiply(a, b, dtype=f64)
    s = p + c
    r = s.astype(f32)
    tie = (A(s).view(u64) & u64(0x1FFFFFFF)) ^ u64(0x10000000)  # 0: half way between two f32
    m = np.abs(s)
    if not tie.all() or m.min() < 1.2e-38:
        bad = (tie == 0) | ((m < 1.2e-38) & (m > 0))
        if not bad.any():
            return r
        c64 = A(c, f64)
        bb = s - p
        e = (p - (s - bb)) + (c64 - bb)  # TwoSum error term
        n = np.where(e != 0, np.nextafter(s, np.where(e > 0, np.inf, -np.inf)), s)
        r = np.where(bad & np.isfinite(s), n.astype(f32), r)
    return r


def _fma_exact(a, b, c):
    """one exact f64 fma through rational numbers"""
    from fractions import Fraction as Q

    q = Q(a) * Q(b) + Q(c)
    if q == 0:
        return a * b + c
    try:
        return float(q)
    except OverflowError:
        return float("inf") if q > 0 else float("-inf")


def fma64(a, b, c):
    """f64 fused multiply-add: Dekker product and two sums; lanes near the ends of the exponent range exactly, one by one"""
    a, b, c = np.broadcast_arrays(A(a, f64), A(b, f64), A(c, f64))
    p = a * b

    def split(x):
        t = x * 134217729.0
        h = t - (t - x)
        return h, x - h

    ah, al = split(a)
    bh, bl = split(b)
    e = ((ah * bh - p) + ah * bl + al * bh) + al * bl
    s = p + c
    bb = s - p
    e2 = (p - (s - bb)) + (c - bb)
    t = s + (e + e2)
    r = np.where(np.isfinite(t) & np.isfinite(s), t, s)
    m = np.abs(p)
    hard = (
        ((np.abs(a) > 1e290) | (np.abs(b) > 1e290) | (m > 1e300) | (m < 1e-280))
        & np.isfinite(a)
        & np.isfinite(b)
        & np.isfinite(c)
        & (a != 0)
        & (b != 0)
    )
    if hard.any():
        r = np.array(r)
        h = np.nonzero(hard)
        r[h] = [
            _fma_exact(float(x), float(y), float(z))
            for x, y, z in zip(a[h], b[h], c[h], strict=False)
        ]
    return r


def fma16(a, b, c):
    return (np.multiply(a, b, dtype=f64) + c).astype(f16)


def flush32(x):
    x = A(x)
    small = np.abs(x) < f32(1.17549435e-38)
    return np.where(small, np.copysign(f32(0), x), x) if small.any() else x


def trans(fn):
    """f32 transcendental: denormal inputs and results are flushed, value correctly rounded (hardware: 1 ulp)"""
    return lambda a: flush32(fn(flush32(a).astype(f64)).astype(f32))


def trans16(fn):
    return lambda a: fn(A(a).astype(f64)).astype(f16)


def cvt_int(dt):
    lo, hi = np.iinfo(dt).min, np.iinfo(dt).max

    def f(x):
        x = A(x, f64)
        y = np.clip(np.trunc(x), lo, hi)
        return np.where(np.isnan(x), 0, y).astype(i64).astype(dt)

    return f


def rtz16(x):
    """f32 -> f16 rounding toward zero"""
    x = A(x)
    h = x.astype(f16)
    b = np.ascontiguousarray(h).view(u16)
    over = np.abs(h.astype(f64)) > np.abs(x.astype(f64))
    return np.where(over & ~np.isinf(x), b - u16(1), b).astype(u16).view(f16)


def brev32(x):
    x = A(x, u32)
    for s, m in (
        (1, 0x55555555),
        (2, 0x33333333),
        (4, 0x0F0F0F0F),
        (8, 0x00FF00FF),
        (16, 0x0000FFFF),
    ):
        x = ((x >> u32(s)) & u32(m)) | ((x & u32(m)) << u32(s))
    return x


def brev64(x):
    x = A(x, u64)
    return (brev32((x & u64(0xFFFFFFFF)).astype(u32)).astype(u64) << u64(32)) | brev32(
        (x >> u64(32)).astype(u32)
    ).astype(u64)


def popc(x):
    return np.bitwise_count(A(x))


def clz(x, bits):
    """index of the highest set bit from the top; -1 for 0"""
    x = A(x, u64)
    r = np.full(x.shape, -1, i64)
    n = np.zeros(x.shape, i64)
    y = x << u64(64 - bits)
    for s in (32, 16, 8, 4, 2, 1):
        z = (y >> u64(64 - s)) == 0
        n = np.where(z, n + s, n)
        y = np.where(z, y << u64(s), y)
    return np.where(x & u64((1 << bits) - 1 if bits < 64 else 0xFFFFFFFFFFFFFFFF) == 0, r, n)


def ctz(x, bits):
    x = A(x, u64)
    low = x & (~x + u64(1))
    return np.where(x == 0, -1, popc(low - u64(1)).astype(i64))


def clsx(x, bits):
    """v_ffbh_i32: leading sign-like bits"""
    x = A(x).astype(i64)
    y = np.where(x < 0, ~x, x).view(u64) & u64((1 << bits) - 1 if bits < 64 else 0xFFFFFFFFFFFFFFFF)
    return clz(y, bits)


def bfe_u(a, o, w):
    o, w = A(o) & u32(31), A(w) & u32(31)
    return (a >> o) & ((u32(1) << w) - u32(1))


def bfe_i(a, o, w):
    o, w = (A(o).astype(i64) & 31), (A(w).astype(i64) & 31)
    v = (A(a).view(i32).astype(i64) >> o) & ((i64(1) << w) - 1)
    s = np.where(
        w > 0, (v ^ (i64(1) << np.maximum(w - 1, 0))) - (i64(1) << np.maximum(w - 1, 0)), 0
    )
    return s.astype(i32)


def _perm_const(a, b, sel):
    """perm for one selector without the special codes above 7: neighbouring bytes move together"""
    out, i = None, 0
    while i < 4:
        k = sel >> 8 * i & 7
        n = 1
        while i + n < 4 and (sel >> 8 * (i + n) & 7) == k + n and (k + n) & 3:
            n += 1
        x, shift = (a if k > 3 else b), 8 * (k & 3) - 8 * i
        if n < 4:
            x = x & u32(((1 << 8 * n) - 1) << 8 * (k & 3))
        if shift:
            x = x >> u32(shift) if shift > 0 else x << u32(-shift)
        out = x if out is None else out | x
        i += n
    return out


def perm(a, b, s):
    """v_perm_b32: byte select from {a, b}"""
    if getattr(s, "size", 2) == 1 or (
        s.shape[-1] == 1 and (s == s[0]).all()
    ):  # a constant, or one scalar register that is the same in all waves
        sel = int(np.ravel(s)[0])
        if not sel & 0xF8F8F8F8:
            return _perm_const(A(a, u32), A(b, u32), sel)
    a, b, s = np.broadcast_arrays(A(a, u32), A(b, u32), A(s, u32))
    x = (a.astype(u64) << u64(32)) | b.astype(u64)
    out = np.zeros(x.shape, u32)
    for i in range(4):
        k = (s >> u32(8 * i)) & u32(0xFF)
        v = (x >> ((k & u32(7)).astype(u64) << u64(3))).astype(u32) & u32(0xFF)
        if (k > 7).any():
            sg = {8: 15, 9: 31, 10: 47, 11: 63}
            for kk, bit in sg.items():
                v = np.where(k == kk, np.where((x >> u64(bit)) & u64(1) == 1, u32(0xFF), u32(0)), v)
            v = np.where(k == 12, u32(0), np.where(k >= 13, u32(0xFF), v))
        out |= v << u32(8 * i)
    return out


def alignbit(a, b, s):
    return (
        ((A(a).astype(u64) << u64(32)) | A(b).astype(u64)) >> (A(s).astype(u64) & u64(31))
    ).astype(u32)


def alignbyte(a, b, s):
    return (
        ((A(a).astype(u64) << u64(32)) | A(b).astype(u64))
        >> ((A(s).astype(u64) & u64(3)) << u64(3))
    ).astype(u32)


def med3(a, b, c, mn=np.minimum, mx=np.maximum):
    return mx(mn(a, b), mn(mx(a, b), c))


def med3f(a, b, c):
    r = med3(a, b, c, np.fmin, np.fmax)
    nan = np.isnan(a) | np.isnan(b) | np.isnan(c)
    return np.where(nan, np.fmin(np.fmin(a, b), c), r) if nan.any() else r


def fmax3(a, b, c):
    return np.fmax(np.fmax(a, b), c)


def fmin3(a, b, c):
    return np.fmin(np.fmin(a, b), c)


def bcnt(a, b):
    return popc(A(a, u32)).astype(u32) + b


def shl(b, a, n=31):
    return a << (b & u32(n))


def mulhi_u(a, b):
    return ((A(a).astype(u64) * A(b).astype(u64)) >> u64(32)).astype(u32)


def mulhi_i(a, b):
    return ((A(a).astype(i64) * A(b).astype(i64)) >> 32).astype(i32)


def s24(x):
    return (A(x, i32) << 8) >> 8


def u24(x):
    return A(x, u32) & u32(0xFFFFFF)


def addc(a, b, c):
    a = A(a)
    r = a + b
    carry = r < a
    if getattr(c, "ndim", 0):  # a carry comes in, 0 or 1
        q = r + c
        carry, r = carry | (q < r), q
    return r, carry


def subb(a, b, c):
    r = A(a).astype(i64) - A(b).astype(i64) - A(c).astype(i64)
    return r.astype(u32), r < 0


def mad64(a, b, c):
    p = A(a).astype(u64) * A(b).astype(u64)
    r = p + c
    return r, r < p


def mad64i(a, b, c):
    p = A(a).astype(i64) * A(b).astype(i64)
    c = A(c).view(i64)
    r = p + c
    return r.view(u64), (r < 0) ^ (((p ^ r) & (c ^ r)) < 0)  # bit 64 of the signed sum


# division helpers (ISA document pseudo-code)
def _moderate(m):
    """all magnitudes far from overflow, underflow and their consequences in a division; False for any NaN"""
    return m.min() > 2.0**-45 and m.max() < 2.0**45


def fexp32(x):
    return ((A(x, f32).view(u32) >> u32(23)) & u32(0xFF)).astype(i32)


def fexp64(x):
    return ((A(x, f64).view(u64) >> u64(52)) & u64(0x7FF)).astype(i32)


def _div_scale(dt):
    fe = fexp32 if dt == f32 else fexp64
    top, tiny, sc, mn = (
        (96, 23, 64, np.finfo(f32).tiny) if dt == f32 else (768, 53, 128, np.finfo(f64).tiny)
    )

    def f(s0, s1, s2):
        s0, s1, s2 = np.broadcast_arrays(A(s0, dt), A(s1, dt), A(s2, dt))
        if dt == f32:  # both exponents in the middle: nothing to scale
            if _moderate(np.abs(s1)) and _moderate(np.abs(s2)):
                return s0, np.zeros(s0.shape, bool)
        den = lambda x: (np.abs(x) < mn) & (x != 0)
        e = fe(s2) - fe(s1)
        up, dn = np.ldexp(s0, sc), np.ldexp(s0, -sc)
        if dt == f32:
            q = s2.astype(f64) / s1.astype(f64)
            qd = (np.abs(q) < mn) & (q != 0)
            rd = np.abs(1.0 / s1.astype(f64)) < mn
        else:
            with np.errstate(all="ignore"):
                q = s2 / s1
                qd = den(q) | ((q == 0) & (s2 != 0))
                rd = den(1.0 / s1)
        rdd = rd & np.isfinite(s1)
        c1 = (s2 == 0) | (s1 == 0)
        c2 = e >= top
        c3 = den(s1)
        c4 = rdd & qd
        c5 = rdd
        c6 = qd
        c7 = fe(s2) <= tiny
        is1, is2 = (
            s0.view(u32 if dt == f32 else u64) == s1.view(u32 if dt == f32 else u64),
            s0.view(u32 if dt == f32 else u64) == s2.view(u32 if dt == f32 else u64),
        )
        D = np.select(
            [c1, c2, c3, c4, c5, c6, c7],
            [
                np.full_like(s0, np.nan),
                np.where(is1, up, s0),
                up,
                np.where(is1, dn, s0),
                dn,
                np.where(is2, up, s0),
                up,
            ],
            s0,
        ).astype(dt)
        v = np.select(
            [c1, c2, c3, c4, c5, c6],
            [
                np.zeros(s0.shape, bool),
                np.ones(s0.shape, bool),
                np.zeros(s0.shape, bool),
                np.ones(s0.shape, bool),
                np.zeros(s0.shape, bool),
                np.ones(s0.shape, bool),
            ],
            False,
        )
        return D, v

    return f


def _div_fmas(dt):
    """fma, and where VCC: times 2^64 (2^128 for f64) if the quotient S2 is large, else 2^-64 (2^-128); rounded once"""
    fm = fma32 if dt == f32 else fma64
    fe, bias, sc = (fexp32, 127, 64) if dt == f32 else (fexp64, 1023, 128)

    def f(a, b, c, vcc):
        r = fm(a, b, c)
        if np.any(vcc):
            k = np.where(fe(c) > bias, sc, -sc)
            if dt == f32:
                p = np.multiply(a, b, dtype=f64)
                s = p + c
                bb = s - p
                e = (p - (s - bb)) + (A(c, f64) - bb)
                odd = np.where(
                    (e != 0) & ((A(s).view(u64) & u64(1)) == 0),
                    np.nextafter(s, np.where(e > 0, np.inf, -np.inf)),
                    s,
                )
                z = np.ldexp(odd, k).astype(f32)
            else:
                z = np.ldexp(r, k)
            r = np.where(vcc, z, r)
        return r

    return f


def _div_fixup(dt):
    I, sgn = {f32: (u32, 31), f64: (u64, 63), f16: (u16, 15)}[dt]
    fe = {f32: fexp32, f64: fexp64}.get(dt)

    def f(s0, s1, s2):
        s0, s1, s2 = (
            np.ascontiguousarray(x) for x in np.broadcast_arrays(A(s0, dt), A(s1, dt), A(s2, dt))
        )
        if dt == f32:
            m0 = np.abs(s0)
            if _moderate(m0) and _moderate(np.abs(s1)) and _moderate(np.abs(s2)):
                # nothing to repair but the sign
                return np.copysign(m0, s1) * np.copysign(f32(1), s2)
        sign = (s1.view(I) ^ s2.view(I)) >> I(sgn)
        sf = np.where(sign == 1, dt(-1), dt(1))
        z1, z2, n1, n2 = s1 == 0, s2 == 0, np.isinf(s1), np.isinf(s2)
        D = np.where(
            np.isnan(s0), np.copysign(dt(np.inf), sf), np.abs(s0) * sf
        )  # the quotient sequence overflowed to NaN: infinity
        if fe is not None:
            D = np.where(
                fe(s2) - fe(s1) < (-150 if dt == f32 else -1075), np.copysign(dt(0), sf), D
            )
        D = np.where(n1 | z2, np.copysign(dt(0), sf), D)
        D = np.where(z1 | n2, np.copysign(dt(np.inf), sf), D)
        D = np.where((z1 & z2) | (n1 & n2), dt(np.nan), D)
        D = np.where(np.isnan(s1), s1, D)
        D = np.where(np.isnan(s2), s2, D)
        return D.astype(dt)

    return f


def cmp_class(dt):
    I = {f32: u32, f64: u64, f16: u16}[dt]
    mn = np.finfo(dt).tiny
    qbit = {f32: 22, f64: 51, f16: 9}[dt]

    def f(x, m):
        x = np.ascontiguousarray(np.broadcast_arrays(A(x, dt), A(m))[0])
        b = x.view(I)
        neg = (b >> I({f32: 31, f64: 63, f16: 15}[dt])) == 1
        nan, inf, z = np.isnan(x), np.isinf(x), x == 0
        den = (np.abs(x) < mn) & ~z
        q = (b >> I(qbit)) & I(1) == 1
        nrm = ~(nan | inf | z | den)
        m = A(m).astype(u32)
        r = np.zeros(x.shape, bool)
        for i, c in enumerate(
            (
                nan & ~q,
                nan & q,
                inf & neg,
                nrm & neg,
                den & neg,
                z & neg,
                z & ~neg,
                den & ~neg,
                nrm & ~neg,
                inf & ~neg,
            )
        ):
            r |= c & ((m >> u32(i)) & u32(1) == 1)
        return r

    return f
