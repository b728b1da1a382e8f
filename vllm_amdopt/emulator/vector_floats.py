"""Vector instructions that compute with f32, f64 and f16: types of operands and function.

Source: CDNA4 ISA, 12.7 (VOP2), 12.8 (VOP1), 12.11 (VOP3), by the instruction's name. The letters of
the types are explained in registers.py; D: the destination is a source as well; m: lane mask; p: an
f16 result that leaves the other half of the register alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .definitions import f16, f32, f64, i16, u32
from .division import F32, F64, div_fixup, div_fmas, div_scale
from .floats import (
    array,
    cosine_of_turns,
    fma_f16,
    fma_f32,
    fma_f64,
    fraction,
    frexp_exponent,
    frexp_mantissa,
    load_exponent,
    max3_float,
    max_float,
    maximum3,
    median_float,
    min3_float,
    min_float,
    minimum3,
    sine_of_turns,
    transcendental_f16,
    transcendental_f32,
)


def pack_halves(low: Any, high: Any) -> Any:
    """Two arrays of 16-bit values -> u32"""
    return array(low).view("u2").astype(u32) | (array(high).view("u2").astype(u32) << u32(16))


FLOAT_TABLE: dict[str, tuple[str, str, Callable[..., Any]]] = {
    # f32
    "v_add_f32": ("f", "ff", np.add),
    "v_sub_f32": ("f", "ff", np.subtract),
    "v_subrev_f32": ("f", "ff", lambda a, b: b - a),
    "v_mul_f32": ("f", "ff", np.multiply),
    "v_mul_legacy_f32": ("f", "ff", lambda a, b: np.where((a == 0) | (b == 0), f32(0), a * b)),
    "v_max_f32": ("f", "ff", max_float),
    "v_min_f32": ("f", "ff", min_float),
    "v_max3_f32": ("f", "fff", max3_float),
    "v_min3_f32": ("f", "fff", min3_float),
    "v_med3_f32": ("f", "fff", median_float),
    "v_maximum3_f32": ("f", "fff", maximum3),
    "v_minimum3_f32": ("f", "fff", minimum3),
    "v_fma_f32": ("f", "fff", fma_f32),
    "v_fmac_f32": ("f", "ffD", fma_f32),
    "v_fmaak_f32": ("f", "fff", fma_f32),
    "v_fmamk_f32": ("f", "fff", fma_f32),
    "v_mad_f32": ("f", "fff", lambda a, b, c: a * b + c),
    "v_mac_f32": ("f", "ffD", lambda a, b, c: a * b + c),
    "v_madak_f32": ("f", "fff", lambda a, b, c: a * b + c),
    "v_madmk_f32": ("f", "fff", lambda a, b, c: a * b + c),
    "v_exp_f32": ("f", "f", transcendental_f32(np.exp2)),
    "v_log_f32": ("f", "f", transcendental_f32(np.log2)),
    "v_rcp_f32": ("f", "f", transcendental_f32(lambda a: 1.0 / a)),
    "v_rcp_iflag_f32": ("f", "f", transcendental_f32(lambda a: 1.0 / a)),
    "v_rsq_f32": ("f", "f", transcendental_f32(lambda a: 1.0 / np.sqrt(a))),
    "v_sqrt_f32": ("f", "f", transcendental_f32(np.sqrt)),
    "v_sin_f32": ("f", "f", transcendental_f32(sine_of_turns)),
    "v_cos_f32": ("f", "f", transcendental_f32(cosine_of_turns)),
    "v_exp_legacy_f32": ("f", "f", transcendental_f32(np.exp2)),
    "v_log_legacy_f32": ("f", "f", transcendental_f32(np.log2)),
    "v_floor_f32": ("f", "f", np.floor),
    "v_ceil_f32": ("f", "f", np.ceil),
    "v_trunc_f32": ("f", "f", np.trunc),
    "v_rndne_f32": ("f", "f", np.rint),
    "v_fract_f32": ("f", "f", fraction(f32)),
    "v_frexp_mant_f32": ("f", "f", frexp_mantissa),
    "v_frexp_exp_i32_f32": ("i", "f", frexp_exponent),
    "v_ldexp_f32": ("f", "fi", load_exponent(f32)),
    "v_div_scale_f32": ("fm", "fff", div_scale(F32)),
    "v_div_fmas_f32": ("f", "fffm", div_fmas(F32)),
    "v_div_fixup_f32": ("f", "fff", div_fixup(f32)),
    # f64
    "v_add_f64": ("F", "FF", np.add),
    "v_mul_f64": ("F", "FF", np.multiply),
    "v_max_f64": ("F", "FF", max_float),
    "v_min_f64": ("F", "FF", min_float),
    "v_fma_f64": ("F", "FFF", fma_f64),
    "v_fmac_f64": ("F", "FFD", fma_f64),
    "v_rcp_f64": ("F", "F", lambda a: 1.0 / a),
    "v_rsq_f64": ("F", "F", lambda a: 1.0 / np.sqrt(a)),
    "v_sqrt_f64": ("F", "F", np.sqrt),
    "v_floor_f64": ("F", "F", np.floor),
    "v_ceil_f64": ("F", "F", np.ceil),
    "v_trunc_f64": ("F", "F", np.trunc),
    "v_rndne_f64": ("F", "F", np.rint),
    "v_fract_f64": ("F", "F", fraction(f64)),
    "v_frexp_mant_f64": ("F", "F", frexp_mantissa),
    "v_frexp_exp_i32_f64": ("i", "F", frexp_exponent),
    "v_ldexp_f64": ("F", "Fi", load_exponent(f64)),
    "v_div_scale_f64": ("Fm", "FFF", div_scale(F64)),
    "v_div_fmas_f64": ("F", "FFFm", div_fmas(F64)),
    "v_div_fixup_f64": ("F", "FFF", div_fixup(f64)),
    # f16
    "v_add_f16": ("h", "hh", np.add),
    "v_sub_f16": ("h", "hh", np.subtract),
    "v_subrev_f16": ("h", "hh", lambda a, b: b - a),
    "v_mul_f16": ("h", "hh", np.multiply),
    "v_max_f16": ("h", "hh", max_float),
    "v_min_f16": ("h", "hh", min_float),
    "v_fma_f16": ("p", "hhh", fma_f16),
    "v_mad_f16": ("p", "hhh", fma_f16),
    "v_mac_f16": ("h", "hhD", fma_f16),
    "v_fmac_f16": ("h", "hhD", fma_f16),
    "v_fma_legacy_f16": ("h", "hhh", fma_f16),
    "v_mad_legacy_f16": ("h", "hhh", fma_f16),
    "v_madak_f16": ("h", "hhh", fma_f16),
    "v_madmk_f16": ("h", "hhh", fma_f16),
    "v_max3_f16": ("p", "hhh", max3_float),
    "v_min3_f16": ("p", "hhh", min3_float),
    "v_med3_f16": ("p", "hhh", median_float),
    "v_div_fixup_f16": ("p", "hhh", div_fixup(f16)),
    "v_exp_f16": ("h", "h", transcendental_f16(np.exp2)),
    "v_log_f16": ("h", "h", transcendental_f16(np.log2)),
    "v_rcp_f16": ("h", "h", transcendental_f16(lambda a: 1.0 / a)),
    "v_rsq_f16": ("h", "h", transcendental_f16(lambda a: 1.0 / np.sqrt(a))),
    "v_sqrt_f16": ("h", "h", transcendental_f16(np.sqrt)),
    "v_sin_f16": ("h", "h", transcendental_f16(lambda a: np.sin(2 * np.pi * a))),
    "v_cos_f16": ("h", "h", transcendental_f16(lambda a: np.cos(2 * np.pi * a))),
    "v_floor_f16": ("h", "h", np.floor),
    "v_ceil_f16": ("h", "h", np.ceil),
    "v_trunc_f16": ("h", "h", np.trunc),
    "v_rndne_f16": ("h", "h", np.rint),
    "v_fract_f16": ("h", "h", fraction(f16)),
    "v_frexp_mant_f16": ("h", "h", frexp_mantissa),
    "v_frexp_exp_i16_f16": ("s", "h", lambda a: frexp_exponent(a).astype(i16)),
    "v_ldexp_f16": ("h", "hs", load_exponent(f16)),
    "v_pack_b32_f16": ("u", "hh", pack_halves),
}
