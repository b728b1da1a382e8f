"""Scalar ALU: every combination of awkward values, against Python's integers.

Each wave holds one combination, so an instruction runs once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.emulator.machine_code import combinations, execute
from vllm_amdopt.emulator.definitions import Unsupported

WORDS = np.array(
    [
        *(0, 1, 2, 5, 31, 32, 63, 64, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0xFFFFFF80),
        *(0x12345678, 0xDEADBEEF, 0x00040003, 0x00200000, 0x001F001F, 0x00400008),
    ],
    np.uint64,
)
LONG = np.array(
    [
        *(0, 1, 63, 64, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
        *(0x0123456789ABCDEF, 0xFEDCBA9876543210),
    ],
    np.uint64,
)
ONES32, ONES64 = (1 << 32) - 1, (1 << 64) - 1


def signed(value: int, bits: int = 32) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def fits(value: int) -> bool:
    return -(1 << 31) <= value < 1 << 31


def find_first(value: int, bits: int, wanted: int) -> int:
    return next((i for i in range(bits) if value >> i & 1 == wanted), -1)


def zeros_above(value: int, bits: int) -> int:
    return -1 if value == 0 else bits - value.bit_length()


def sign_run(value: int, bits: int) -> int:
    top = value >> (bits - 1)
    run = next((i for i in range(bits) if value >> (bits - 1 - i) & 1 != top), -1)
    return run


def extract(value: int, field: int, bits: int, is_signed: bool) -> int:
    """S_BFE: the field as far as it lies inside, and its sign"""
    offset, width = field & (bits - 1), field >> 16 & 0x7F
    width = min(width, bits - offset)
    part = value >> offset & ((1 << width) - 1)
    return signed(part, width) if is_signed and width else part


def whole_quads(value: int) -> int:
    return sum(15 << 4 * i for i in range(16) if value >> 4 * i & 15)


def replicate(value: int) -> int:
    return sum(3 << 2 * i for i in range(32) if value >> i & 1)


# (a, b, scc) -> (result, scc or None when it stays)
Reference = Callable[[int, int, int], tuple[int, int | None]]


def sets_scc(function: Callable[[int, int], int], bits: int = 32) -> Reference:
    def reference(a: int, b: int, scc: int) -> tuple[int, int]:
        result = function(a, b) & ((1 << bits) - 1)
        return result, int(result != 0)

    return reference


def keeps(function: Callable[[int, int], int]) -> Reference:
    return lambda a, b, scc: (function(a, b), None)


LOGIC = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "andn2": lambda a, b: a & ~b,
    "orn2": lambda a, b: a | ~b,
    "nand": lambda a, b: ~(a & b),
    "nor": lambda a, b: ~(a | b),
    "xnor": lambda a, b: ~(a ^ b),
}
TWO_WORDS: dict[str, Reference] = {
    "s_add_u32": lambda a, b, c: (a + b, int(a + b > ONES32)),
    "s_addc_u32": lambda a, b, c: (a + b + c, int(a + b + c > ONES32)),
    "s_sub_u32": lambda a, b, c: (a - b, int(b > a)),
    "s_subb_u32": lambda a, b, c: (a - b - c, int(b + c > a)),
    "s_add_i32": lambda a, b, c: (a + b, int(not fits(signed(a) + signed(b)))),
    "s_sub_i32": lambda a, b, c: (a - b, int(not fits(signed(a) - signed(b)))),
    "s_min_i32": lambda a, b, c: (min(signed(a), signed(b)), int(signed(a) < signed(b))),
    "s_max_i32": lambda a, b, c: (max(signed(a), signed(b)), int(signed(a) >= signed(b))),
    "s_min_u32": lambda a, b, c: (min(a, b), int(a < b)),
    "s_max_u32": lambda a, b, c: (max(a, b), int(a >= b)),
    "s_cselect_b32": lambda a, b, c: (a if c else b, None),
    "s_mul_i32": keeps(lambda a, b: a * b),
    "s_mul_hi_u32": keeps(lambda a, b: a * b >> 32),
    "s_mul_hi_i32": keeps(lambda a, b: signed(a) * signed(b) >> 32),
    "s_absdiff_i32": sets_scc(lambda a, b: abs(signed(signed(a) - signed(b)))),
    "s_lshl_b32": sets_scc(lambda a, b: a << (b & 31)),
    "s_lshr_b32": sets_scc(lambda a, b: a >> (b & 31)),
    "s_ashr_i32": sets_scc(lambda a, b: signed(a) >> (b & 31)),
    "s_bfm_b32": keeps(lambda a, b: ((1 << (a & 31)) - 1) << (b & 31)),
    "s_bfe_u32": sets_scc(lambda a, b: extract(a, b, 32, False)),
    "s_bfe_i32": sets_scc(lambda a, b: extract(a, b, 32, True)),
    "s_pack_ll_b32_b16": keeps(lambda a, b: a & 0xFFFF | (b & 0xFFFF) << 16),
    "s_pack_lh_b32_b16": keeps(lambda a, b: a & 0xFFFF | b & 0xFFFF0000),
    "s_pack_hh_b32_b16": keeps(lambda a, b: a >> 16 | b & 0xFFFF0000),
    **{
        f"s_lshl{n}_add_u32": lambda a, b, c, n=n: ((a << n) + b, int((a << n) + b > ONES32))
        for n in (1, 2, 3, 4)
    },
    **{f"s_{name}_b32": sets_scc(function) for name, function in LOGIC.items()},
}
TWO_PAIRS: dict[str, Reference] = {
    "s_cselect_b64": lambda a, b, c: (a if c else b, None),
    **{f"s_{name}_b64": sets_scc(function, 64) for name, function in LOGIC.items()},
}
PAIR_AND_WORD: dict[str, Reference] = {
    "s_lshl_b64": sets_scc(lambda a, b: a << (b & 63), 64),
    "s_lshr_b64": sets_scc(lambda a, b: a >> (b & 63), 64),
    "s_ashr_i64": sets_scc(lambda a, b: signed(a, 64) >> (b & 63), 64),
    "s_bfe_u64": sets_scc(lambda a, b: extract(a, b, 64, False), 64),
    "s_bfe_i64": sets_scc(lambda a, b: extract(a, b, 64, True), 64),
}
ONE_WORD: dict[str, Reference] = {
    "s_mov_b32": keeps(lambda a, _: a),
    "s_not_b32": sets_scc(lambda a, _: ~a),
    "s_brev_b32": keeps(lambda a, _: int(f"{a:032b}"[::-1], 2)),
    "s_bcnt0_i32_b32": sets_scc(lambda a, _: 32 - a.bit_count()),
    "s_bcnt1_i32_b32": sets_scc(lambda a, _: a.bit_count()),
    "s_ff0_i32_b32": keeps(lambda a, _: find_first(a, 32, 0)),
    "s_ff1_i32_b32": keeps(lambda a, _: find_first(a, 32, 1)),
    "s_flbit_i32_b32": keeps(lambda a, _: zeros_above(a, 32)),
    "s_flbit_i32": keeps(lambda a, _: sign_run(a, 32)),
    "s_sext_i32_i8": keeps(lambda a, _: signed(a, 8)),
    "s_sext_i32_i16": keeps(lambda a, _: signed(a, 16)),
    "s_abs_i32": sets_scc(lambda a, _: abs(signed(a))),
    "s_cmov_b32": lambda a, b, c: (a if c else b, None),  # b: the old value
    "s_bitset0_b32": keeps(lambda a, b: b & ~(1 << (a & 31))),
    "s_bitset1_b32": keeps(lambda a, b: b | 1 << (a & 31)),
}
ONE_PAIR: dict[str, Reference] = {
    "s_mov_b64": keeps(lambda a, _: a),
    "s_not_b64": sets_scc(lambda a, _: ~a, 64),
    "s_brev_b64": keeps(lambda a, _: int(f"{a:064b}"[::-1], 2)),
    "s_wqm_b64": sets_scc(lambda a, _: whole_quads(a), 64),
    "s_cmov_b64": lambda a, b, c: (a if c else b, None),
}
PAIR_TO_WORD: dict[str, Reference] = {
    "s_bcnt0_i32_b64": sets_scc(lambda a, _: 64 - a.bit_count()),
    "s_bcnt1_i32_b64": sets_scc(lambda a, _: a.bit_count()),
    "s_ff0_i32_b64": keeps(lambda a, _: find_first(a, 64, 0)),
    "s_ff1_i32_b64": keeps(lambda a, _: find_first(a, 64, 1)),
    "s_flbit_i32_b64": keeps(lambda a, _: zeros_above(a, 64)),
    "s_flbit_i32_i64": keeps(lambda a, _: sign_run(a, 64)),
}
WORD_TO_PAIR: dict[str, Reference] = {
    "s_bitreplicate_b64_b32": keeps(lambda a, _: replicate(a)),
    "s_bitset0_b64": keeps(lambda a, b: b & ~(1 << (a & 63))),
    "s_bitset1_b64": keeps(lambda a, b: b | 1 << (a & 63)),
}
# table, operands of the instruction, values of s[4:5] and s[6:7], bits of the result in s[2:3]
FORMS = [
    (TWO_WORDS, "s2, s4, s6", WORDS, WORDS, 32),
    (TWO_PAIRS, "s[2:3], s[4:5], s[6:7]", LONG, LONG, 64),
    (PAIR_AND_WORD, "s[2:3], s[4:5], s6", LONG, WORDS, 64),
    (ONE_WORD, "s2, s4", WORDS, WORDS, 32),
    (ONE_PAIR, "s[2:3], s[4:5]", LONG, LONG, 64),
    (PAIR_TO_WORD, "s2, s[4:5]", LONG, LONG[:1], 32),
    (WORD_TO_PAIR, "s[2:3], s4", WORDS, LONG, 64),
    (
        {"s_bfm_b64": keeps(lambda a, b: (1 << (a & 63)) - 1 << (b & 63))},
        "s[2:3], s4, s6",
        WORDS,
        WORDS,
        64,
    ),
]
CASES = [
    pytest.param(name, reference, operands, first, second, bits, id=name)
    for table, operands, first, second, bits in FORMS
    for name, reference in table.items()
]


@pytest.mark.parametrize(("name", "reference", "operands", "first", "second", "bits"), CASES)
def test_scalar_instruction(name, reference, operands, first, second, bits):
    a, b, scc = combinations(first, second, [0, 1])
    registers = {"s[4:5]": a, "s[6:7]": b, "s[2:3]": b}
    outcome = execute(
        "gfx942", f"{name} {operands}", registers=registers, scc=scc.astype(bool), waves=len(a)
    )
    result = outcome.s64(2) if bits == 64 else outcome.s(2)
    ones = (1 << bits) - 1
    for x, y, flag, got, got_scc in zip(
        *(array.tolist() for array in (a, b, scc, result, outcome.scc)), strict=True
    ):
        expected, expected_scc = reference(x, y, int(flag))
        assert got == expected & ones, (hex(x), hex(y), flag)
        assert got_scc == bool(flag if expected_scc is None else expected_scc), (hex(x), hex(y))


COMPARE = {
    "eq": lambda a, b: a == b,
    "lg": lambda a, b: a != b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
}


@pytest.mark.parametrize("kind", ["i32", "u32"])
@pytest.mark.parametrize("name", COMPARE)
def test_comparison(name, kind):
    a, b = combinations(WORDS, WORDS)
    read = signed if kind == "i32" else int
    outcome = execute(
        "gfx942", f"s_cmp_{name}_{kind} s4, s6", registers={"s4": a, "s6": b}, waves=len(a)
    )
    expected = [COMPARE[name](read(int(x)), read(int(y))) for x, y in zip(a, b, strict=True)]
    assert outcome.scc.tolist() == expected
    for text, value in (("0x8000", 0x8000), ("0x7", 7)):
        outcome = execute(
            "gfx942", f"s_cmpk_{name}_{kind} s4, {text}", registers={"s4": a}, waves=len(a)
        )
        value = signed(value, 16) if kind == "i32" else value
        assert outcome.scc.tolist() == [COMPARE[name](read(int(x)), value) for x in a]


def test_comparison_of_pairs_and_bits():
    a, b = combinations(LONG, LONG)
    for name in ("eq", "lg"):
        outcome = execute(
            "gfx942",
            f"s_cmp_{name}_u64 s[4:5], s[6:7]",
            registers={"s[4:5]": a, "s[6:7]": b},
            waves=len(a),
        )
        assert outcome.scc.tolist() == [COMPARE[name](x, y) for x, y in zip(a, b, strict=True)]
    a, b = combinations(LONG, WORDS)
    for bits, operand in ((32, "s4"), (64, "s[4:5]")):
        for wanted in (0, 1):
            outcome = execute(
                "gfx942",
                f"s_bitcmp{wanted}_b{bits} {operand}, s6",
                registers={"s[4:5]": a, "s6": b},
                waves=len(a),
            )
            expected = [
                int(x) >> (int(y) & (bits - 1)) & 1 == wanted for x, y in zip(a, b, strict=True)
            ]
            assert outcome.scc.tolist() == expected


@pytest.mark.parametrize(
    ("line", "before", "scc", "expected", "scc_after"),
    [
        ("s_movk_i32 s2, 0x8000", 5, 1, -0x8000, 1),
        ("s_cmovk_i32 s2, 0x7fff", 5, 1, 0x7FFF, 1),
        ("s_cmovk_i32 s2, 0x7fff", 5, 0, 5, 0),
        ("s_mulk_i32 s2, 0xffff", 5, 1, -5, 1),
        ("s_addk_i32 s2, 0xffff", 5, 1, 4, 0),
        ("s_addk_i32 s2, 1", 0x7FFFFFFF, 0, 0x80000000, 1),
    ],
)
def test_instruction_with_a_16_bit_constant(line, before, scc, expected, scc_after):
    outcome = execute("gfx942", line, registers={"s2": before}, scc=bool(scc))
    assert outcome.s(2)[0] == expected & ONES32
    assert outcome.scc[0] == scc_after


@pytest.mark.parametrize(
    ("text", "bits32", "bits64"),
    [
        ("-16", 0xFFFFFFF0, 0xFFFFFFFFFFFFFFF0),
        ("64", 64, 64),
        ("0xdeadbeef", 0xDEADBEEF, None),
        ("1.0", 0x3F800000, 0x3FF0000000000000),
        ("-4.0", 0xC0800000, 0xC010000000000000),
        ("0.15915494", 0x3E22F983, 0x3FC45F306DC9C882),
    ],
)
def test_constants(text, bits32, bits64):
    outcome = execute("gfx942", f"s_mov_b32 s2, {text}")
    assert outcome.s(2)[0] == bits32
    if bits64 is not None:
        assert execute("gfx942", f"s_mov_b64 s[2:3], {text}").s64(2)[0] == bits64


SAVE_EXEC = {
    **LOGIC,
    "andn1": lambda a, b: ~a & b,
    "orn1": lambda a, b: ~a | b,
}


@pytest.mark.parametrize("name", SAVE_EXEC)
def test_exec_is_saved_and_combined(name):
    a, before = combinations(LONG, LONG)
    outcome = execute(
        "gfx942",
        f"s_{name}_saveexec_b64 s[2:3], s[4:5]",
        registers={"s[4:5]": a, "exec": before},
        waves=len(a),
    )
    expected = [SAVE_EXEC[name](int(x), int(y)) & ONES64 for x, y in zip(a, before, strict=True)]
    assert outcome.s64(2).tolist() == before.tolist()
    assert outcome.exec_mask.tolist() == expected
    assert outcome.scc.tolist() == [value != 0 for value in expected]


@pytest.mark.parametrize(
    ("name", "function"),
    [("andn1", lambda a, b: ~a & b), ("andn2", lambda a, b: a & ~b)],
)
def test_exec_is_written_and_returned(name, function):
    a, before = combinations(LONG, LONG)
    outcome = execute(
        "gfx942",
        f"s_{name}_wrexec_b64 s[2:3], s[4:5]",
        registers={"s[4:5]": a, "exec": before},
        waves=len(a),
    )
    expected = [function(int(x), int(y)) & ONES64 for x, y in zip(a, before, strict=True)]
    assert outcome.s64(2).tolist() == outcome.exec_mask.tolist() == expected


def test_mode_register():
    body = (
        "s_getreg_b32 s2, hwreg(HW_REG_MODE)\n"
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 4, 2), 0\n"
        "s_getreg_b32 s3, hwreg(HW_REG_MODE)\n"
        "s_setreg_b32 hwreg(HW_REG_MODE, 23, 1), s6\n"
        "s_getreg_b32 s4, hwreg(HW_REG_MODE, 4, 4)\n"
        "s_getreg_b32 s5, hwreg(HW_REG_MODE, 23, 1)"
    )
    outcome = execute("gfx942", body, registers={"s6": 1})
    assert [int(outcome.s(n)[0]) for n in (2, 3, 4, 5)] == [0xF0, 0xC0, 0xC, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("s_setreg_imm32_b32 hwreg(HW_REG_MODE, 0, 4), 1", "rounding mode"),
        ("s_setreg_imm32_b32 hwreg(HW_REG_M0, 0, 4), 1", "hardware register M0"),
        ("s_getreg_b32 s2, hwreg(HW_REG_LDS_ALLOC)", "LDS_ALLOC"),
        ("s_mov_b32 s2, s3, s4", "further operands"),
        ("s_mov_b32 s2, s3 clamp", "s3 clamp"),
        ("s_mov_b64 s[3:4], s[6:7]", "odd SGPR pair"),
        ("s_movrels_b32 s2, s3", "s_movrels_b32"),
        ("s_sethalt 1", "s_sethalt"),
        ("s_set_gpr_idx_on s2, 1", "s_set_gpr_idx_on"),
    ],
)
def test_what_is_not_emulated_is_refused(line, message):
    with pytest.raises(Unsupported, match=message):
        execute("gfx942", line)
