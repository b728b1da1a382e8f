"""Vector integer instructions: every combination of awkward values, against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulator.machine_code import combinations, execute, lanes_of, mask_of, per_lane
from vllm_amdopt.emulator.definitions import Unsupported

WORDS = np.array(
    [
        *(0, 1, 5, 31, 33, 255, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFF, 0x800000, 0xFFFFFF),
        *(0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678, 0xDEADBEEF),
    ],
    np.uint64,
)
THIRD = np.array([0, 1, 7, 18, 0x80000000, 0xFFFFFFFF, 0xCAFE1234], np.uint64)
LONG = np.array(
    [0, 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 0x0123456789ABCDEF], np.uint64
)
ONES = (1 << 32) - 1


def signed(value: int, bits: int = 32) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def clip(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def median(*values: int) -> int:
    return sorted(values)[1]


def permute(a: int, b: int, selector: int) -> int:
    both, result = a << 32 | b, 0
    for i in range(4):
        code = selector >> 8 * i & 255
        if code <= 7:
            byte = both >> 8 * code & 255
        elif code <= 11:
            byte = 255 * (both >> (16 * (code - 8) + 15) & 1)
        else:
            byte = 0 if code == 12 else 255
        result |= byte << 8 * i
    return result


def field(value: int, offset: int, width: int, is_signed: bool) -> int:
    offset, width = offset & 31, width & 31
    source = signed(value) if is_signed else value
    part = source >> offset & ((1 << width) - 1)
    return signed(part, width) if is_signed and width else part


def absolute_differences(a: int, b: int) -> int:
    return sum(abs((a >> s & 255) - (b >> s & 255)) for s in (0, 8, 16, 24))


TWO = {
    "v_add_u32": lambda a, b: a + b,
    "v_sub_u32": lambda a, b: a - b,
    "v_subrev_u32": lambda a, b: b - a,
    "v_add_i32": lambda a, b: a + b,
    "v_sub_i32": lambda a, b: a - b,
    "v_mul_lo_u32": lambda a, b: a * b,
    "v_mul_hi_u32": lambda a, b: a * b >> 32,
    "v_mul_hi_i32": lambda a, b: signed(a) * signed(b) >> 32,
    "v_mul_u32_u24": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF),
    "v_mul_i32_i24": lambda a, b: signed(a, 24) * signed(b, 24),
    "v_mul_hi_u32_u24": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF) >> 32,
    "v_mul_hi_i32_i24": lambda a, b: signed(a, 24) * signed(b, 24) >> 32,
    "v_and_b32": lambda a, b: a & b,
    "v_or_b32": lambda a, b: a | b,
    "v_xor_b32": lambda a, b: a ^ b,
    "v_xnor_b32": lambda a, b: ~(a ^ b),
    "v_lshlrev_b32": lambda a, b: b << (a & 31),
    "v_lshrrev_b32": lambda a, b: b >> (a & 31),
    "v_ashrrev_i32": lambda a, b: signed(b) >> (a & 31),
    "v_max_u32": max,
    "v_min_u32": min,
    "v_max_i32": lambda a, b: max(signed(a), signed(b)),
    "v_min_i32": lambda a, b: min(signed(a), signed(b)),
    "v_bfm_b32": lambda a, b: ((1 << (a & 31)) - 1) << (b & 31),
    "v_bcnt_u32_b32": lambda a, b: a.bit_count() + b,
    "v_cvt_pk_i16_i32": lambda a, b: (
        clip(signed(a), -0x8000, 0x7FFF) & 0xFFFF | clip(signed(b), -0x8000, 0x7FFF) << 16
    ),
    "v_cvt_pk_u16_u32": lambda a, b: min(a, 0xFFFF) | min(b, 0xFFFF) << 16,
    # 16-bit results, the high half becomes zero
    "v_add_u16": lambda a, b: a + b & 0xFFFF,
    "v_sub_u16": lambda a, b: a - b & 0xFFFF,
    "v_subrev_u16": lambda a, b: b - a & 0xFFFF,
    "v_mul_lo_u16": lambda a, b: a * b & 0xFFFF,
    "v_lshlrev_b16": lambda a, b: b << (a & 15) & 0xFFFF,
    "v_lshrrev_b16": lambda a, b: (b & 0xFFFF) >> (a & 15),
    "v_ashrrev_i16": lambda a, b: signed(b, 16) >> (a & 15) & 0xFFFF,
    "v_max_u16": lambda a, b: max(a & 0xFFFF, b & 0xFFFF),
    "v_min_u16": lambda a, b: min(a & 0xFFFF, b & 0xFFFF),
    "v_max_i16": lambda a, b: max(signed(a, 16), signed(b, 16)) & 0xFFFF,
    "v_min_i16": lambda a, b: min(signed(a, 16), signed(b, 16)) & 0xFFFF,
}
THREE = {
    "v_add3_u32": lambda a, b, c: a + b + c,
    "v_lshl_add_u32": lambda a, b, c: (a << (b & 31)) + c,
    "v_add_lshl_u32": lambda a, b, c: (a + b & ONES) << (c & 31),
    "v_lshl_or_b32": lambda a, b, c: a << (b & 31) | c,
    "v_and_or_b32": lambda a, b, c: a & b | c,
    "v_or3_b32": lambda a, b, c: a | b | c,
    "v_xad_u32": lambda a, b, c: (a ^ b) + c,
    "v_bfe_u32": lambda a, b, c: field(a, b, c, False),
    "v_bfe_i32": lambda a, b, c: field(a, b, c, True),
    "v_bfi_b32": lambda a, b, c: a & b | ~a & c,
    "v_alignbit_b32": lambda a, b, c: (a << 32 | b) >> (c & 31),
    "v_alignbyte_b32": lambda a, b, c: (a << 32 | b) >> 8 * (c & 3),
    "v_perm_b32": permute,
    "v_mad_u32_u24": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c,
    "v_mad_i32_i24": lambda a, b, c: signed(a, 24) * signed(b, 24) + c,
    "v_mad_u32_u16": lambda a, b, c: (a & 0xFFFF) * (b & 0xFFFF) + c,
    "v_mad_i32_i16": lambda a, b, c: signed(a, 16) * signed(b, 16) + c,
    "v_max3_u32": max,
    "v_min3_u32": min,
    "v_med3_u32": median,
    "v_max3_i32": lambda a, b, c: max(signed(a), signed(b), signed(c)),
    "v_min3_i32": lambda a, b, c: min(signed(a), signed(b), signed(c)),
    "v_med3_i32": lambda a, b, c: median(signed(a), signed(b), signed(c)),
    "v_sad_u8": lambda a, b, c: absolute_differences(a, b) + c,
    "v_sad_u32": lambda a, b, c: abs(a - b) + c,
}
ONE = {
    "v_mov_b32": lambda a: a,
    "v_not_b32": lambda a: ~a,
    "v_bfrev_b32": lambda a: int(f"{a:032b}"[::-1], 2),
    "v_ffbh_u32": lambda a: 32 - a.bit_length() if a else -1,
    "v_ffbl_b32": lambda a: (a & -a).bit_length() - 1 if a else -1,
    "v_ffbh_i32": lambda a: next((i for i in range(32) if a >> 31 - i & 1 != a >> 31), -1),
    "v_sat_pk_u8_i16": lambda a: (
        clip(signed(a, 16), 0, 255) | clip(signed(a >> 16, 16), 0, 255) << 8
    ),
    "v_prng_b32": lambda a: a << 1 ^ (197 if a >> 31 else 0),
}
TABLE = {1: ONE, 2: TWO, 3: THREE}
NAMES = [pytest.param(count, name, id=name) for count in TABLE for name in TABLE[count]]


@pytest.mark.parametrize(("count", "name"), NAMES)
def test_vector_instruction(count, name):
    columns = combinations(*[WORDS, WORDS, THIRD][:count])
    registers, waves = {}, 1
    for register, column in zip((1, 2, 3), columns, strict=False):
        registers[f"v{register}"], waves = per_lane(column)
    operands = ", ".join(f"v{n}" for n in range(count + 1))
    outcome = execute("gfx950", f"{name} {operands}", registers=registers, waves=waves)
    got = outcome.v(0).reshape(-1)[: len(columns[0])].tolist()
    expected = [TABLE[count][name](*map(int, row)) & ONES for row in zip(*columns, strict=True)]
    assert got == expected


SELECTORS = [0x07060504, 0x03020100, 0x00010203, 0x0C0C0400, 0x0D0C0B0A, 0x09080706, 0x0C0C0C0C]
SELECTORS += [0x05040100, 0x07060302, 0x0CFF0C01, 0x02050607]


@pytest.mark.parametrize("where", ["constant", "scalar", "vector"])
@pytest.mark.parametrize("selector", SELECTORS, ids=hex)
def test_byte_permutation(selector, where):
    a, b = combinations(WORDS, WORDS)
    (first, waves), (second, _) = per_lane(a), per_lane(b)
    operand = {"constant": hex(selector), "scalar": "s4", "vector": "v4"}[where]
    registers = {"v1": first, "v2": second, "v4": selector, "s4": selector}
    outcome = execute(
        "gfx942", f"v_perm_b32 v0, v1, v2, {operand}", registers=registers, waves=waves
    )
    expected = [permute(int(x), int(y), selector) for x, y in zip(a, b, strict=True)]
    assert outcome.v(0).reshape(-1)[: len(a)].tolist() == expected


def test_byte_permutation_with_scalars_that_differ_by_wave():
    a, b = 0x11223344, 0xAABBCCDD
    registers = {"v1": a, "v2": b, "s4": np.array(SELECTORS)}
    outcome = execute(
        "gfx942", "v_perm_b32 v0, v1, v2, s4", registers=registers, waves=len(SELECTORS)
    )
    assert outcome.v(0)[:, 5].tolist() == [permute(a, b, s) for s in SELECTORS]


def test_64_bit_shifts_and_additions():
    value, shift = combinations(LONG, WORDS)
    (pairs, waves), (counts, _) = per_lane(value), per_lane(shift)
    body = (
        "v_lshlrev_b64 v[4:5], v2, v[0:1]\nv_lshrrev_b64 v[6:7], v2, v[0:1]\n"
        "v_ashrrev_i64 v[8:9], v2, v[0:1]\nv_lshl_add_u64 v[10:11], v[0:1], v2, v[0:1]\n"
        "v_mov_b64 v[12:13], v[0:1]"
    )
    outcome = execute("gfx942", body, registers={"v[0:1]": pairs, "v2": counts}, waves=waves)
    ones = (1 << 64) - 1
    expected = {
        4: lambda a, n: a << (n & 63),
        6: lambda a, n: a >> (n & 63),
        8: lambda a, n: signed(a, 64) >> (n & 63),
        10: lambda a, n: (a << (n & 7)) + a,
        12: lambda a, n: a,
    }
    for register, function in expected.items():
        got = outcome.v64(register).reshape(-1)[: len(value)].tolist()
        assert got == [function(int(a), int(n)) & ones for a, n in zip(value, shift, strict=True)]


CARRY = {
    "v_add_co_u32": lambda a, b, c: a + b,
    "v_sub_co_u32": lambda a, b, c: a - b,
    "v_subrev_co_u32": lambda a, b, c: b - a,
    "v_addc_co_u32": lambda a, b, c: a + b + c,
    "v_subb_co_u32": lambda a, b, c: a - b - c,
    "v_subbrev_co_u32": lambda a, b, c: b - a - c,
}


@pytest.mark.parametrize("name", CARRY)
def test_carries_go_through_lane_masks(name):
    a, b, carry = combinations(WORDS, WORDS, [0, 1])
    (first, waves), (second, _), (ins, _) = (per_lane(x) for x in (a, b, carry))
    mask = np.array([mask_of(np.flatnonzero(row)) for row in ins], np.uint64)
    takes_carry = name in ("v_addc_co_u32", "v_subb_co_u32", "v_subbrev_co_u32")
    tail = ", s[4:5]" if takes_carry else ""
    body = f"{name} v0, s[6:7], v1, v2{tail}\n{name}_e32 v3, vcc, v1, v2{', vcc' if tail else ''}"
    registers = {"v1": first, "v2": second, "s[4:5]": mask, "vcc": mask}
    outcome = execute("gfx942", body, registers=registers, waves=waves)
    exact = [CARRY[name](int(x), int(y), int(c)) for x, y, c in zip(a, b, carry, strict=True)]
    for register, masks in ((0, outcome.s64(6)), (3, outcome.vcc)):
        assert outcome.v(register).reshape(-1)[: len(a)].tolist() == [x & ONES for x in exact]
        out = lanes_of(masks).reshape(-1)[: len(a)].tolist()
        assert out == [not 0 <= x <= ONES for x in exact]


def test_multiply_add_64():
    a, b, c = combinations(WORDS, WORDS, LONG)
    (first, waves), (second, _), (third, _) = (per_lane(x) for x in (a, b, c))
    body = (
        "v_mad_u64_u32 v[6:7], s[4:5], v0, v1, v[2:3]\nv_mad_i64_i32 v[8:9], s[6:7], v0, v1, v[2:3]"
    )
    registers = {"v0": first, "v1": second, "v[2:3]": third}
    outcome = execute("gfx942", body, registers=registers, waves=waves)
    ones = (1 << 64) - 1
    rows = [tuple(map(int, row)) for row in zip(a, b, c, strict=True)]
    count = len(rows)
    exact = [x * y + z for x, y, z in rows]
    assert outcome.v64(6).reshape(-1)[:count].tolist() == [x & ones for x in exact]
    assert lanes_of(outcome.s64(4)).reshape(-1)[:count].tolist() == [x > ones for x in exact]
    exact = [signed(x) * signed(y) + signed(z, 64) for x, y, z in rows]
    assert outcome.v64(8).reshape(-1)[:count].tolist() == [x & ones for x in exact]


SATURATED = {
    "v_add_u32": lambda a, b: clip(a + b, 0, ONES),
    "v_sub_u32": lambda a, b: clip(a - b, 0, ONES),
    "v_subrev_u32": lambda a, b: clip(b - a, 0, ONES),
    "v_add_i32": lambda a, b: clip(signed(a) + signed(b), -(1 << 31), (1 << 31) - 1),
    "v_sub_i32": lambda a, b: clip(signed(a) - signed(b), -(1 << 31), (1 << 31) - 1),
    "v_add_u16": lambda a, b: clip((a & 0xFFFF) + (b & 0xFFFF), 0, 0xFFFF),
    "v_sub_u16": lambda a, b: clip((a & 0xFFFF) - (b & 0xFFFF), 0, 0xFFFF),
    "v_add_i16": lambda a, b: clip(signed(a, 16) + signed(b, 16), -0x8000, 0x7FFF) & 0xFFFF,
    "v_sub_i16": lambda a, b: clip(signed(a, 16) - signed(b, 16), -0x8000, 0x7FFF) & 0xFFFF,
}


@pytest.mark.parametrize("name", SATURATED)
def test_clamp_saturates_integers(name):
    a, b = combinations(WORDS, WORDS)
    (first, waves), (second, _) = per_lane(a), per_lane(b)
    outcome = execute(
        "gfx942", f"{name} v0, v1, v2 clamp", registers={"v1": first, "v2": second}, waves=waves
    )
    expected = [SATURATED[name](int(x), int(y)) & ONES for x, y in zip(a, b, strict=True)]
    assert outcome.v(0).reshape(-1)[: len(a)].tolist() == expected


COMPARE = {
    "f": lambda a, b: False,
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ne": lambda a, b: a != b,
    "ge": lambda a, b: a >= b,
    "t": lambda a, b: True,
}


@pytest.mark.parametrize("kind", ["i32", "u32", "i16", "u16", "i64", "u64"])
def test_comparison(kind):
    bits = int(kind[1:])
    values = LONG if bits == 64 else WORDS
    a, b = combinations(values, values)
    (first, waves), (second, _) = per_lane(a), per_lane(b)
    operands = "v[2:3], v[4:5]" if bits == 64 else "v2, v4"
    body = "\n".join(
        f"v_cmp_{name}_{kind} s[{20 + 2 * n}:{21 + 2 * n}], {operands}"
        for n, name in enumerate(COMPARE)
    )
    registers = {"v[2:3]": first, "v[4:5]": second}
    outcome = execute("gfx942", body, registers=registers, waves=waves)

    def read(value):
        return signed(int(value), bits) if kind[0] == "i" else int(value) & ((1 << bits) - 1)

    for n, name in enumerate(COMPARE):
        got = lanes_of(outcome.s64(20 + 2 * n)).reshape(-1)[: len(a)].tolist()
        assert got == [COMPARE[name](read(x), read(y)) for x, y in zip(a, b, strict=True)], name


def test_disabled_lanes_keep_their_registers_and_give_zero_bits():
    lanes = np.arange(64)
    enabled = mask_of(range(0, 64, 3))
    body = "v_add_u32 v0, v1, v1\nv_cmp_gt_u32 vcc, 64, v1\nv_cmpx_gt_u32 vcc, 32, v1"
    registers = {"v0": 7, "v1": lanes, "exec": enabled}
    outcome = execute("gfx942", body, registers=registers)
    on = lanes % 3 == 0
    assert outcome.v(0)[0].tolist() == np.where(on, 2 * lanes, 7).tolist()
    assert outcome.vcc[0] == outcome.exec_mask[0] == mask_of(lanes[on & (lanes < 32)])
    outcome = execute("gfx942", body.rsplit("\n", 1)[0], registers=registers)
    assert outcome.vcc[0] == enabled


def test_condition_chooses_and_negation_of_bits():
    lanes = np.arange(64)
    mask = mask_of(lanes[lanes % 5 < 2])
    body = "v_cndmask_b32 v0, v1, v2, s[4:5]\nv_cndmask_b32_e64 v3, |v1|, -v2, s[4:5]"
    registers = {"v1": lanes + 0x80000000, "v2": lanes, "s[4:5]": mask}
    outcome = execute("gfx942", body, registers=registers)
    chosen = lanes % 5 < 2
    assert outcome.v(0)[0].tolist() == np.where(chosen, lanes, lanes + 0x80000000).tolist()
    assert outcome.v(3)[0].tolist() == np.where(chosen, lanes + 0x80000000, lanes).tolist()


TRUTH_TABLES = [*range(0, 256, 17), 0x88, 0xC0, 0xFC, 0x3C, 0xFE, 0x80, 0x96, 0xEA, 0xEC]
TRUTH_TABLES += [0xC8, 0xCA, 0x6C, 0x78, 0x36, 0x34, 0xF6, 0xDE, 0x1E]


@pytest.mark.parametrize("width", [32, 16])
def test_any_function_of_three_bits(width):
    a, b, c = 0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA
    body = "\n".join(
        f"v_bitop3_b{width} v{4 + n}, v0, v1, v2 bitop3:{table:#x}"
        for n, table in enumerate(TRUTH_TABLES)
    )
    registers = {"v0": a, "v1": b, "v2": c} | {f"v{4 + n}": 0x5A5A5A5A for n in range(40)}
    outcome = execute("gfx950", body, registers=registers)
    for n, table in enumerate(TRUTH_TABLES):
        expected = sum(
            (table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1) << i
            for i in range(32)
        )
        if width == 16:
            expected = expected & 0xFFFF | 0x5A5A0000
        assert outcome.v(4 + n)[0, 0] == expected, hex(table)


def test_lanes_below_are_counted():
    mask = 0xF0F0_1234_8000_0001
    body = "v_mbcnt_lo_u32_b32 v0, s4, 5\nv_mbcnt_hi_u32_b32 v1, s5, v0"
    outcome = execute("gfx942", body, registers={"s[4:5]": mask})
    expected = [5 + (mask & ((1 << lane) - 1)).bit_count() for lane in range(64)]
    assert outcome.v(1)[0].tolist() == expected


SDWA = [
    ("and_b32", "v1", "v2", "dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_1 src1_sel:DWORD"),
    ("add_u32", "v1", "v2", "dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_1 src1_sel:BYTE_3"),
    ("add_u32", "sext(v1)", "v2", "dst_sel:DWORD src0_sel:BYTE_0 src1_sel:WORD_0"),
    ("or_b32", "v1", "v2", "dst_sel:BYTE_2 dst_unused:UNUSED_PRESERVE src0_sel:DWORD"),
    ("or_b32", "v1", "v2", "dst_sel:WORD_1 dst_unused:UNUSED_PAD src1_sel:DWORD"),
    ("or_b32", "v1", "v2", "dst_sel:BYTE_0 dst_unused:UNUSED_SEXT src0_sel:DWORD"),
    ("cndmask_b32", "v1", "v2, vcc", "dst_sel:DWORD src0_sel:DWORD src1_sel:WORD_1"),
]
SDWA_RESULTS = [
    lambda a, b, d: a >> 16 & b,
    lambda a, b, d: (a >> 8 & 255) + (b >> 24),
    lambda a, b, d: signed(a, 8) + (b & 0xFFFF),
    lambda a, b, d: d & 0xFF00FFFF | ((a | b) & 255) << 16,
    lambda a, b, d: ((a | b) & 0xFFFF) << 16,
    lambda a, b, d: signed(a | b, 8),
    lambda a, b, d: b >> 16,
]


@pytest.mark.parametrize("case", range(len(SDWA)))
def test_bytes_and_words_of_registers(case):
    name, source, second_source, selections = SDWA[case]
    function = SDWA_RESULTS[case]
    line = f"v_{name}_sdwa v0, {source}, {second_source} {selections}"
    a, b = combinations(WORDS, WORDS)
    (first, waves), (second, _) = per_lane(a), per_lane(b)
    registers = {"v0": 0xABCDEF98, "v1": first, "v2": second, "vcc": (1 << 64) - 1}
    outcome = execute("gfx942", line, registers=registers, waves=waves)
    expected = [function(int(x), int(y), 0xABCDEF98) & ONES for x, y in zip(a, b, strict=True)]
    assert outcome.v(0).reshape(-1)[: len(a)].tolist() == expected


def test_comparison_of_bytes_and_words():
    a, b = combinations(WORDS, WORDS)
    (first, waves), (second, _) = per_lane(a), per_lane(b)
    line = "v_cmp_gt_u32_sdwa s[2:3], v1, v2 src0_sel:WORD_1 src1_sel:BYTE_0"
    outcome = execute("gfx942", line, registers={"v1": first, "v2": second}, waves=waves)
    got = lanes_of(outcome.s64(2)).reshape(-1)[: len(a)].tolist()
    assert got == [int(x) >> 16 > int(y) & 255 for x, y in zip(a, b, strict=True)]


def test_op_sel_chooses_halves():
    body = (
        "v_mad_u16 v0, v1, v2, v3 op_sel:[1,0,1,0]\nv_mad_u16 v4, v1, v2, v3 op_sel:[0,1,0,1]\n"
        "v_mad_u32_u16 v5, v1, v2, v3 op_sel:[1,1,0,0]"
    )
    registers = {"v1": 0x00030005, "v2": 0x00070009, "v3": 0x000B000D}
    registers |= {"v0": 0x11112222, "v4": 0x33334444}
    outcome = execute("gfx942", body, registers=registers)
    assert outcome.v(0)[0, 0] == 0x11110000 | (3 * 9 + 11)
    assert outcome.v(4)[0, 0] == (5 * 7 + 13) << 16 | 0x4444
    assert outcome.v(5)[0, 0] == 3 * 7 + 0x000B000D


@pytest.mark.parametrize(
    "line",
    [
        "v_add_u32 v0, v1, v2 mul:2",
        "v_add_u32 v0, -v1, v2",
        "v_add_u32 v0, |v1|, v2",
        "v_add_u32 v0, v1, v2 op_sel:[1,0,0]",
        "v_mul_lo_u32 v0, v1, v2 clamp",
        "v_mad_u32_u16 v0, v1, v2, v3 op_sel:[0,0,1,0]",
        "v_add_u32 v0, v1, v2 row_shl:1",
        "v_bitop3_b32 v0, v1, v2, v3 bitop3:0x3 clamp",
        "v_bitop3_b32 v0, v1, v2, v3 bitop3:0x3 op_sel:[1,0,0,0]",
        "v_mbcnt_lo_u32_b32 v0, v1, v2 clamp",
        "v_add_u32_sdwa v0, v1, v2 dst_sel:WORD_5 src0_sel:DWORD",
        "v_add_u32_sdwa v0, v1, v2 src0_sel:BYTE_4",
        "v_cmp_gt_i32_dpp vcc, v1, v2 row_shl:1",
        "v_mov_b32 v0, v1, v2",
        "v_lerp_u8 v0, v1, v2, v3",
    ],
)
def test_what_is_not_honoured_is_refused(line):
    with pytest.raises(Unsupported):
        execute("gfx942", line)
