"""FP8, BF8, FP6 and FP4 formats: exact decoding and round-to-nearest-even encoding.

Source: CDNA3 and CDNA4 ISA, the chapters on matrix arithmetic and data formats; OCP "8-bit Floating
Point Specification" and "Microscaling Formats". gfx942 uses the FNUZ kinds, gfx950 OCP's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .definitions import f32, f64, i64, u32

IEEE, ONLY_NAN, FNUZ, FINITE = "ieee", "fn", "fnuz", "none"


class MiniFloat:
    """A format of one sign bit, `exponent_bits` and `mantissa_bits`.

    special: what the codes at the end of the range mean: IEEE infinities and NaN; ONLY_NAN: the
    code of all ones; FNUZ: the code of -0 is the only NaN; FINITE: every code is a number.
    """

    def __init__(self, exponent_bits: int, mantissa_bits: int, bias: int, special: str) -> None:
        count = 1 << (exponent_bits + mantissa_bits)
        self.mantissa_bits, self.special, self.count = mantissa_bits, special, count
        self.smallest_exponent = 1 - bias
        codes = np.arange(count)
        exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
        part = mantissa / (1 << mantissa_bits)
        values = np.where(
            exponent == 0, np.ldexp(part, 1 - bias), np.ldexp(1 + part, exponent - bias)
        ).astype(f64)
        finite = np.ones(count, bool)
        if special == IEEE:
            finite = exponent != (1 << exponent_bits) - 1
            values = np.where(finite, values, np.where(mantissa == 0, np.inf, np.nan))
        elif special == ONLY_NAN:
            finite[-1] = False
            values[-1] = np.nan
        self.positive = values[finite]  # ascending, by code
        self.max = float(self.positive.max())
        table = np.concatenate([values, -values])
        if special == FNUZ:
            table[count] = np.nan
        self.table = table.astype(f32)  # by code, the sign bit on top

    def decode(self, codes: Any) -> Any:
        """Codes -> f32; bits above the format's are ignored."""
        return self.table[np.asarray(codes).astype(i64) & (2 * self.count - 1)]

    def encode(self, values: Any, saturate: bool = False) -> Any:
        """f32 or f64 -> codes (u32), rounded to nearest even.

        Out of range becomes infinity or NaN, whichever the format has; the largest number when
        `saturate`, and always in a format without either. NaN stays NaN (or the largest number).
        """
        values = np.asarray(values, f64)
        magnitude, negative, nan = np.abs(values), np.signbit(values), np.isnan(values)
        _, exponent = np.frexp(magnitude)
        lowest = np.maximum(exponent - 1, self.smallest_exponent)
        unit = np.ldexp(1.0, lowest - self.mantissa_bits)
        rounded = np.rint(np.where(np.isfinite(magnitude), magnitude, 0) / unit) * unit
        over = (rounded > self.max) | np.isinf(magnitude)
        rounded = np.where(np.isinf(magnitude), self.max, np.minimum(rounded, self.max))
        code = np.searchsorted(self.positive, rounded).astype(u32)
        largest = len(self.positive) - 1
        if not saturate and self.special != FINITE:
            beyond = {IEEE: largest + 1, ONLY_NAN: self.count - 1, FNUZ: self.count}[self.special]
            code = np.where(over, u32(beyond), code)
        sign = u32(self.count)
        if self.special == FNUZ:  # neither -0 nor a NaN of another sign
            code = np.where(negative & (code != 0) & (code != sign), code | sign, code)
            return np.where(nan, sign, code)
        not_a_number = u32(largest if self.special == FINITE else self.count - 1)
        code = np.where(nan, not_a_number, code)
        return np.where(negative, code | sign, code).astype(u32)


E4M3, E5M2 = MiniFloat(4, 3, 7, ONLY_NAN), MiniFloat(5, 2, 15, IEEE)
E4M3_FNUZ, E5M2_FNUZ = MiniFloat(4, 3, 8, FNUZ), MiniFloat(5, 2, 16, FNUZ)
E2M1, E2M3, E3M2 = (
    MiniFloat(2, 1, 1, FINITE),
    MiniFloat(2, 3, 1, FINITE),
    MiniFloat(3, 2, 3, FINITE),
)


def fp8(arch: str) -> MiniFloat:
    """What the instructions with FP8 in their name mean on this chip."""
    return E4M3_FNUZ if arch == "gfx942" else E4M3


def bf8(arch: str) -> MiniFloat:
    return E5M2_FNUZ if arch == "gfx942" else E5M2
