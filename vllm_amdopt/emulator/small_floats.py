"""FP8, BF8, FP6 and FP4 formats: exact decoding and round-to-nearest-even encoding."""

from __future__ import annotations

import numpy as np

from .arithmetic import A
from .definitions import f32, f64, i64, u32


class MiniFloat:
    """sign + ebits + mbits.  special: 'ieee' (inf+nan), 'fn' (only nan, all ones), 'fnuz' (nan = 0x80), 'none'"""

    def __init__(self, ebits, mbits, bias, special):
        n = 1 << (ebits + mbits)
        self.mbits, self.bias, self.special, self.n, self.emin = mbits, bias, special, n, 1 - bias
        e, m = np.arange(n) >> mbits, np.arange(n) & ((1 << mbits) - 1)
        v = np.where(
            e == 0, np.ldexp(m / (1 << mbits), 1 - bias), np.ldexp(1 + m / (1 << mbits), e - bias)
        ).astype(f64)
        fin = np.ones(n, bool)
        if special == "ieee":
            fin = e != (1 << ebits) - 1
            v = np.where(fin, v, np.where(m == 0, np.inf, np.nan))
        if special == "fn":
            fin[-1] = False
            v[-1] = np.nan
        self.pos, self.nfin, self.max = v[fin], int(fin.sum()), float(v[fin].max())
        t = np.concatenate([v, -v])
        if special == "fnuz":
            t[n] = np.nan
        self.table = t.astype(f32)

    def dec(self, x):
        return self.table[A(x).astype(i64) & (2 * self.n - 1)]

    def enc(self, x, sat=False):
        """f32 -> code, round to nearest even; out of range -> inf/nan, or the largest value when sat (always for formats without nan)"""
        x = A(x, f64)
        a = np.abs(x)
        s = np.signbit(x)
        _, ex = np.frexp(a)
        q = np.ldexp(1.0, np.maximum(ex - 1, self.emin) - self.mbits)
        r = np.rint(np.where(np.isfinite(a), a, 0) / q) * q
        over = (r > self.max) | np.isinf(a)
        code = np.searchsorted(self.pos, np.minimum(r, self.max)).astype(u32)
        if not sat and self.special != "none":
            bad = {"ieee": self.nfin, "fn": self.n - 1, "fnuz": self.n}[self.special]
            code = np.where(over, u32(bad), code)
        nan = np.isnan(x)
        if self.special == "fnuz":
            neg = s & (code != 0) & (code != self.n)
            code = np.where(neg, code | u32(self.n), code)
            return np.where(nan, u32(self.n), code)
        code = np.where(s, code | u32(self.n), code)
        nanc = {"ieee": self.n - 1, "fn": self.n - 1, "none": self.nfin - 1}[self.special]
        return np.where(nan, np.where(s, u32(nanc | self.n), u32(nanc)), code).astype(u32)


E4M3, E5M2 = MiniFloat(4, 3, 7, "fn"), MiniFloat(5, 2, 15, "ieee")
E4M3Z, E5M2Z = MiniFloat(4, 3, 8, "fnuz"), MiniFloat(5, 2, 16, "fnuz")
E2M1, E2M3, E3M2 = (
    MiniFloat(2, 1, 1, "none"),
    MiniFloat(2, 3, 1, "none"),
    MiniFloat(3, 2, 3, "none"),
)


def fp8(M):
    return E4M3Z if M.arch == "gfx942" else E4M3


def bf8(M):
    return E5M2Z if M.arch == "gfx942" else E5M2
