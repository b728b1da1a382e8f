"""Packed math, dot products and mixed-precision fma, with op_sel, neg and clamp."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests.emulator.exact_floats import F16, F32, fma
from tests.emulator.machine_code import execute, per_lane
from vllm_amdopt.emulator.definitions import Unsupported

RNG = np.random.default_rng(0)
COUNT = 192
HALVES = RNG.integers(0, 1 << 16, (3, 2, COUNT)).astype(np.uint32)
NUMBERS = RNG.normal(0, 4, (3, 2, COUNT)).astype(np.float16).view(np.uint16).astype(np.uint32)


def words(halves: np.ndarray) -> np.ndarray:
    return halves[0] | halves[1] << np.uint32(16)


def signed(value: int) -> int:
    return value - 0x10000 if value & 0x8000 else value


def f16(value: int) -> float:
    return F16.value(int(value))


def wrap(function):
    return lambda *v: function(*v) & 0xFFFF


def float_result(function):
    """f16 arguments and result as bits; NaN as one pattern"""
    return lambda *v: F16.bits_of(function(*map(f16, v)))


INTEGER = {
    "v_pk_add_u16": wrap(lambda a, b: a + b),
    "v_pk_sub_u16": wrap(lambda a, b: a - b),
    "v_pk_mul_lo_u16": wrap(lambda a, b: a * b),
    "v_pk_mad_u16": wrap(lambda a, b, c: a * b + c),
    "v_pk_add_i16": wrap(lambda a, b: a + b),
    "v_pk_sub_i16": wrap(lambda a, b: a - b),
    "v_pk_mad_i16": wrap(lambda a, b, c: a * b + c),
    "v_pk_max_u16": max,
    "v_pk_min_u16": min,
    "v_pk_max_i16": wrap(lambda a, b: max(signed(a), signed(b))),
    "v_pk_min_i16": wrap(lambda a, b: min(signed(a), signed(b))),
    "v_pk_lshlrev_b16": wrap(lambda a, b: b << (a & 15)),
    "v_pk_lshrrev_b16": lambda a, b: b >> (a & 15),
    "v_pk_ashrrev_i16": wrap(lambda a, b: signed(b) >> (a & 15)),
}
FLOAT = {
    "v_pk_add_f16": float_result(lambda a, b: fma(F16, a, 1.0, b)),
    "v_pk_mul_f16": float_result(lambda a, b: fma(F16, a, b, math.copysign(0.0, a * b))),
    "v_pk_fma_f16": float_result(lambda a, b, c: fma(F16, a, b, c)),
    "v_pk_max_f16": float_result(max),
    "v_pk_min_f16": float_result(min),
}
SELECTIONS = [
    "",
    "op_sel:[1,0,0] op_sel_hi:[0,1,1]",
    "op_sel:[0,1,1] op_sel_hi:[1,0,0]",
    "op_sel_hi:[0,0,0]",
    "neg_lo:[1,0,0] neg_hi:[0,1,0]",
    "op_sel:[1,1,0] neg_lo:[0,1,1] neg_hi:[1,0,1]",
]


def modifier(text: str, name: str, default: int, count: int) -> list[int]:
    for token in text.split():
        if token.startswith(name + ":"):
            return [int(x) for x in token.split("[")[1].rstrip("]").split(",")][:count]
    return [default] * count


@pytest.mark.parametrize("text", SELECTIONS)
@pytest.mark.parametrize("name", [*INTEGER, *FLOAT])
def test_packed_16(name, text):
    if name in INTEGER and "neg" in text:
        with pytest.raises(Unsupported, match="neg_lo"):
            execute("gfx942", f"{name} v0, v1, v2 {text}")
        return
    function = INTEGER.get(name) or FLOAT[name]
    count = 3 if "mad" in name or "fma" in name else 2
    data = (HALVES if name in INTEGER else NUMBERS)[:count]
    trimmed = " ".join(
        token.split("[")[0]
        + "["
        + ",".join(token.split("[")[1].rstrip("]").split(",")[:count])
        + "]"
        for token in text.split()
    )
    registers = {f"v{1 + n}": per_lane(words(half))[0] for n, half in enumerate(data)}
    operands = ", ".join(f"v{n}" for n in range(count + 1))
    outcome = execute("gfx942", f"{name} {operands} {trimmed}", registers=registers, waves=3)
    got = outcome.v(0).reshape(-1)
    low, high = modifier(text, "op_sel", 0, count), modifier(text, "op_sel_hi", 1, count)
    flip = modifier(text, "neg_lo", 0, count), modifier(text, "neg_hi", 0, count)
    for i in range(COUNT):
        for shift, chosen, negate in ((0, low, flip[0]), (16, high, flip[1])):
            values = [
                int(data[n, chosen[n], i]) ^ (0x8000 if negate[n] else 0) for n in range(count)
            ]
            assert int(got[i]) >> shift & 0xFFFF == function(*values)


def test_packed_constants_and_scalars():
    body = (
        "v_pk_add_u16 v0, v1, 5\nv_pk_add_u16 v2, v1, 5 op_sel_hi:[1,0]\n"
        "v_pk_add_u16 v3, v1, -1\nv_pk_add_u16 v4, v1, s6 op_sel:[0,1] op_sel_hi:[1,0]\n"
        "v_pk_add_f16 v5, v7, 1.0 op_sel_hi:[1,0]"
    )
    registers = {"v1": 0x00100020, "s6": 0x00030004, "v7": 0x3C004000}
    outcome = execute("gfx942", body, registers=registers)
    got = [int(outcome.v(n)[0, 0]) for n in (0, 2, 3, 4, 5)]
    assert got == [0x00100025, 0x00150025, 0x000F001F, 0x00140023, 0x40004200]


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("v_pk_add_u16", 0, 0xFFFF),
        ("v_pk_sub_u16", 0, 0xFFFF),
        ("v_pk_add_i16", -0x8000, 0x7FFF),
        ("v_pk_sub_i16", -0x8000, 0x7FFF),
    ],
)
def test_clamp_saturates_each_half(name, low, high):
    read = signed if low else int
    function = (lambda a, b: a + b) if "add" in name else lambda a, b: a - b
    registers = {f"v{1 + n}": per_lane(words(half))[0] for n, half in enumerate(HALVES[:2])}
    outcome = execute("gfx942", f"{name} v0, v1, v2 clamp", registers=registers, waves=3)
    got = outcome.v(0).reshape(-1)
    for i, half in itertools.product(range(COUNT), (0, 1)):
        exact = function(read(int(HALVES[0, half, i])), read(int(HALVES[1, half, i])))
        assert int(got[i]) >> 16 * half & 0xFFFF == max(low, min(high, exact)) & 0xFFFF


@pytest.mark.parametrize("text", SELECTIONS)
@pytest.mark.parametrize("name", ["v_pk_add_f32", "v_pk_mul_f32", "v_pk_fma_f32"])
def test_packed_32(name, text):
    count = 3 if "fma" in name else 2
    data = RNG.normal(0, 4, (count, 2, 64)).astype(np.float32)
    registers = {f"v{2 + 2 * n + half}": data[n, half] for n in range(count) for half in range(2)}
    operands = ", ".join(f"v[{2 * n}:{2 * n + 1}]" for n in range(count + 1))
    outcome = execute("gfx942", f"{name} {operands} {text}", registers=registers)
    low, high = modifier(text, "op_sel", 0, count), modifier(text, "op_sel_hi", 1, count)
    flip = modifier(text, "neg_lo", 0, count), modifier(text, "neg_hi", 0, count)
    for register, chosen, negate in ((0, low, flip[0]), (1, high, flip[1])):
        got = outcome.v(register)[0].view(np.float32)
        for lane in range(64):
            values = [
                float(data[n, chosen[n], lane]) * (-1 if negate[n] else 1) for n in range(count)
            ]
            if "mul" in name:
                values.append(0.0)
            elif "add" in name:
                values.insert(1, 1.0)
            assert float(got[lane]) == fma(F32, *values)


def test_packed_move():
    registers = {"v[2:3]": (7 << 32) | 5, "s[4:5]": (11 << 32) | 9}
    body = (
        "v_pk_mov_b32 v[6:7], v[2:3], s[4:5] op_sel:[1,0]\n"
        "v_pk_mov_b32 v[8:9], v[2:3], s[4:5] op_sel:[0,1]"
    )
    outcome = execute("gfx942", body, registers=registers)
    assert [int(outcome.v(n)[0, 0]) for n in (6, 7, 8, 9)] == [7, 9, 5, 11]


@pytest.mark.parametrize("text", ["", " op_sel_hi:[1,0,1]", " op_sel:[1,1,0]"])
@pytest.mark.parametrize(
    "name", ["v_fma_mix_f32", "v_fma_mixlo_f16", "v_fma_mixhi_f16", "v_mad_mix_f32"]
)
def test_mixed_fma(name, text):
    """op_sel_hi makes an operand an f16, op_sel chooses its half."""
    a, b, c = (RNG.normal(0, 3, 64).astype(np.float32).view(np.uint32) for _ in range(3))
    b = words(NUMBERS[0])[:64]
    line = f"{name} v0, -v1, |v2|, v3 op_sel_hi:[0,1,0]{text.replace('op_sel_hi:[1,0,1]', '')}"
    line = line.replace("op_sel:[1,1,0]", "op_sel:[0,1,0]")
    outcome = execute("gfx942", line, registers={"v0": 0x5A5A5A5A, "v1": a, "v2": b, "v3": c})
    half = 1 if "op_sel:[1,1,0]" in text else 0
    for lane in range(64):
        values = (
            -F32.value(int(a[lane])),
            abs(f16(int(b[lane]) >> 16 * half & 0xFFFF)),
            F32.value(int(c[lane])),
        )
        single = fma(F32, *values)
        got = int(outcome.v(0)[0, lane])
        if name.endswith("f32"):
            assert F32.value(got) == single
        else:
            narrow = F16.bits_of(float(np.float16(single)))
            kept = 0x5A5A
            expected = narrow << 16 | kept if "hi_" in name else kept << 16 | narrow
            assert got == expected


DOTS = [
    ("v_dot4_i32_i8", 8, True),
    ("v_dot4_u32_u8", 8, False),
    ("v_dot8_i32_i4", 4, True),
    ("v_dot8_u32_u4", 4, False),
    ("v_dot2_i32_i16", 16, True),
    ("v_dot2_u32_u16", 16, False),
]


@pytest.mark.parametrize(("name", "bits", "is_signed"), DOTS)
@pytest.mark.parametrize("clamp", ["", " clamp"])
def test_integer_dot_product(name, bits, is_signed, clamp):
    a, b, c = (RNG.integers(0, 1 << 32, 64, np.uint64) for _ in range(3))
    a[0], b[0], c[0] = 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    c[1] = 0x7FFFFFFF
    outcome = execute(
        "gfx942", f"{name} v0, v1, v2, v3{clamp}", registers={"v1": a, "v2": b, "v3": c}
    )

    def element(word: int, n: int) -> int:
        value = word >> bits * n & ((1 << bits) - 1)
        return value - (1 << bits) if is_signed and value >> (bits - 1) else value

    for lane in range(64):
        x, y, z = int(a[lane]), int(b[lane]), int(c[lane])
        total = z - (1 << 32) if is_signed and z >> 31 else z
        total += sum(element(x, n) * element(y, n) for n in range(32 // bits))
        if clamp:
            low, high = (-(1 << 31), (1 << 31) - 1) if is_signed else (0, (1 << 32) - 1)
            total = max(low, min(high, total))
        assert int(outcome.v(0)[0, lane]) == total & 0xFFFFFFFF


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("text", ["", " neg_lo:[1,0,0] neg_hi:[0,1,0]"])
def test_float_dot_product(kind, text):
    values = RNG.normal(0, 2, (2, 2, 64)).astype(np.float32)
    if kind == "f16":
        narrow = values.astype(np.float16)
        bits, values = narrow.view(np.uint16).astype(np.uint32), narrow.astype(np.float64)
    else:
        bits = values.view(np.uint32) >> np.uint32(16)
        values = (bits << np.uint32(16)).view(np.float32).astype(np.float64)
    c = RNG.normal(0, 2, 64).astype(np.float32)
    registers = {"v1": words(bits[0]), "v2": words(bits[1]), "v3": c.view(np.uint32)}
    outcome = execute("gfx950", f"v_dot2_f32_{kind} v0, v1, v2, v3{text}", registers=registers)
    sign = -1 if text else 1
    expected = sign * values[0, 0] * values[1, 0] + sign * values[0, 1] * values[1, 1] + c
    got = outcome.v(0)[0].view(np.float32)
    assert np.abs(got - expected).max() <= 2.0**-22 * np.abs(expected).max()


def test_float_dot_product_flushes_denormals():
    registers = {"v1": 0x00010001, "v2": 0x3C003C00, "v3": 0x00000001}
    outcome = execute("gfx942", "v_dot2_f32_f16 v0, v1, v2, v3", registers=registers)
    assert int(outcome.v(0)[0, 0]) == 0


@pytest.mark.parametrize(
    "line",
    [
        "v_pk_mul_lo_u16 v0, v1, v2 clamp",
        "v_pk_add_f16 v0, v1, v2 mul:2",
        "v_pk_fma_f32 v[0:1], v[2:3], v[4:5], 1.0",
        "v_pk_mov_b32 v[0:1], v[2:3], v[4:5] neg_lo:[1,0]",
        "v_dot4_i32_i8 v0, v1, v2, v3 neg_lo:[1,0,0]",
        "v_dot4_i32_i8 v0, v1, v2, v3 op_sel:[1,0,0]",
        "v_dot2_f32_f16 v0, v1, v2, v3 neg_lo:[0,0,1]",
        "v_fma_mix_f32 v0, v1, v2, v3 neg_lo:[1,0,0]",
        "v_pk_unknown_f16 v0, v1, v2",
    ],
)
def test_what_is_not_honoured_is_refused(line):
    with pytest.raises(Unsupported):
        execute("gfx950", line)
