"""Floating-point arithmetic of the instructions, on NumPy arrays; no machine state.

NumPy rounds to nearest even and keeps denormals, as MODE does by default. Source of each function:
the instruction it is named after, CDNA4 ISA 12.7 (VOP2), 12.8 (VOP1) and 12.11 (VOP3).
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from .definitions import f16, f32, f64, i32, i64, u16, u32, u64

array = np.asarray
SMALLEST_NORMAL_F32 = f32(2.0**-126)

BITS: dict[Any, Any] = {f16: u16, f32: u32, f64: u64}  # float type -> unsigned of its size
SIGN_BIT: dict[Any, int] = {f16: 15, f32: 31, f64: 63}
QUIET_BIT: dict[Any, int] = {f16: 9, f32: 22, f64: 51}


def towards_error(total: Any, error: Any) -> Any:
    """The f64 next to `total` in the direction of what its rounding lost; itself where exact."""
    direction = np.where(error > 0, np.inf, -np.inf)
    return np.where(error != 0, np.nextafter(total, direction), total)


def lost_in_sum(a: Any, b: Any, total: Any) -> Any:
    """a + b - total exactly (Knuth's TwoSum)."""
    part = total - a
    return (a - (total - part)) + (b - part)


def to_odd(total: Any, error: Any) -> Any:
    """A rounded f64 and what its rounding lost -> the same rounded to odd."""
    even = (array(total).view(u64) & u64(1)) == 0
    return np.where(even, towards_error(total, error), total)


def sum_to_odd(a: Any, b: Any) -> Any:
    total = a + b
    return to_odd(total, lost_in_sum(a, b, total))


def fma_f32(a: Any, b: Any, c: Any) -> Any:
    """f32 a * b + c with one rounding: the product is exact in f64, the sum almost always is.

    Where the f64 sum lies half way between two f32, or in their denormal range, its own rounding
    error decides.
    """
    product = np.multiply(a, b, dtype=f64)
    total = product + c
    result = total.astype(f32)
    # 0: half way between two f32
    tie = (array(total).view(u64) & u64(0x1FFFFFFF)) ^ u64(0x10000000)
    magnitude = np.abs(total)
    if not tie.all() or magnitude.min() < 1.2e-38:
        doubtful = (tie == 0) | ((magnitude < 1.2e-38) & (magnitude > 0))
        if not doubtful.any():
            return result
        error = lost_in_sum(product, array(c, f64), total)
        exact_side = towards_error(total, error).astype(f32)
        result = np.where(doubtful & np.isfinite(total), exact_side, result)
    return result


def _fma_f64_exactly(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c
    try:
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def _split(x: Any) -> tuple[Any, Any]:
    """Veltkamp's split of an f64 into two halves whose products are exact."""
    scaled = x * 134217729.0
    high = scaled - (scaled - x)
    return high, x - high


def fma_f64(a: Any, b: Any, c: Any) -> Any:
    """f64 a * b + c: Dekker's product and exact sums; by fractions where these would overflow."""
    a, b, c = np.broadcast_arrays(array(a, f64), array(b, f64), array(c, f64))
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    # Boldo and Melquiond: the two remainders are added with rounding to odd, so that the last
    # addition cannot see a tie that is none
    low = c + error
    total = product + low
    result = total + sum_to_odd(lost_in_sum(c, error, low), lost_in_sum(product, low, total))
    result = np.where(np.isfinite(result), result, product + c)  # zeros, infinities, NaN
    magnitude = np.abs(product)
    extreme = (np.abs(a) > 1e290) | (np.abs(b) > 1e290) | (magnitude > 1e300) | (magnitude < 1e-280)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    hard = extreme & finite & (a != 0) & (b != 0)
    if hard.any():
        result = np.array(result)
        lanes = np.nonzero(hard)
        triples = zip(a[lanes], b[lanes], c[lanes], strict=True)
        result[lanes] = [_fma_f64_exactly(float(x), float(y), float(z)) for x, y, z in triples]
    return result


def fma_f16(a: Any, b: Any, c: Any) -> Any:
    """f16 a * b + c: f64 holds product and, where it matters to the rounding, the sum exactly."""
    return (np.multiply(a, b, dtype=f64) + c).astype(f16)


def flush_f32(x: Any) -> Any:
    """Denormals become zeros of their sign."""
    x = array(x)
    denormal = np.abs(x) < SMALLEST_NORMAL_F32
    return np.where(denormal, np.copysign(f32(0), x), x) if denormal.any() else x


# ---- minimum and maximum ----------------------------------------------------------------------
def quieted(x: Any) -> Any:
    """Signalling NaN become quiet, everything else stays."""
    numpy_type = array(x).dtype.type
    bits = np.ascontiguousarray(x).view(BITS[numpy_type])
    quiet = bits | BITS[numpy_type](1 << QUIET_BIT[numpy_type])
    return np.where(np.isnan(x), quiet, bits).view(numpy_type)


def is_signalling(x: Any) -> Any:
    """Whether each value is a signalling NaN."""
    numpy_type = array(x).dtype.type
    bits = np.ascontiguousarray(x).view(BITS[numpy_type])
    return np.isnan(x) & ((bits >> BITS[numpy_type](QUIET_BIT[numpy_type])) & 1 == 0)


lowest = np.minimum.reduce  # without the wrapper around ndarray.min: it is called often


def any_signalling(x: Any) -> bool:
    """Whether there is a signalling NaN: magnitudes between infinity and the first quiet NaN."""
    numpy_type = array(x).dtype.type
    bits_type, quiet = BITS[numpy_type], 1 << QUIET_BIT[numpy_type]
    magnitude = array(x).view(bits_type) & bits_type((1 << SIGN_BIT[numpy_type]) - 1)
    infinity = (1 << SIGN_BIT[numpy_type]) - 2 * quiet
    return bool(lowest(magnitude - bits_type(infinity + 1), axis=None) < quiet - 1)


def _chooser(plain: Any, number: Any, of_zeros: Any) -> Callable[[Any, Any], Any]:
    """V_MAX_F* or V_MIN_F*, IEEE mode on: a signalling NaN comes out quiet, a quiet one loses
    against a number, and -0 is smaller than +0."""

    def choose(a: Any, b: Any) -> Any:
        result = plain(a, b)
        smallest = lowest(np.abs(result), axis=None)
        if smallest > 0:
            return result  # neither zeros nor NaN
        any_nan = smallest != smallest
        if any_nan:
            result = number(b, a)  # of two NaN the first, as here: the second source
        if not result.all():
            result = np.where((array(a) == 0) & (array(b) == 0), of_zeros(a, b), result)
        if any_nan:
            for operand in (b, a):
                if any_signalling(operand):
                    result = np.where(is_signalling(operand), quieted(operand), result)
        return result

    return choose


max_float = _chooser(np.maximum, np.fmax, np.add)
min_float = _chooser(np.minimum, np.fmin, lambda a, b: -(-a - b))


def max3_float(a: Any, b: Any, c: Any) -> Any:
    return max_float(max_float(a, b), c)


def min3_float(a: Any, b: Any, c: Any) -> Any:
    return min_float(min_float(a, b), c)


def median_float(a: Any, b: Any, c: Any) -> Any:
    """V_MED3_F*: the median; with a NaN among the three, their minimum."""
    result = max_float(min_float(a, b), min_float(max_float(a, b), c))
    nan = np.isnan(a) | np.isnan(b) | np.isnan(c)
    return np.where(nan, min3_float(a, b, c), result) if nan.any() else result


def maximum3(a: Any, b: Any, c: Any) -> Any:
    """V_MAXIMUM3_F32, V_PK_MAXIMUM3_F16: IEEE 754-2019 maximum, NaN wins."""
    return np.maximum(np.maximum(a, b), c)


def minimum3(a: Any, b: Any, c: Any) -> Any:
    return np.minimum(np.minimum(a, b), c)


# ---- one operand ------------------------------------------------------------------------------
def transcendental_f32(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """f32 function, correctly rounded (hardware: about 1 ulp), denormals flushed both ways."""
    return lambda a: flush_f32(function(flush_f32(a).astype(f64)).astype(f32))


def transcendental_f16(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda a: function(array(a).astype(f64)).astype(f16)


def sine_of_turns(a: Any) -> Any:
    """V_SIN_F32: the argument counts turns."""
    return np.sin(2 * np.pi * (a - np.rint(a)))


def cosine_of_turns(a: Any) -> Any:
    return np.cos(2 * np.pi * (a - np.rint(a)))


BELOW_ONE: dict[Any, float] = {f16: 1 - 2.0**-11, f32: 1 - 2.0**-24, f64: 1 - 2.0**-53}


def fraction(numpy_type: Any) -> Callable[[Any], Any]:
    """V_FRACT_F*: a - floor(a), kept below 1."""
    top = numpy_type(BELOW_ONE[numpy_type])
    return lambda a: np.minimum(a - np.floor(a), top)


def frexp_mantissa(a: Any) -> Any:
    """V_FREXP_MANT_F*: in [0.5, 1); infinity and NaN stay."""
    return np.where(np.isfinite(a), np.frexp(a)[0], a)


def frexp_exponent(a: Any) -> Any:
    """V_FREXP_EXP_I*: 0 for infinity and NaN."""
    return np.where(np.isfinite(a), np.frexp(a)[1], 0).astype(i32)


def load_exponent(numpy_type: Any) -> Callable[[Any, Any], Any]:
    """V_LDEXP_F*: a * 2**b with one rounding."""

    def ldexp(a: Any, b: Any) -> Any:
        if numpy_type is not f64:
            exponent = np.clip(array(b).astype(i32), -2000, 2000)
            return np.ldexp(array(a, f64), exponent).astype(numpy_type)
        return np.ldexp(a, np.clip(array(b).astype(i32), -4000, 4000))

    return ldexp


def to_integer(numpy_type: Any) -> Callable[[Any], Any]:
    """V_CVT_{I,U}*_F*: toward zero, saturating, NaN to 0."""
    low, high = np.iinfo(numpy_type).min, np.iinfo(numpy_type).max

    def convert(x: Any) -> Any:
        x = array(x, f64)
        inside = np.clip(np.trunc(x), low, high)
        return np.where(np.isnan(x), 0, inside).astype(i64).astype(numpy_type)

    return convert


def f16_toward_zero(x: Any) -> Any:
    """V_CVT_PKRTZ_F16_F32: f32 -> f16, rounding toward zero, so that no number becomes infinite."""
    x = array(x)
    nearest = x.astype(f16)
    bits = np.ascontiguousarray(nearest).view(u16)
    over = np.abs(nearest.astype(f64)) > np.abs(x.astype(f64))
    return np.where(over & ~np.isinf(x), bits - u16(1), bits).astype(u16).view(f16)


def class_test(numpy_type: Any) -> Callable[[Any, Any], Any]:
    """V_CMP_CLASS_F*: whether the value belongs to one of the classes in the mask, bit 0 to 9:
    signalling NaN, quiet NaN, -infinity, -normal, -denormal, -0, +0, +denormal, +normal, +infinity.
    """
    bits_type, smallest = BITS[numpy_type], np.finfo(numpy_type).tiny

    def test(x: Any, mask: Any) -> Any:
        x = np.ascontiguousarray(np.broadcast_arrays(array(x, numpy_type), array(mask))[0])
        negative = (x.view(bits_type) >> bits_type(SIGN_BIT[numpy_type])) == 1
        nan, infinite, zero = np.isnan(x), np.isinf(x), x == 0
        denormal = (np.abs(x) < smallest) & ~zero
        signalling = is_signalling(x)
        normal = ~(nan | infinite | zero | denormal)
        classes = [signalling, nan & ~signalling]
        classes += [kind & negative for kind in (infinite, normal, denormal, zero)]
        classes += [kind & ~negative for kind in (zero, denormal, normal, infinite)]
        mask = array(mask).astype(u32)
        result = np.zeros(x.shape, bool)
        for bit, members in enumerate(classes):
            result |= members & ((mask >> u32(bit)) & u32(1) == 1)
        return result

    return test
