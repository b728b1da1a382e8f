"""Table of the plain vector instructions: name -> (destination types, source types, function)."""

from __future__ import annotations

import numpy as np

from .arithmetic import (
    A,
    _div_fixup,
    _div_fmas,
    _div_scale,
    addc,
    alignbit,
    alignbyte,
    bcnt,
    bfe_i,
    bfe_u,
    brev32,
    clsx,
    clz,
    cmp_class,
    ctz,
    cvt_int,
    fma16,
    fma32,
    fma64,
    fmax3,
    fmin3,
    mad64,
    mad64i,
    med3,
    med3f,
    mulhi_i,
    mulhi_u,
    perm,
    rtz16,
    s24,
    subb,
    trans,
    trans16,
    u24,
)
from .definitions import f16, f32, f64, i16, i32, i64, u16, u32, u64
from .operands import f2bf


def not_(x):
    return ~A(x)


def band(a, b):
    return a & b


def wide(dt, f):
    return lambda a, b: f(A(a).astype(dt), A(b).astype(dt))


def fract(dt):
    top = dt(0.99999994) if dt == f32 else dt(0.9999999999999999) if dt == f64 else dt(0.9995)
    return lambda a: np.minimum(a - np.floor(a), top)


def frexp_m(a):
    m = np.frexp(a)[0]
    return np.where(np.isfinite(a), m, a)


def frexp_e(a):
    return np.where(np.isfinite(a), np.frexp(a)[1], 0).astype(i32)


def ldexp_(dt):
    return lambda a, b: np.ldexp(A(a, f64), np.clip(A(b).astype(i32), -2000, 2000)).astype(dt)


def xmax(f, a, b):
    return f(a, b)


def gray_sad(a, b, c):
    a, b = A(a, u32), A(b, u32)
    r = A(c, u32)
    for i in range(4):
        r = r + np.abs(
            ((a >> u32(8 * i)) & u32(255)).astype(i32) - ((b >> u32(8 * i)) & u32(255)).astype(i32)
        ).astype(u32)
    return r


def fma_like(f):
    return lambda a, b, c: f(a, b, c)


def sat(lo, hi, dt):
    return lambda x: np.clip(x, lo, hi).astype(dt)


def pk16(lo, hi):
    return (A(lo).view(u16).astype(u32)) | (A(hi).view(u16).astype(u32) << u32(16))


def max_legacy(a, b):
    return np.where(a >= b, a, b)


sin2pi = trans(lambda a: np.sin(2 * np.pi * (a - np.rint(a))))
cos2pi = trans(lambda a: np.cos(2 * np.pi * (a - np.rint(a))))


def nmax(a, b):
    return np.maximum(a, b)


