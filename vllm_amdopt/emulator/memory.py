"""Global memory of the emulated GPU: the registered host buffers and nothing else."""

from __future__ import annotations

import numpy as np

from .definitions import HOSTCALL, MemFault, Unsupported, u8, u16, u32, u64


class _HostBytes:
    """n bytes of this process at an address, for np.asarray (a ctypes array type per size would never be freed)"""

    __slots__ = ("__array_interface__",)

    def __init__(self, address, n):
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (n,),
            "typestr": "|u1",
            "version": 3,
        }


class Region:
    __slots__ = ("ab", "base", "end", "keep", "name", "u8", "u16", "u32", "u64", "wide")

    def __init__(self, base, nbytes, name, keep=None):
        self.base, self.end, self.name, self.keep = base, base + nbytes, name, keep
        self.ab = base & ~15
        n = ((self.end + 15) & ~15) - self.ab
        self.u8 = np.asarray(_HostBytes(self.ab, n))
        self.u16, self.u32, self.u64 = self.u8.view(u16), self.u8.view(u32), self.u8.view(u64)
        self.wide = self.u8.view(np.complex128)  # 16 bytes travel as one complex number


class Memory:
    """Global memory = the registered host buffers and nothing else: any other address is a fault."""

    def __init__(self):
        self.regs, self.last = [], None

    def add(self, base, nbytes, name, keep=None):
        if nbytes <= 0 or not base:
            return
        for r in self.regs:
            if r.base <= base and base + nbytes <= r.end:
                return
        over = [r for r in self.regs if base < r.end and r.base < base + nbytes]
        for r in over:
            self.regs.remove(r)
            nb = min(base, r.base)
            nbytes = max(base + nbytes, r.end) - nb
            base = nb
            name = r.name + "|" + name
            keep = (keep, r.keep)
        self.regs.append(Region(base, nbytes, name, keep))
        self.last = self.regs[-1]

    def describe(self, a):
        if HOSTCALL <= a < HOSTCALL + 65536:
            raise Unsupported(
                "host call: a tl.device_assert failed or tl.device_print ran (printing from the device is not emulated)"
            )
        best = min(self.regs, key=lambda r: min(abs(a - r.base), abs(a - r.end)), default=None)
        return f"{a:#x}" + (
            f" (nearest buffer {best.name} [{best.base:#x}, {best.end:#x}), {best.end - best.base} bytes: offset {a - best.base})"
            if best
            else ""
        )

    def find(self, lo, hi):
        for r in self.regs:
            if r.base <= lo and hi <= r.end:
                self.last = r
                return r
        return None

    def _multi(self, a, size, f, what):
        left = np.ones(len(a), bool)
        for r in self.regs:
            m = left & (a >= r.base) & (a + size <= r.end)
            if m.any():
                f(r, np.nonzero(m)[0])
                left &= ~m
        if left.any():
            raise MemFault(
                f"{what} of {size} bytes outside every buffer at {self.describe(int(a[left][0]))} ({int(left.sum())} lanes)"
            )

    def _reg(self, a, size):
        lo, hi = int(a.min()), int(a.max()) + size
        r = self.last
        return r if r is not None and r.base <= lo and hi <= r.end else self.find(lo, hi)

    def load(self, a, size):
        """a: int64[n] addresses.  size 1, 2: uint32[n] zero-extended; size 4k: uint32[n, k]"""
        r = self._reg(a, size)
        if r is None:
            out = np.zeros((len(a), max(1, size // 4)), u32)

            def part(rr, ix):
                out[ix] = self._ld(rr, a[ix], size).reshape(len(ix), -1)

            self._multi(a, size, part, "load")
            return out if size >= 4 else out[:, 0]
        return self._ld(r, a, size)

    @staticmethod
    def _ld(r, a, size):
        o = a - r.ab
        if size == 1:
            return r.u8[o].astype(u32)
        al = int(np.bitwise_or.reduce(o))
        if size == 2:
            if al & 1 == 0:
                return r.u16[o >> 1].astype(u32)
            return r.u8[o].astype(u32) | (r.u8[o + 1].astype(u32) << u32(8))
        k = size // 4
        if al & 3 == 0:
            o >>= 2
            if k == 1:
                return r.u32.take(o)[:, None]
            if k == 2 and al & 7 == 0:
                return r.u64.take(o >> 1).view(u32).reshape(-1, 2)
            if k == 4 and al & 15 == 0:
                return r.wide.take(o >> 2).view(u32).reshape(-1, 4)
            return r.u32[o[:, None] + np.arange(k)]
        return r.u8[o[:, None] + np.arange(size)].view(u32)

    def store(self, a, size, d):
        r = self._reg(a, size)
        if r is None:
            return self._multi(a, size, lambda rr, ix: self._st(rr, a[ix], size, d[ix]), "store")
        self._st(r, a, size, d)

    @staticmethod
    def _st(r, a, size, d):
        o = a - r.ab
        if size == 1:
            r.u8[o] = d.astype(u8)
            return
        al = int(np.bitwise_or.reduce(o))
        if size == 2:
            if al & 1 == 0:
                r.u16[o >> 1] = d.astype(u16)
            else:
                r.u8[o] = d.astype(u8)
                r.u8[o + 1] = (d >> u32(8)).astype(u8)
            return
        k = size // 4
        if al & 3 == 0:
            o >>= 2
            if k == 1:
                r.u32[o] = d.reshape(-1)
            elif k == 2 and al & 7 == 0:
                r.u64[o >> 1] = np.ascontiguousarray(d).view(u64).reshape(-1)
            elif k == 4 and al & 15 == 0:
                r.wide[o >> 2] = np.ascontiguousarray(d).view(np.complex128).reshape(-1)
            else:
                r.u32[o[:, None] + np.arange(k)] = d
        else:
            r.u8[o[:, None] + np.arange(size)] = np.ascontiguousarray(d).view(u8)

    def views(self, a, size, dt):
        """for atomics: [(typed flat array, index array, which of the lanes)], one entry per buffer touched"""
        if int(np.bitwise_or.reduce(a)) & (size - 1):
            raise MemFault(f"misaligned atomic at {self.describe(int(a.min()))}")
        r = self._reg(a, size)
        if r is not None:
            return [(r.u8.view(dt), (a - r.ab) // size, slice(None))]
        out = []
        self._multi(
            a,
            size,
            lambda rr, ix: out.append((rr.u8.view(dt), (a[ix] - rr.ab) // size, ix)),
            "atomic",
        )
        return out
