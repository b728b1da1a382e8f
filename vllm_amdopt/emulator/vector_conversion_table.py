"""Vector conversions between number types that are a function of their operands alone.

Source: CDNA4 ISA, 12.8 (VOP1) and 12.11 (VOP3), by the instruction's name; letters of the types as
in registers.py. FP8 and smaller floats are in vector_conversions.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .definitions import f16, f32, f64, i16, i32, u16, u32
from .floats import array, f16_toward_zero, to_integer
from .operands import f32_to_bf16
from .vector_floats import pack_halves


def _clipped(low: int, high: int, numpy_type: Any) -> Callable[[Any], Any]:
    return lambda values: np.clip(values, low, high).astype(numpy_type)


def _normalised(low: int, scale: int, numpy_type: Any) -> Callable[[Any, Any], Any]:
    """V_CVT_PKNORM: clipped to [low, 1], times the largest integer; NaN counts as 0."""

    def convert(values: Any) -> Any:
        return np.rint(np.clip(np.nan_to_num(array(values)), low, 1) * scale).astype(numpy_type)

    return lambda a, b: pack_halves(convert(a), convert(b))


def _insert_byte(value: Any, byte: Any, into: Any) -> Any:
    """V_CVT_PK_U8_F32: a saturated unsigned byte into one byte of the third source."""
    shift = u32(8) * (array(byte) & u32(3))
    converted = np.clip(np.nan_to_num(np.rint(array(value))), 0, 255).astype(u32)
    return (array(into) & ~(u32(255) << shift)) | (converted << shift)


def _shift_and_pack(low: int, high: int) -> Callable[[Any, Any, Any], Any]:
    """V_ASHR_PK_*8_I32: two numbers shifted right, saturated to bytes and packed (gfx950)."""

    def convert(a: Any, b: Any, shift: Any) -> Any:
        places = (array(shift) & u32(31)).astype(i32)
        first, second = (
            np.clip(array(x) >> places, low, high).astype(u16) & u16(255) for x in (a, b)
        )
        return first | (second << u16(8))

    return convert


def _saturate_bytes(a: Any) -> Any:
    """V_SAT_PK_U8_I16."""
    low, high = (np.clip((array(a) >> u32(s)).astype(u16).view(i16), 0, 255) for s in (0, 16))
    return low.astype(u32) | (high.astype(u32) << u32(8))


def _signed_nibble(a: Any) -> Any:
    """V_CVT_OFF_F32_I4: a signed 4-bit number, in sixteenths."""
    return ((((array(a) & u32(15)).astype(i32) ^ 8) - 8) / 16).astype(f32)


def _to(numpy_type: Any) -> Callable[[Any], Any]:
    return lambda values: array(values).astype(numpy_type)


def _byte_to_f32(byte: int) -> Callable[[Any], Any]:
    return lambda values: ((array(values) >> u32(8 * byte)) & u32(255)).astype(f32)


CONVERSION_TABLE: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "v_cvt_f32_i32": ("f", "i", _to(f32)),
    "v_cvt_f32_u32": ("f", "u", _to(f32)),
    "v_cvt_i32_f32": ("i", "f", to_integer(i32)),
    "v_cvt_u32_f32": ("u", "f", to_integer(u32)),
    "v_cvt_rpi_i32_f32": ("i", "f", lambda a: to_integer(i32)(np.floor(array(a, f64) + 0.5))),
    "v_cvt_flr_i32_f32": ("i", "f", lambda a: to_integer(i32)(np.floor(a))),
    "v_cvt_f16_f32": ("h", "f", _to(f16)),
    "v_cvt_f32_f16": ("f", "h", _to(f32)),
    "v_cvt_f64_f32": ("F", "f", _to(f64)),
    "v_cvt_f32_f64": ("f", "F", _to(f32)),
    "v_cvt_f64_i32": ("F", "i", _to(f64)),
    "v_cvt_f64_u32": ("F", "u", _to(f64)),
    "v_cvt_i32_f64": ("i", "F", to_integer(i32)),
    "v_cvt_u32_f64": ("u", "F", to_integer(u32)),
    "v_cvt_f16_u16": ("h", "w", _to(f16)),
    "v_cvt_f16_i16": ("h", "s", _to(f16)),
    "v_cvt_u16_f16": ("w", "h", to_integer(u16)),
    "v_cvt_i16_f16": ("s", "h", to_integer(i16)),
    **{f"v_cvt_f32_ubyte{byte}": ("f", "u", _byte_to_f32(byte)) for byte in range(4)},
    "v_cvt_pkrtz_f16_f32": (
        "u",
        "ff",
        lambda a, b: pack_halves(f16_toward_zero(a), f16_toward_zero(b)),
    ),
    "v_cvt_pk_f16_f32": ("u", "ff", lambda a, b: pack_halves(_to(f16)(a), _to(f16)(b))),
    "v_cvt_pk_bf16_f32": ("u", "ff", lambda a, b: pack_halves(f32_to_bf16(a), f32_to_bf16(b))),
    "v_cvt_f32_bf16": ("f", "b", array),
    "v_cvt_pk_i16_i32": (
        "u",
        "ii",
        lambda a, b: pack_halves(*(_clipped(-32768, 32767, i16)(x) for x in (a, b))),
    ),
    "v_cvt_pk_u16_u32": (
        "u",
        "uu",
        lambda a, b: pack_halves(*(_clipped(0, 65535, u16)(x) for x in (a, b))),
    ),
    "v_cvt_pknorm_i16_f32": ("u", "ff", _normalised(-1, 32767, i16)),
    "v_cvt_pknorm_u16_f32": ("u", "ff", _normalised(0, 65535, u16)),
    "v_cvt_pk_u8_f32": ("u", "fuu", _insert_byte),
    "v_cvt_off_f32_i4": ("f", "u", _signed_nibble),
    "v_ashr_pk_i8_i32": ("w", "iiu", _shift_and_pack(-128, 127)),
    "v_ashr_pk_u8_i32": ("w", "iiu", _shift_and_pack(0, 255)),
    "v_sat_pk_u8_i16": ("u", "u", _saturate_bytes),
}
