"""Float arithmetic in Python's fractions: an independent reference for f16, f32 and f64."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Format:
    name: str
    bits: int
    mantissa: int  # stored bits
    smallest: int  # exponent of the smallest normal number
    code: str  # of struct

    @property
    def largest(self) -> Fraction:
        return (2 - Fraction(1, 1 << self.mantissa)) * Fraction(2) ** (1 - self.smallest)

    @property
    def numpy(self) -> type:
        return np.dtype(f"f{self.bits // 8}").type

    @property
    def unsigned(self) -> type:
        return np.dtype(f"u{self.bits // 8}").type

    def value(self, bits: int) -> float:
        return struct.unpack(f"<{self.code}", bits.to_bytes(self.bits // 8, "little"))[0]

    def bits_of(self, value: float) -> int:
        """The pattern of a value that the format holds; the default NaN for NaN."""
        if math.isnan(value):
            return self.quiet_nan
        return int.from_bytes(struct.pack(f"<{self.code}", value), "little")

    @property
    def quiet_nan(self) -> int:
        exponent = (1 << (self.bits - 1 - self.mantissa)) - 1
        return exponent << self.mantissa | 1 << (self.mantissa - 1)

    def is_signalling(self, bits: int) -> bool:
        return math.isnan(self.value(bits)) and not bits >> (self.mantissa - 1) & 1

    def quieted(self, bits: int) -> int:
        return bits | 1 << (self.mantissa - 1)

    def round(self, exact: Fraction, negative_zero: bool = False) -> float:
        """To nearest even, with denormals, to infinity beyond the largest."""
        if exact == 0:
            return -0.0 if negative_zero else 0.0
        sign, size = (-1 if exact < 0 else 1), abs(exact)
        exponent = size.numerator.bit_length() - size.denominator.bit_length()
        if Fraction(2) ** exponent > size:
            exponent -= 1
        unit = Fraction(2) ** (max(exponent, self.smallest) - self.mantissa)
        rounded = round(size / unit) * unit  # Python rounds halves to even
        return sign * (math.inf if rounded > self.largest else float(rounded))

    def flushed(self, value: float) -> float:
        small = 0 < abs(value) < 2.0**self.smallest
        return math.copysign(0.0, value) if small else value


F16 = Format("f16", 16, 10, -14, "e")
F32 = Format("f32", 32, 23, -126, "f")
F64 = Format("f64", 64, 52, -1022, "d")


def fma(form: Format, a: float, b: float, c: float) -> float:
    """a * b + c with one rounding"""
    if not all(map(math.isfinite, (a, b, c))):
        product = math.nan if (math.isinf(a) and b == 0) or (math.isinf(b) and a == 0) else a * b
        product = a * b if math.isinf(a) or math.isinf(b) else product
        if math.isnan(product) or math.isnan(c) or math.isnan(a) or math.isnan(b):
            return math.nan
        if math.isinf(product):
            return product + c
        return c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:  # the sign of a zero: as the sum of the signed zeros, or +0 after cancellation
        zero = math.copysign(1, a) * math.copysign(1, b)
        both = Fraction(a) * Fraction(b) == 0
        return -0.0 if both and zero < 0 and math.copysign(1, c) < 0 else 0.0
    return form.round(exact)


def awkward(form: Format) -> np.ndarray:
    """Bit patterns: zeros, denormals, ends of the range, ties, infinities, both kinds of NaN."""
    m, ones = form.mantissa, (1 << form.bits - 1) - 1
    exponent = ones >> m  # all ones
    bias = exponent >> 1
    one = bias << m
    positive = [0, 1, 3, (1 << m) - 1, 1 << m, (1 << m) + 1, one, one + 1, one | 1 << (m - 1)]
    positive += [one - 1, (bias + 1) << m, (bias + m) << m | 1, (bias - m) << m]
    positive += [(exponent << m) - 1, exponent << m, form.quiet_nan | 5, exponent << m | 9]
    sign = 1 << (form.bits - 1)
    return np.array([*positive, *(p | sign for p in positive)], np.uint64)
