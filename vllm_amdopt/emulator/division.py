"""The helper instructions of IEEE division: V_DIV_SCALE, V_DIV_FMAS, V_DIV_FIXUP.

Source: the pseudo-code of these instructions, CDNA4 ISA 12.11. Two choices differ from its letter,
so that the sequence LLVM emits divides as IEEE 754 says (tests/emulator/test_exactness.py): the
doubly-denormal case of V_DIV_SCALE scales down, and V_DIV_FIXUP turns a NaN quotient of numbers
into infinity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .definitions import f32, f64, i32
from .floats import BITS, SIGN_BIT, fma_f32, fma_f64, lost_in_sum, to_odd

array = np.asarray


@dataclass(frozen=True)
class Format:
    """What the pseudo-code says for f32 and f64 with different numbers."""

    numpy_type: Any
    mantissa_bits: int
    exponent_mask: int
    bias: int
    large_quotient: int  # difference of exponents from which the denominator is scaled
    tiny_numerator: int  # biased exponent up to which the numerator is scaled
    scale: int  # power of two
    underflow: int  # difference of exponents below which the quotient is 0

    def exponent(self, x: Any) -> Any:
        """The biased exponent."""
        bits = BITS[self.numpy_type]
        field = array(x, self.numpy_type).view(bits) >> bits(self.mantissa_bits)
        return (field & bits(self.exponent_mask)).astype(i32)

    def denormal(self, x: Any) -> Any:
        return (np.abs(x) < np.finfo(self.numpy_type).tiny) & (x != 0)


F32 = Format(f32, 23, 0xFF, 127, 96, 23, 64, -150)
F64 = Format(f64, 52, 0x7FF, 1023, 768, 53, 128, -1075)


def _moderate(magnitudes: Any) -> bool:
    """All far from overflow, underflow and their consequences in a division; False for a NaN."""
    return magnitudes.min() > 2.0**-45 and magnitudes.max() < 2.0**45


def div_scale(form: Format) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """V_DIV_SCALE: (what to scale, denominator, numerator) -> (scaled, scale the quotient back)"""
    numpy_type, is_f32 = form.numpy_type, form is F32
    bits = BITS[numpy_type]

    def quotient_and_reciprocal(denominator: Any, numerator: Any) -> tuple[Any, Any]:
        """-> (the quotient is denormal, the reciprocal of the denominator is)"""
        smallest = np.finfo(numpy_type).tiny
        if is_f32:
            quotient = numerator.astype(f64) / denominator.astype(f64)
            reciprocal = np.abs(1.0 / denominator.astype(f64)) < smallest
            return (np.abs(quotient) < smallest) & (quotient != 0), reciprocal
        quotient = numerator / denominator
        lost = (quotient == 0) & (numerator != 0)
        return form.denormal(quotient) | lost, form.denormal(1.0 / denominator)

    def scale(value: Any, denominator: Any, numerator: Any) -> tuple[Any, Any]:
        value, denominator, numerator = np.broadcast_arrays(
            array(value, numpy_type), array(denominator, numpy_type), array(numerator, numpy_type)
        )
        if is_f32 and _moderate(np.abs(denominator)) and _moderate(np.abs(numerator)):
            return value, np.zeros(value.shape, bool)  # nothing to scale
        difference = form.exponent(numerator) - form.exponent(denominator)
        small_quotient, small_reciprocal = quotient_and_reciprocal(denominator, numerator)
        small_reciprocal = small_reciprocal & np.isfinite(denominator)
        up, down = np.ldexp(value, form.scale), np.ldexp(value, -form.scale)
        is_denominator = value.view(bits) == denominator.view(bits)
        is_numerator = value.view(bits) == numerator.view(bits)
        yes, no = np.ones(value.shape, bool), np.zeros(value.shape, bool)
        cases = [  # condition, scaled value, flag
            (
                (numerator == 0) | (denominator == 0),
                np.full_like(value, np.nan),
                no,
            ),
            (difference >= form.large_quotient, np.where(is_denominator, up, value), yes),
            (form.denormal(denominator), up, no),
            (small_reciprocal & small_quotient, np.where(is_denominator, down, value), yes),
            (small_reciprocal, down, no),
            (small_quotient, np.where(is_numerator, up, value), yes),
            (form.exponent(numerator) <= form.tiny_numerator, up, no),
        ]
        conditions = [case[0] for case in cases]
        scaled = np.select(conditions, [case[1] for case in cases], value).astype(numpy_type)
        return scaled, np.select(conditions, [case[2] for case in cases], False)

    return scale


def div_fmas(form: Format) -> Callable[[Any, Any, Any, Any], Any]:
    """V_DIV_FMAS: fma, scaled by a power of two where VCC says so, rounded once.

    Up where the quotient (the third source) is large, else down.
    """

    def fused(a: Any, b: Any, c: Any, scaled: Any) -> Any:
        result = fma_f32(a, b, c) if form is F32 else fma_f64(a, b, c)
        if not np.any(scaled):
            return result
        power = np.where(form.exponent(c) > form.bias, form.scale, -form.scale)
        if form is F64:
            return np.where(scaled, np.ldexp(result, power), result)
        product = np.multiply(a, b, dtype=f64)
        total = product + c
        error = lost_in_sum(product, array(c, f64), total)
        # rounded to odd, so that the second rounding cannot see a tie that was none
        odd = to_odd(total, error)
        return np.where(scaled, np.ldexp(odd, power).astype(f32), result)

    return fused


def div_fixup(numpy_type: Any) -> Callable[[Any, Any, Any], Any]:
    """V_DIV_FIXUP: (quotient, denominator, numerator) -> the quotient with IEEE's special cases"""
    bits, form = BITS[numpy_type], {f32: F32, f64: F64}.get(numpy_type)

    def fix(quotient: Any, denominator: Any, numerator: Any) -> Any:
        quotient, denominator, numerator = (
            np.ascontiguousarray(x)
            for x in np.broadcast_arrays(
                array(quotient, numpy_type),
                array(denominator, numpy_type),
                array(numerator, numpy_type),
            )
        )
        if numpy_type is f32:
            size = np.abs(quotient)
            if all(_moderate(x) for x in (size, np.abs(denominator), np.abs(numerator))):
                # nothing to repair but the sign
                return np.copysign(size, denominator) * np.copysign(f32(1), numerator)
        negative = (denominator.view(bits) ^ numerator.view(bits)) >> bits(SIGN_BIT[numpy_type])
        sign = np.where(negative == 1, numpy_type(-1), numpy_type(1))
        zero, infinity = np.copysign(numpy_type(0), sign), np.copysign(numpy_type(np.inf), sign)
        result = np.where(np.isnan(quotient), infinity, np.abs(quotient) * sign)
        if form is not None:
            small = form.exponent(numerator) - form.exponent(denominator) < form.underflow
            result = np.where(small, zero, result)
        by_zero, of_zero = denominator == 0, numerator == 0
        by_infinity, of_infinity = np.isinf(denominator), np.isinf(numerator)
        result = np.where(by_infinity | of_zero, zero, result)
        result = np.where(by_zero | of_infinity, infinity, result)
        undefined = (by_zero & of_zero) | (by_infinity & of_infinity)
        result = np.where(undefined, numpy_type(np.nan), result)
        result = np.where(np.isnan(denominator), denominator, result)
        return np.where(np.isnan(numerator), numerator, result).astype(numpy_type)

    return fix
