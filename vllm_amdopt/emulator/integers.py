"""Integer and bit arithmetic of the instructions, on NumPy arrays; no machine state.

Source of each function: the instruction it is named after, CDNA4 ISA 5.4 and 5.7 (scalar), 12.7
(VOP2), 12.8 (VOP1) and 12.11 (VOP3). Unsigned NumPy arithmetic wraps around as the hardware does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .definitions import i32, i64, u32, u64

array = np.asarray


# ---- single bits ------------------------------------------------------------------------------
def reverse_bits_32(x: Any) -> Any:
    x = array(x, u32)
    for shift, mask in (
        (1, 0x55555555),
        (2, 0x33333333),
        (4, 0x0F0F0F0F),
        (8, 0x00FF00FF),
        (16, 0x0000FFFF),
    ):
        x = ((x >> u32(shift)) & u32(mask)) | ((x & u32(mask)) << u32(shift))
    return x


def reverse_bits_64(x: Any) -> Any:
    low, high = (x & u64(0xFFFFFFFF)).astype(u32), (x >> u64(32)).astype(u32)
    return (reverse_bits_32(low).astype(u64) << u64(32)) | reverse_bits_32(high).astype(u64)


def count_ones(x: Any) -> Any:
    return np.bitwise_count(array(x))


def _mask(bits: int) -> Any:
    return u64((1 << bits) - 1)


def leading_zeros(x: Any, bits: int) -> Any:
    """S_FLBIT_I32_B*, V_FFBH_U32: zeros above the highest set bit of `bits`; -1 for 0."""
    x = array(x, u64)
    count = np.zeros(x.shape, i64)
    rest = x << u64(64 - bits)
    for step in (32, 16, 8, 4, 2, 1):
        empty = (rest >> u64(64 - step)) == 0
        count = np.where(empty, count + step, count)
        rest = np.where(empty, rest << u64(step), rest)
    return np.where(x & _mask(bits) == 0, i64(-1), count)


def trailing_zeros(x: Any, bits: int) -> Any:
    """S_FF1_I32_B*, V_FFBL_B32: zeros below the lowest set bit of `bits`; -1 for 0."""
    x = array(x, u64) & _mask(bits)
    lowest = x & (~x + u64(1))
    return np.where(x == 0, -1, count_ones(lowest - u64(1)).astype(i64))


def leading_sign_bits(x: Any, bits: int) -> Any:
    """S_FLBIT_I32, V_FFBH_I32: bits at the top equal to the sign; -1 for 0 and -1."""
    x = array(x).astype(i64)
    return leading_zeros(np.where(x < 0, ~x, x).view(u64) & _mask(bits), bits)


# ---- bit fields -------------------------------------------------------------------------------
def bitfield_unsigned(a: Any, offset: Any, width: Any) -> Any:
    """V_BFE_U32."""
    offset, width = array(offset) & u32(31), array(width) & u32(31)
    return (a >> offset) & ((u32(1) << width) - u32(1))


def bitfield_signed(a: Any, offset: Any, width: Any) -> Any:
    """V_BFE_I32: a field that sticks out at the top is filled with the sign."""
    offset, width = array(offset).astype(i64) & 31, array(width).astype(i64) & 31
    field = (array(a).view(i32).astype(i64) >> offset) & ((i64(1) << width) - 1)
    sign = i64(1) << np.maximum(width - 1, 0)
    return np.where(width > 0, (field ^ sign) - sign, 0).astype(i32)


def scalar_bitfield_64(a: Any, field: Any, signed: bool) -> Any:
    """S_BFE_{U,I}64: offset in field[5:0], width in field[22:16]."""
    field = array(field).astype(u64)
    offset, width = field & u64(63), (field >> u64(16)) & u64(0x7F)
    width = np.minimum(width, u64(64) - offset)
    unused = np.where(width == 0, u64(0), u64(64) - width)
    top = array(a).view(u64) << np.where(width == 0, u64(0), unused - offset)
    result = (top.view(i64) >> unused.astype(i64)).view(u64) if signed else top >> unused
    return np.where(width == 0, u64(0), result)


def scalar_bitfield_32(a: Any, field: Any, signed: bool) -> Any:
    """S_BFE_{U,I}32: offset in field[4:0], width in field[22:16]."""
    field = array(field)
    offset, width = (field & u32(31)).astype(u64), ((field >> u32(16)) & u32(0x7F)).astype(u64)
    width = np.minimum(width, u64(32) - offset)
    value = array(a).view(i32).astype(i64).view(u64) if signed else array(a).astype(u64)
    unused = np.where(width == 0, u64(0), u64(64) - width)
    top = value << np.where(width == 0, u64(0), unused - offset)
    result = (top.view(i64) >> unused.astype(i64)).view(u64) if signed else top >> unused
    return np.where(width == 0, u64(0), result).astype(u32)


def align_bits(a: Any, b: Any, shift: Any) -> Any:
    """V_ALIGNBIT_B32: {a, b} shifted right, the low half."""
    both = (array(a).astype(u64) << u64(32)) | array(b).astype(u64)
    return (both >> (array(shift).astype(u64) & u64(31))).astype(u32)


def align_bytes(a: Any, b: Any, shift: Any) -> Any:
    """V_ALIGNBYTE_B32."""
    both = (array(a).astype(u64) << u64(32)) | array(b).astype(u64)
    return (both >> ((array(shift).astype(u64) & u64(3)) << u64(3))).astype(u32)


# ---- byte permutation -------------------------------------------------------------------------
ZERO_CODE = 12  # selects a byte of zeros; anything above one of ones


def _permute_constant(a: Any, b: Any, selector: int) -> Any:
    """One selector for all lanes, without signs: neighbouring bytes move together."""
    codes = [selector >> 8 * i & 0xFF for i in range(4)]
    ones = sum(0xFF << 8 * i for i, code in enumerate(codes) if code > ZERO_CODE)
    result, i = (u32(ones) if ones else None), 0
    while i < 4:
        byte, count = codes[i], 1
        if byte >= ZERO_CODE:
            i += 1
            continue
        while i + count < 4 and codes[i + count] == byte + count and (byte + count) & 3:
            count += 1
        piece, shift = (a if byte > 3 else b), 8 * (byte & 3) - 8 * i
        if count < 4:
            piece = piece & u32(((1 << 8 * count) - 1) << 8 * (byte & 3))
        if shift:
            piece = piece >> u32(shift) if shift > 0 else piece << u32(-shift)
        result = piece if result is None else result | piece
        i += count
    return u32(0) if result is None else result


SIGN_CODES = {8: 15, 9: 31, 10: 47, 11: 63}  # selector -> the bit that fills the byte


def _selects_signs(selector: int) -> bool:
    return any(selector >> 8 * i & 0xFF in SIGN_CODES for i in range(4))


def permute_bytes(a: Any, b: Any, selector: Any) -> Any:
    """V_PERM_B32: bytes 0 to 3 of b, 4 to 7 of a; 8 to 11 signs, 12 zeros, above ones."""
    if getattr(selector, "shape", (1,))[-1:] in ((), (1,)):  # a constant or a scalar register
        distinct = {int(x) for x in np.ravel(selector)}
        if len(distinct) <= 2 and not any(map(_selects_signs, distinct)):
            x, y = array(a, u32), array(b, u32)
            code, *others = distinct
            result = _permute_constant(x, y, code)
            for other in others:  # waves that have done something else with the register
                result = np.where(selector == u32(other), _permute_constant(x, y, other), result)
            return result
    a, b, selector = np.broadcast_arrays(array(a, u32), array(b, u32), array(selector, u32))
    both = (a.astype(u64) << u64(32)) | b.astype(u64)
    result = np.zeros(both.shape, u32)
    for i in range(4):
        code = (selector >> u32(8 * i)) & u32(0xFF)
        byte = (both >> ((code & u32(7)).astype(u64) << u64(3))).astype(u32) & u32(0xFF)
        if (code > 7).any():
            for sign_code, bit in SIGN_CODES.items():
                filled = np.where((both >> u64(bit)) & u64(1) == 1, u32(0xFF), u32(0))
                byte = np.where(code == sign_code, filled, byte)
            byte = np.where(code > ZERO_CODE, u32(0xFF), byte)
            byte = np.where(code == ZERO_CODE, u32(0), byte)
        result |= byte << u32(8 * i)
    return result


# ---- arithmetic -------------------------------------------------------------------------------
def median_integer(a: Any, b: Any, c: Any) -> Any:
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def max3_integer(a: Any, b: Any, c: Any) -> Any:
    return np.maximum(np.maximum(a, b), c)


def min3_integer(a: Any, b: Any, c: Any) -> Any:
    return np.minimum(np.minimum(a, b), c)


def multiply_high_unsigned(a: Any, b: Any) -> Any:
    return ((array(a).astype(u64) * array(b).astype(u64)) >> u64(32)).astype(u32)


def multiply_high_signed(a: Any, b: Any) -> Any:
    return ((array(a).astype(i64) * array(b).astype(i64)) >> 32).astype(i32)


def signed_24(x: Any) -> Any:
    """The low 24 bits as a signed number."""
    return (array(x, i32) << 8) >> 8


def unsigned_24(x: Any) -> Any:
    return array(x, u32) & u32(0xFFFFFF)


def add_carry(a: Any, b: Any, carry_in: Any = None) -> tuple[Any, Any]:
    """a + b + carry_in -> (u32 sum, carry out)"""
    a = array(a)
    total = a + b
    carry = total < a
    if carry_in is not None:
        with_carry = total + carry_in
        carry, total = carry | (with_carry < total), with_carry
    return total, carry


def subtract_borrow(a: Any, b: Any, borrow_in: Any = 0) -> tuple[Any, Any]:
    """a - b - borrow_in -> (u32 difference, borrow out)"""
    difference = array(a).astype(i64) - array(b).astype(i64) - array(borrow_in).astype(i64)
    return difference.astype(u32), difference < 0


def add_overflow(a: Any, b: Any) -> tuple[Any, Any]:
    """Signed a + b -> (sum, overflow)"""
    total = a + b
    return total, ((a ^ total) & (b ^ total)) < 0


def subtract_overflow(a: Any, b: Any) -> tuple[Any, Any]:
    difference = a - b
    return difference, ((a ^ b) & (a ^ difference)) < 0


def multiply_add_u64(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    """V_MAD_U64_U32 -> (64-bit result, carry out)"""
    product = array(a).astype(u64) * array(b).astype(u64)
    total = product + c
    return total, total < product


def multiply_add_i64(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    """V_MAD_I64_I32 -> (64-bit result, bit 64 of the signed sum)"""
    product = array(a).astype(i64) * array(b).astype(i64)
    c = array(c).view(i64)
    total = product + c
    return total.view(u64), (total < 0) ^ (((product ^ total) & (c ^ total)) < 0)


def sum_of_absolute_differences(a: Any, b: Any, c: Any) -> Any:
    """V_SAD_U8: of four bytes, added to c."""
    a, b, result = array(a, u32), array(b, u32), array(c, u32)
    for shift in range(0, 32, 8):
        x = ((a >> u32(shift)) & u32(255)).astype(i32)
        y = ((b >> u32(shift)) & u32(255)).astype(i32)
        result = result + np.abs(x - y).astype(u32)
    return result