VALU = {
    "v_nop": None,
    "v_mov_b32": ("u", "u", A),
    "v_mov_b64": ("U", "U", A),
    "v_not_b32": ("u", "u", np.bitwise_not),
    "v_bfrev_b32": ("u", "u", brev32),
    "v_accvgpr_read_b32": ("u", "u", A),
    "v_accvgpr_write_b32": ("u", "u", A),
    "v_accvgpr_mov_b32": ("u", "u", A),
    "v_accvgpr_read": ("u", "u", A),
    "v_accvgpr_write": ("u", "u", A),
    # f32
    "v_add_f32": ("f", "ff", np.add),
    "v_sub_f32": ("f", "ff", np.subtract),
    "v_subrev_f32": ("f", "ff", lambda a, b: b - a),
    "v_mul_f32": ("f", "ff", np.multiply),
    "v_mul_legacy_f32": ("f", "ff", lambda a, b: np.where((a == 0) | (b == 0), f32(0), a * b)),
    "v_max_f32": ("f", "ff", np.fmax),
    "v_min_f32": ("f", "ff", np.fmin),
    "v_max3_f32": ("f", "fff", fmax3),
    "v_min3_f32": ("f", "fff", fmin3),
    "v_med3_f32": ("f", "fff", med3f),
    "v_maximum3_f32": ("f", "fff", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_minimum3_f32": ("f", "fff", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    "v_fma_f32": ("f", "fff", fma32),
    "v_fmac_f32": ("f", "ffD", fma32),
    "v_fmaak_f32": ("f", "fff", fma32),
    "v_fmamk_f32": ("f", "fff", fma32),
    "v_mad_f32": ("f", "fff", lambda a, b, c: a * b + c),
    "v_mac_f32": ("f", "ffD", lambda a, b, c: a * b + c),
    "v_madak_f32": ("f", "fff", lambda a, b, c: a * b + c),
    "v_madmk_f32": ("f", "fff", lambda a, b, c: a * b + c),
    "v_exp_f32": ("f", "f", trans(np.exp2)),
    "v_log_f32": ("f", "f", trans(np.log2)),
    "v_rcp_f32": ("f", "f", trans(lambda a: 1.0 / a)),
    "v_rcp_iflag_f32": ("f", "f", trans(lambda a: 1.0 / a)),
    "v_rsq_f32": ("f", "f", trans(lambda a: 1.0 / np.sqrt(a))),
    "v_sqrt_f32": ("f", "f", trans(np.sqrt)),
    "v_sin_f32": ("f", "f", sin2pi),
    "v_cos_f32": ("f", "f", cos2pi),
    "v_exp_legacy_f32": ("f", "f", trans(np.exp2)),
    "v_log_legacy_f32": ("f", "f", trans(np.log2)),
    "v_floor_f32": ("f", "f", np.floor),
    "v_ceil_f32": ("f", "f", np.ceil),
    "v_trunc_f32": ("f", "f", np.trunc),
    "v_rndne_f32": ("f", "f", np.rint),
    "v_fract_f32": ("f", "f", fract(f32)),
    "v_frexp_mant_f32": ("f", "f", frexp_m),
    "v_frexp_exp_i32_f32": ("i", "f", frexp_e),
    "v_ldexp_f32": ("f", "fi", ldexp_(f32)),
    "v_div_scale_f32": ("fm", "fff", _div_scale(f32)),
    "v_div_fmas_f32": ("f", "fffm", _div_fmas(f32)),
    "v_div_fixup_f32": ("f", "fff", _div_fixup(f32)),
    # f64
    "v_add_f64": ("F", "FF", np.add),
    "v_mul_f64": ("F", "FF", np.multiply),
    "v_max_f64": ("F", "FF", np.fmax),
    "v_min_f64": ("F", "FF", np.fmin),
    "v_fma_f64": ("F", "FFF", fma64),
    "v_fmac_f64": ("F", "FFD", fma64),
    "v_rcp_f64": ("F", "F", lambda a: 1.0 / a),
    "v_rsq_f64": ("F", "F", lambda a: 1.0 / np.sqrt(a)),
    "v_sqrt_f64": ("F", "F", np.sqrt),
    "v_floor_f64": ("F", "F", np.floor),
    "v_ceil_f64": ("F", "F", np.ceil),
    "v_trunc_f64": ("F", "F", np.trunc),
    "v_rndne_f64": ("F", "F", np.rint),
    "v_fract_f64": ("F", "F", fract(f64)),
    "v_frexp_mant_f64": ("F", "F", frexp_m),
    "v_frexp_exp_i32_f64": ("i", "F", frexp_e),
    "v_ldexp_f64": ("F", "Fi", ldexp_(f64)),
    "v_div_scale_f64": ("Fm", "FFF", _div_scale(f64)),
    "v_div_fmas_f64": ("F", "FFFm", _div_fmas(f64)),
    "v_div_fixup_f64": ("F", "FFF", _div_fixup(f64)),
    "v_trig_preop_f64": None,
    # f16
    "v_add_f16": ("h", "hh", np.add),
    "v_sub_f16": ("h", "hh", np.subtract),
    "v_subrev_f16": ("h", "hh", lambda a, b: b - a),
    "v_mul_f16": ("h", "hh", np.multiply),
    "v_max_f16": ("h", "hh", np.fmax),
    "v_min_f16": ("h", "hh", np.fmin),
    "v_fma_f16": ("p", "hhh", fma16),
    "v_mad_f16": ("p", "hhh", fma16),
    "v_mac_f16": ("h", "hhD", fma16),
    "v_fmac_f16": ("h", "hhD", fma16),
    "v_fma_legacy_f16": ("h", "hhh", fma16),
    "v_mad_legacy_f16": ("h", "hhh", fma16),
    "v_madak_f16": ("h", "hhh", fma16),
    "v_madmk_f16": ("h", "hhh", fma16),
    "v_max3_f16": ("p", "hhh", fmax3),
    "v_min3_f16": ("p", "hhh", fmin3),
    "v_med3_f16": ("p", "hhh", med3f),
    "v_div_fixup_f16": ("p", "hhh", _div_fixup(f16)),
    "v_exp_f16": ("h", "h", trans16(np.exp2)),
    "v_log_f16": ("h", "h", trans16(np.log2)),
    "v_rcp_f16": ("h", "h", trans16(lambda a: 1.0 / a)),
    "v_rsq_f16": ("h", "h", trans16(lambda a: 1.0 / np.sqrt(a))),
    "v_sqrt_f16": ("h", "h", trans16(np.sqrt)),
    "v_sin_f16": ("h", "h", trans16(lambda a: np.sin(2 * np.pi * a))),
    "v_cos_f16": ("h", "h", trans16(lambda a: np.cos(2 * np.pi * a))),
    "v_floor_f16": ("h", "h", np.floor),
    "v_ceil_f16": ("h", "h", np.ceil),
    "v_trunc_f16": ("h", "h", np.trunc),
    "v_rndne_f16": ("h", "h", np.rint),
    "v_fract_f16": ("h", "h", fract(f16)),
    "v_frexp_mant_f16": ("h", "h", frexp_m),
    "v_frexp_exp_i16_f16": ("s", "h", lambda a: frexp_e(a).astype(i16)),
    "v_ldexp_f16": ("h", "hs", ldexp_(f16)),
    "v_pack_b32_f16": ("u", "hh", pk16),
    # conversions
    "v_cvt_f32_i32": ("f", "i", lambda a: A(a).astype(f32)),
    "v_cvt_f32_u32": ("f", "u", lambda a: A(a).astype(f32)),
    "v_cvt_i32_f32": ("i", "f", cvt_int(i32)),
    "v_cvt_u32_f32": ("u", "f", cvt_int(u32)),
    "v_cvt_rpi_i32_f32": ("i", "f", lambda a: cvt_int(i32)(np.floor(a + f32(0.5)))),
    "v_cvt_flr_i32_f32": ("i", "f", lambda a: cvt_int(i32)(np.floor(a))),
    "v_cvt_f16_f32": ("h", "f", lambda a: A(a).astype(f16)),
    "v_cvt_f32_f16": ("f", "h", lambda a: A(a).astype(f32)),
    "v_cvt_f64_f32": ("F", "f", lambda a: A(a).astype(f64)),
    "v_cvt_f32_f64": ("f", "F", lambda a: A(a).astype(f32)),
    "v_cvt_f64_i32": ("F", "i", lambda a: A(a).astype(f64)),
    "v_cvt_f64_u32": ("F", "u", lambda a: A(a).astype(f64)),
    "v_cvt_i32_f64": ("i", "F", cvt_int(i32)),
    "v_cvt_u32_f64": ("u", "F", cvt_int(u32)),
    "v_cvt_f16_u16": ("h", "w", lambda a: A(a).astype(f16)),
    "v_cvt_f16_i16": ("h", "s", lambda a: A(a).astype(f16)),
    "v_cvt_u16_f16": ("w", "h", cvt_int(u16)),
    "v_cvt_i16_f16": ("s", "h", cvt_int(i16)),
    **{
        f"v_cvt_f32_ubyte{i}": (
            "f",
            "u",
            lambda a, i=i: ((A(a) >> u32(8 * i)) & u32(255)).astype(f32),
        )
        for i in range(4)
    },
    "v_cvt_pkrtz_f16_f32": ("u", "ff", lambda a, b: pk16(rtz16(a), rtz16(b))),
    "v_cvt_pk_f16_f32": ("u", "ff", lambda a, b: pk16(A(a).astype(f16), A(b).astype(f16))),
    "v_cvt_pk_bf16_f32": (
        "u",
        "ff",
        lambda a, b: f2bf(a).astype(u32) | (f2bf(b).astype(u32) << u32(16)),
    ),
    "v_cvt_f32_bf16": ("f", "b", A),
    "v_cvt_pk_i16_i32": (
        "u",
        "ii",
        lambda a, b: pk16(sat(-32768, 32767, i16)(a), sat(-32768, 32767, i16)(b)),
    ),
    "v_cvt_pk_u16_u32": (
        "u",
        "uu",
        lambda a, b: pk16(sat(0, 65535, u16)(a), sat(0, 65535, u16)(b)),
    ),
    "v_cvt_pknorm_i16_f32": (
        "u",
        "ff",
        lambda a, b: pk16(
            *(np.rint(np.clip(np.nan_to_num(A(x)), -1, 1) * 32767).astype(i16) for x in (a, b))
        ),
    ),
    "v_cvt_pknorm_u16_f32": (
        "u",
        "ff",
        lambda a, b: pk16(
            *(np.rint(np.clip(np.nan_to_num(A(x)), 0, 1) * 65535).astype(u16) for x in (a, b))
        ),
    ),
    "v_cvt_pk_u8_f32": (
        "u",
        "fuu",
        lambda a, s, c: (
            (A(c) & ~(u32(255) << (u32(8) * (A(s) & u32(3)))))
            | (
                np.clip(np.nan_to_num(np.rint(A(a))), 0, 255).astype(u32)
                << (u32(8) * (A(s) & u32(3)))
            )
        ),
    ),
    "v_cvt_off_f32_i4": (
        "f",
        "u",
        lambda a: ((((A(a) & u32(15)).astype(i32) ^ 8) - 8) / 16).astype(f32),
    ),
    **{
        f"v_ashr_pk_{t}8_i32": (
            "w",
            "iiu",
            lambda a, b, c, lo=lo, hi=hi: (
                (np.clip(A(a) >> (A(c) & u32(31)).astype(i32), lo, hi).astype(u16) & u16(255))
                | (
                    (np.clip(A(b) >> (A(c) & u32(31)).astype(i32), lo, hi).astype(u16) & u16(255))
                    << u16(8)
                )
            ),
        )
        for t, lo, hi in (("i", -128, 127), ("u", 0, 255))
    },
    "v_sat_pk_u8_i16": (
        "u",
        "u",
        lambda a: (
            np.clip(A(a).astype(u16).view(i16), 0, 255).astype(u32)
            | (np.clip((A(a) >> u32(16)).astype(u16).view(i16), 0, 255).astype(u32) << u32(8))
        ),
    ),
    # 32-bit integer
    "v_add_u32": ("u", "uu", np.add),
    "v_sub_u32": ("u", "uu", np.subtract),
    "v_subrev_u32": ("u", "uu", lambda a, b: b - a),
    "v_add_i32": ("u", "uu", np.add),
    "v_sub_i32": ("u", "uu", np.subtract),
    "v_mul_lo_u32": ("u", "uu", np.multiply),
    "v_mul_lo_i32": ("u", "uu", np.multiply),
    "v_mul_hi_u32": ("u", "uu", mulhi_u),
    "v_mul_hi_i32": ("i", "ii", mulhi_i),
    "v_mul_u32_u24": ("u", "uu", lambda a, b: u24(a) * u24(b)),
    "v_mul_i32_i24": ("i", "ii", lambda a, b: s24(a) * s24(b)),
    "v_mad_u32_u24": ("u", "uuu", lambda a, b, c: u24(a) * u24(b) + c),
    "v_mad_i32_i24": ("i", "iii", lambda a, b, c: s24(a) * s24(b) + c),
    "v_mul_hi_u32_u24": ("u", "uu", lambda a, b: mulhi_u(u24(a), u24(b))),
    "v_mul_hi_i32_i24": ("i", "ii", lambda a, b: mulhi_i(s24(a), s24(b))),
    "v_and_b32": ("u", "uu", np.bitwise_and),
    "v_or_b32": ("u", "uu", np.bitwise_or),
    "v_xor_b32": ("u", "uu", np.bitwise_xor),
    "v_xnor_b32": ("u", "uu", lambda a, b: ~(a ^ b)),
    "v_lshlrev_b32": ("u", "uu", lambda a, b: b << (a & u32(31))),
    "v_lshrrev_b32": ("u", "uu", lambda a, b: b >> (a & u32(31))),
    "v_ashrrev_i32": ("i", "ui", lambda a, b: b >> (a & u32(31)).astype(i32)),
    "v_lshlrev_b64": ("U", "uU", lambda a, b: b << (A(a) & u32(63)).astype(u64)),
    "v_lshrrev_b64": ("U", "uU", lambda a, b: b >> (A(a) & u32(63)).astype(u64)),
    "v_ashrrev_i64": ("I", "uI", lambda a, b: b >> (A(a) & u32(63)).astype(i64)),
    "v_lshl_add_u64": ("U", "UuU", lambda a, b, c: (a << (A(b) & u32(7)).astype(u64)) + c),
    "v_max_u32": ("u", "uu", np.maximum),
    "v_min_u32": ("u", "uu", np.minimum),
    "v_max_i32": ("i", "ii", np.maximum),
    "v_min_i32": ("i", "ii", np.minimum),
    "v_max3_u32": ("u", "uuu", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_min3_u32": ("u", "uuu", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    "v_med3_u32": ("u", "uuu", med3),
    "v_max3_i32": ("i", "iii", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_min3_i32": ("i", "iii", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    "v_med3_i32": ("i", "iii", med3),
    "v_add3_u32": ("u", "uuu", lambda a, b, c: a + b + c),
    "v_lshl_add_u32": ("u", "uuu", lambda a, b, c: (a << (b & u32(31))) + c),
    "v_add_lshl_u32": ("u", "uuu", lambda a, b, c: (a + b) << (c & u32(31))),
    "v_lshl_or_b32": ("u", "uuu", lambda a, b, c: (a << (b & u32(31))) | c),
    "v_and_or_b32": ("u", "uuu", lambda a, b, c: (a & b) | c),
    "v_or3_b32": ("u", "uuu", lambda a, b, c: a | b | c),
    "v_xad_u32": ("u", "uuu", lambda a, b, c: (a ^ b) + c),
    "v_xor3_b32": ("u", "uuu", lambda a, b, c: a ^ b ^ c),
    "v_bfe_u32": ("u", "uuu", bfe_u),
    "v_bfe_i32": ("i", "uuu", bfe_i),
    "v_bfi_b32": ("u", "uuu", lambda a, b, c: (a & b) | (~A(a) & c)),
    "v_bfm_b32": (
        "u",
        "uu",
        lambda a, b: ((u32(1) << (A(a) & u32(31))) - u32(1)) << (A(b) & u32(31)),
    ),
    "v_alignbit_b32": ("u", "uuu", alignbit),
    "v_alignbyte_b32": ("u", "uuu", alignbyte),
    "v_perm_b32": ("u", "uuu", perm),
    "v_bcnt_u32_b32": ("u", "uu", bcnt),
    "v_ffbh_u32": ("i", "u", lambda a: clz(a, 32)),
    "v_ffbl_b32": ("i", "u", lambda a: ctz(a, 32)),
    "v_ffbh_i32": ("i", "i", lambda a: clsx(a, 32)),
    "v_add_co_u32": ("um", "uu", lambda a, b: addc(a, b, u32(0))),
    "v_sub_co_u32": ("um", "uu", lambda a, b: subb(a, b, i64(0))),
    "v_subrev_co_u32": ("um", "uu", lambda a, b: subb(b, a, i64(0))),
    "v_addc_co_u32": ("um", "uum", addc),
    "v_subb_co_u32": ("um", "uum", subb),
    "v_subbrev_co_u32": ("um", "uum", lambda a, b, c: subb(b, a, c)),
    "v_mad_u64_u32": ("Um", "uuU", mad64),
    "v_mad_i64_i32": ("Um", "iiU", mad64i),
    "v_sad_u32": ("u", "uuu", lambda a, b, c: np.where(a > b, a - b, b - a) + c),
    "v_sad_u8": ("u", "uuu", gray_sad),
    "v_cndmask_b32": ("u", "uum", lambda a, b, m: np.where(m, b, a)),
    # 16-bit integer
    "v_add_u16": ("w", "ww", np.add),
    "v_sub_u16": ("w", "ww", np.subtract),
    "v_subrev_u16": ("w", "ww", lambda a, b: b - a),
    "v_mul_lo_u16": ("w", "ww", np.multiply),
    "v_add_i16": ("s", "ss", np.add),
    "v_sub_i16": ("s", "ss", np.subtract),
    "v_max_u16": ("w", "ww", np.maximum),
    "v_min_u16": ("w", "ww", np.minimum),
    "v_max_i16": ("s", "ss", np.maximum),
    "v_min_i16": ("s", "ss", np.minimum),
    "v_lshlrev_b16": ("w", "ww", lambda a, b: b << (a & u16(15))),
    "v_lshrrev_b16": ("w", "ww", lambda a, b: b >> (a & u16(15))),
    "v_ashrrev_i16": ("s", "ws", lambda a, b: b >> (a & u16(15)).astype(i16)),
    "v_mad_u16": ("q", "www", lambda a, b, c: a * b + c),
    "v_mad_i16": ("q", "sss", lambda a, b, c: a * b + c),
    "v_mad_legacy_u16": ("w", "www", lambda a, b, c: a * b + c),
    "v_mad_legacy_i16": ("s", "sss", lambda a, b, c: a * b + c),
    "v_mad_u32_u16": ("u", "wwu", lambda a, b, c: A(a).astype(u32) * A(b).astype(u32) + c),
    "v_mad_i32_i16": ("i", "ssi", lambda a, b, c: A(a).astype(i32) * A(b).astype(i32) + c),
    "v_max3_u16": ("q", "www", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_min3_u16": ("q", "www", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    "v_max3_i16": ("q", "sss", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_min3_i16": ("q", "sss", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    "v_med3_i16": ("q", "sss", med3),
    "v_med3_u16": ("q", "www", med3),
}
CMPS = {
    "lt": np.less,
    "eq": np.equal,
    "le": np.less_equal,
    "gt": np.greater,
    "lg": lambda a, b: (a < b) | (a > b),
    "ne": np.not_equal,
    "ge": np.greater_equal,
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "u": lambda a, b: np.isnan(a) | np.isnan(b),
    "nge": lambda a, b: ~(a >= b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
    "ngt": lambda a, b: ~(a > b),
    "nle": lambda a, b: ~(a <= b),
    "neq": np.not_equal,
    "nlt": lambda a, b: ~(a < b),
    "f": lambda a, b: np.zeros(np.broadcast(a, b).shape, bool),
    "t": lambda a, b: np.ones(np.broadcast(a, b).shape, bool),
    "tru": lambda a, b: np.ones(np.broadcast(a, b).shape, bool),
}
for _t, _c in (
    ("f32", "f"),
    ("f64", "F"),
    ("f16", "h"),
    ("i32", "i"),
    ("u32", "u"),
    ("i64", "I"),
    ("u64", "U"),
    ("i16", "s"),
    ("u16", "w"),
):
    for _n, _f in CMPS.items():
        VALU[f"v_cmp_{_n}_{_t}"] = ("m", _c * 2, _f)
        VALU[f"v_cmpx_{_n}_{_t}"] = ("x", _c * 2, _f)
for _t, _c, _d in (("f32", "f", f32), ("f64", "F", f64), ("f16", "h", f16)):
    for _x in ("", "x"):
        VALU[f"v_cmp{_x}_class_{_t}"] = ("x" if _x else "m", _c + "u", cmp_class(_d))
