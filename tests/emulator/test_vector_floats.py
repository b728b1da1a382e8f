"""Vector float instructions on awkward values, against exact arithmetic in fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.emulator.exact_floats import F16, F32, F64, Format, awkward, fma
from tests.emulator.machine_code import combinations, execute, lanes_of, per_lane
from vllm_amdopt.emulator.definitions import Unsupported

FORMATS = {"f16": F16, "f32": F32, "f64": F64}


def operand(form: Format, number: int) -> str:
    return f"v[{number}:{number + 1}]" if form is F64 else f"v{number}"


def run(form: Format, name: str, columns, text: str = "", suffix: str = "", **setup):
    """Run an instruction of the format on columns of bits -> bits of the results."""
    registers, waves = {}, 1
    for n, column in enumerate(columns):
        lanes, waves = per_lane(column)
        registers[operand(form, 2 + 2 * n)] = lanes
    names = ", ".join(operand(form, 2 * n) for n in range(len(columns) + 1))
    line = f"{name}{suffix} {names}{text}"
    outcome = execute("gfx942", line, registers=registers, waves=waves, **setup)
    result = outcome.v64(0) if form is F64 else outcome.v(0)
    return result.reshape(-1)[: len(columns[0])].tolist()


def same(form: Format, got: int, expected: float) -> bool:
    """The same bits; any NaN for a NaN."""
    if math.isnan(expected):
        return math.isnan(form.value(got))
    return got == form.bits_of(expected)


def check(form: Format, got, columns, function) -> None:
    for bits, *row in zip(got, *columns, strict=True):
        values = [form.value(int(x)) for x in row]
        expected = function(*values)
        assert same(form, bits, expected), (hex(bits), values, expected)


ARITHMETIC = {
    "add": lambda form, a, b: fma(form, a, 1.0, b),
    "sub": lambda form, a, b: fma(form, a, 1.0, -b),
    "subrev": lambda form, a, b: fma(form, -a, 1.0, b),
    "mul": lambda form, a, b: fma(form, a, b, math.copysign(0.0, math.copysign(1, a) * b)),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ARITHMETIC)
def test_sum_and_product(kind, name):
    if kind == "f64" and "sub" in name:
        return  # the instruction set has none
    form = FORMATS[kind]
    columns = combinations(awkward(form), awkward(form))
    got = run(form, f"v_{name}_{kind}", columns)
    check(form, got, columns, lambda a, b: ARITHMETIC[name](form, a, b))


@pytest.mark.parametrize("kind", FORMATS)
def test_fused_multiply_add_rounds_once(kind):
    form = FORMATS[kind]
    rng = np.random.default_rng(0)
    random = [
        rng.integers(0, 1 << 64, 1500, np.uint64) >> np.uint64(64 - form.bits) for _ in range(3)
    ]
    # sums that cancel, or lie next to half way
    near = random[0].copy(), random[1].copy(), random[2].copy()
    one = form.bits_of(1.0)
    near[0][:] = one | 1
    near[1][:] = rng.integers(one - 64, one + 64, 1500)
    near[2][:] = rng.integers(0, 1 << (form.bits - 1), 1500, np.uint64) | np.uint64(
        1 << (form.bits - 1)
    )
    tricky = combinations(awkward(form)[::2], awkward(form)[1::3], awkward(form)[::3])
    columns = [np.concatenate(parts) for parts in zip(tricky, random, near, strict=True)]
    got = run(form, f"v_fma_{kind}", columns)
    check(form, got, columns, lambda a, b, c: fma(form, a, b, c))


def test_the_addend_may_be_the_destination_or_a_literal():
    columns = combinations(awkward(F32), awkward(F32))
    registers = {f"v{n}": per_lane(x)[0] for n, x in ((2, columns[0]), (4, columns[1]))}
    waves = per_lane(columns[0])[1]
    body = (
        "v_mov_b32 v0, 0x3f9d70a4\nv_fmac_f32 v0, v2, v4\n"
        "v_fmaak_f32 v6, v2, v4, 0x3f9d70a4\nv_fmamk_f32 v8, v2, 0x3f9d70a4, v4"
    )
    outcome = execute("gfx942", body, registers=registers, waves=waves)
    constant = F32.value(0x3F9D70A4)
    count = len(columns[0])
    for register, function in (
        (0, lambda a, b: fma(F32, a, b, constant)),
        (6, lambda a, b: fma(F32, a, b, constant)),
        (8, lambda a, b: fma(F32, a, constant, b)),
    ):
        check(F32, outcome.v(register).reshape(-1)[:count].tolist(), columns, function)


def choose(form: Format, a: int, b: int, larger: bool) -> int:
    """V_MAX and V_MIN by the pseudo-code, on bits (IEEE mode on)"""
    for x in (a, b):
        if form.is_signalling(x):
            return form.quieted(x)
    x, y = form.value(a), form.value(b)
    if math.isnan(x):
        return b
    if math.isnan(y):
        return a
    if x == y == 0:
        return (a & b) if larger else (a | b)
    return a if (x >= y if larger else x < y) else b


def median(form: Format, a: int, b: int, c: int) -> int:
    if any(math.isnan(form.value(x)) for x in (a, b, c)):
        return choose(form, choose(form, a, b, False), c, False)
    highest = choose(form, choose(form, a, b, True), c, True)
    if form.value(highest) == form.value(a):
        return choose(form, b, c, True)
    if form.value(highest) == form.value(b):
        return choose(form, a, c, True)
    return choose(form, a, b, True)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["max", "min"])
def test_larger_and_smaller(kind, name):
    form = FORMATS[kind]
    columns = combinations(awkward(form), awkward(form))
    got = run(form, f"v_{name}_{kind}", columns)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    assert got == [choose(form, a, b, name == "max") for a, b in rows]


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize("name", ["max3", "min3", "med3"])
def test_of_three(kind, name):
    form = FORMATS[kind]
    values = awkward(form)[[0, 1, 6, 13, 14, 15, 16, 17, 18, 23, 31, 33]]
    columns = combinations(values, values, values)
    got = [x & ((1 << form.bits) - 1) for x in run(form, f"v_{name}_{kind}", columns)]
    for bits, *row in zip(got, *(c.tolist() for c in columns), strict=True):
        if name == "med3":
            expected = median(form, *row)
        else:
            larger = name == "max3"
            expected = choose(form, choose(form, row[0], row[1], larger), row[2], larger)
        if name == "med3" and sum(form.value(x) == 0 for x in row) > 1 and form.value(bits) == 0:
            assert form.value(bits) == form.value(expected)  # which zero: hardware-dependent order
        else:
            assert bits == expected, [hex(x) for x in row]


def to_integer(value: float, low: int, high: int) -> int:
    if math.isnan(value):
        return 0
    return max(low, min(high, math.trunc(value) if math.isfinite(value) else math.inf * value))


RANGES = {
    "i32": (-(1 << 31), (1 << 31) - 1),
    "u32": (0, (1 << 32) - 1),
    "i16": (-(1 << 15), (1 << 15) - 1),
    "u16": (0, (1 << 16) - 1),
}


@pytest.mark.parametrize(
    ("to", "kind"),
    [
        ("i32", "f32"),
        ("u32", "f32"),
        ("i32", "f64"),
        ("u32", "f64"),
        ("i16", "f16"),
        ("u16", "f16"),
    ],
)
def test_to_integer_truncates_and_saturates(to, kind):
    form = FORMATS[kind]
    edges = [0.5, -0.5, 1.5, 65535.0, -32769.0, 2.0**31, 2.0**32, -(2.0**31), 4294967040.0]
    edges = [x for x in edges if abs(x) <= form.largest]
    column = np.concatenate(
        [awkward(form), np.array([form.bits_of(form.numpy(x)) for x in edges], np.uint64)]
    )
    registers = {operand(form, 2): per_lane(column)[0]}
    line = f"v_cvt_{to}_{kind} v0, {operand(form, 2)}"
    outcome = execute("gfx942", line, registers=registers, waves=per_lane(column)[1])
    bits = int(to[1:])
    got = outcome.v(0).reshape(-1)[: len(column)].tolist()
    for x, value in zip(got, column.tolist(), strict=True):
        expected = int(to_integer(form.value(value), *RANGES[to]))
        assert x == expected & ((1 << bits) - 1), form.value(value)


def test_between_float_formats_and_from_integers():
    for form, to, name in ((F64, F32, "f32_f64"), (F32, F64, "f64_f32"), (F32, F16, "f16_f32")):
        column = awkward(form)
        line = f"v_cvt_{name} {operand(to, 0)}, {operand(form, 2)}"
        registers = {operand(form, 2): per_lane(column)[0]}
        outcome = execute("gfx942", line, registers=registers, waves=per_lane(column)[1])
        got = (outcome.v64(0) if to is F64 else outcome.v(0)).reshape(-1)[: len(column)]
        for bits, value in zip(got.tolist(), column.tolist(), strict=True):
            x = form.value(value)
            zero = math.copysign(1, x) < 0
            expected = to.round(Fraction(x), zero) if math.isfinite(x) else x
            assert same(to, bits, expected), x
    words = np.array([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x1000001, 0x1000003])
    for kind, read in (("i32", lambda x: x - (1 << 32) if x >> 31 else x), ("u32", lambda x: x)):
        body = f"v_cvt_f32_{kind} v0, v2\nv_cvt_f64_{kind} v[4:5], v2"
        outcome = execute("gfx942", body, registers={"v2": per_lane(words)[0]})
        for n, word in enumerate(words.tolist()):
            assert same(F32, int(outcome.v(0)[0, n]), F32.round(Fraction(read(word))))
            assert same(F64, int(outcome.v64(4)[0, n]), float(read(word)))


def test_packing_conversions():
    column = np.concatenate(
        [awkward(F32), np.array([0x477FE000, 0x477FF000, 0x33000001], np.uint64)]
    )
    a, b = column, column[::-1]
    registers = {"v2": per_lane(a)[0], "v3": per_lane(b)[0]}
    body = (
        "v_cvt_pkrtz_f16_f32 v0, v2, v3\nv_cvt_pk_bf16_f32 v1, v2, v3\n"
        "v_cvt_pk_f16_f32 v4, v2, v3\nv_cvt_f32_ubyte2 v5, v2"
    )
    outcome = execute("gfx950", body, registers=registers, waves=per_lane(a)[1])
    for n, pair in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        wave, lane = divmod(n, 64)
        rtz, bf16, f16, byte = (int(outcome.v(r)[wave, lane]) for r in (0, 1, 4, 5))
        for half, bits in enumerate(pair):
            value = F32.value(bits)
            part = rtz >> 16 * half & 0xFFFF
            if math.isfinite(value):  # the largest f16 that is not beyond
                assert abs(F16.value(part)) <= abs(value)
                following = F16.value(part + 1) if part & 0x7FFF != 0x7BFF else math.inf
                assert abs(following) > abs(value)
                nearest = F16.round(Fraction(value), math.copysign(1, value) < 0)
                assert same(F16, f16 >> 16 * half & 0xFFFF, nearest)
            kept = bf16 >> 16 * half & 0xFFFF
            if math.isnan(value):
                assert math.isnan(F32.value(kept << 16))
            else:
                low = bits & 0xFFFF
                up = low > 0x8000 or (low == 0x8000 and bits >> 16 & 1)
                assert kept == (bits >> 16) + up
        assert F32.value(byte) == pair[0] >> 16 & 255


@pytest.mark.parametrize(("text", "factor"), [(" mul:2", 2), (" mul:4", 4), (" div:2", 0.5)])
def test_output_modifiers_act_only_without_denormals(text, factor):
    values = np.array([F32.bits_of(x) for x in (0.75, -3.0, 2.0**-126, 2.0**127)])
    columns = [values, np.full(len(values), F32.bits_of(1.0))]
    flushing = "float_denorm_mode_32 0"
    got = run(F32, "v_mul_f32", columns, text, "_e64", descriptor=flushing)
    check(F32, got, columns, lambda a, _: F32.round(Fraction(a * factor)))
    got = run(F32, "v_mul_f32", columns, text, "_e64")
    check(F32, got, columns, lambda a, _: a)


def test_clamp_is_zero_to_one_and_no_nan():
    for form in (F16, F32):
        column = awkward(form)
        got = run(form, f"v_add_{form.name}", [column, column], " clamp", "_e64")
        check(
            form,
            got,
            [column, column],
            lambda a, b: 0.0 if math.isnan(a + b) or a + b <= 0 else min(a + b, 1.0),
        )


def test_negation_and_absolute_value():
    column = awkward(F32)
    registers = {"v2": per_lane(column)[0]}
    body = "\n".join(
        f"v_mul_f32_e64 v{4 + n}, {text}, 1.0"
        for n, text in enumerate(("-v2", "|v2|", "-|v2|", "neg(v2)", "abs(v2)"))
    )
    outcome = execute("gfx942", body, registers=registers)
    for n, function in enumerate((lambda x: -x, abs, lambda x: -abs(x), lambda x: -x, abs)):
        got = outcome.v(4 + n).reshape(-1)[: len(column)].tolist()
        check(F32, got, [column], function)


def test_denormals_are_kept_or_flushed_as_the_mode_says():
    column = np.array([1, 0x7FFFFF, 0x80000001, 0x00800000])
    columns = [column, np.full(4, F32.bits_of(1.0))]
    check(F32, run(F32, "v_mul_f32", columns), columns, lambda a, _: a)
    got = run(F32, "v_mul_f32", columns, descriptor="float_denorm_mode_32 0")
    check(F32, got, columns, lambda a, _: F32.flushed(a))


@pytest.mark.parametrize("form", [F16, F32, F64], ids=["f16", "f32", "f64"])
def test_parts_of_a_number(form):
    column = awkward(form)
    finite = column[[math.isfinite(form.value(int(x))) for x in column]]
    for name, function in (
        ("floor", math.floor),
        ("ceil", math.ceil),
        ("trunc", math.trunc),
        ("rndne", round),
    ):
        got = run(form, f"v_{name}_{form.name}", [finite])
        check(form, got, [finite], lambda x, f=function: math.copysign(float(f(x)), x))
    got = run(form, f"v_frexp_mant_{form.name}", [finite])
    check(form, got, [finite], lambda x: math.frexp(x)[0] if x else x)
    below = 1 - 2.0 ** -(form.mantissa + 1)
    got = run(form, f"v_fract_{form.name}", [finite])
    for bits, x in zip(got, finite.tolist(), strict=True):
        value = form.value(x)
        exact = value - math.floor(value) if form is not F64 or abs(value) < 2**52 else 0.0
        assert abs(form.value(bits) - min(exact, below)) <= 2.0 ** -(form.mantissa + 1)
        assert form.value(bits) < 1


@pytest.mark.parametrize("name", ["rcp", "sqrt", "rsq", "exp", "log"])
def test_approximations_are_within_one_unit(name):
    functions = {
        "rcp": lambda x: 1 / x if x else math.copysign(math.inf, x),
        "sqrt": lambda x: math.sqrt(x) if x >= 0 else math.nan,
        "rsq": lambda x: math.nan if x < 0 else 1 / math.sqrt(x) if x else math.inf,
        "exp": lambda x: 2.0**x if x < 128 else math.inf,
        "log": lambda x: math.nan if x < 0 else math.log2(x) if x else -math.inf,
    }
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.uniform(-8, 8, 200), rng.lognormal(0, 20, 200), [0.0, 1.0, 2.0]])
    column = values.astype(np.float32).view(np.uint32)
    for bits, x in zip(run(F32, f"v_{name}_f32", [column]), column.tolist(), strict=True):
        expected = functions[name](F32.value(x))
        got = F32.value(bits)
        if not math.isfinite(expected) or abs(expected) > 3.5e38:
            assert math.isnan(got) if math.isnan(expected) else abs(got) > 3.4e38
        else:
            unit = max(abs(expected) * 2.0**-23, 2.0**-126)
            assert abs(got - expected) <= unit


COMPARE = {
    "f": lambda a, b: False,
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "lg": lambda a, b: a < b or a > b,
    "ge": lambda a, b: a >= b,
    "o": lambda a, b: a == a and b == b,
    "u": lambda a, b: a != a or b != b,
    "nge": lambda a, b: not a >= b,
    "nlg": lambda a, b: not (a < b or a > b),
    "ngt": lambda a, b: not a > b,
    "nle": lambda a, b: not a <= b,
    "neq": lambda a, b: a != b,
    "nlt": lambda a, b: not a < b,
    "tru": lambda a, b: True,
}


@pytest.mark.parametrize("kind", FORMATS)
def test_comparison(kind):
    form = FORMATS[kind]
    columns = combinations(awkward(form), awkward(form))
    a, b = operand(form, 2), operand(form, 4)
    body = "\n".join(
        f"v_cmp_{name}_{kind} s[{20 + 2 * n}:{21 + 2 * n}], {a}, {b}"
        for n, name in enumerate(COMPARE)
    )
    registers = {a: per_lane(columns[0])[0], b: per_lane(columns[1])[0]}
    outcome = execute("gfx942", body, registers=registers, waves=per_lane(columns[0])[1])
    rows = [tuple(form.value(int(x)) for x in row) for row in zip(*columns, strict=True)]
    for n, name in enumerate(COMPARE):
        got = lanes_of(outcome.s64(20 + 2 * n)).reshape(-1)[: len(rows)].tolist()
        assert got == [COMPARE[name](*row) for row in rows], name


def class_of(form: Format, bits: int) -> int:
    value, negative = form.value(bits), bits >> (form.bits - 1)
    if math.isnan(value):
        return 0 if form.is_signalling(bits) else 1
    if math.isinf(value):
        kind = 0
    elif abs(value) >= 2.0**form.smallest:
        kind = 1
    else:
        kind = 2 if value else 3
    return 2 + kind if negative else 9 - kind


@pytest.mark.parametrize("kind", FORMATS)
def test_class_of_a_number(kind):
    form = FORMATS[kind]
    column = awkward(form)
    registers = {operand(form, 2): per_lane(column)[0]}
    body = "\n".join(
        f"v_cmp_class_{kind} s[{20 + 2 * n}:{21 + 2 * n}], {operand(form, 2)}, {hex(1 << n)}"
        for n in range(10)
    )
    outcome = execute("gfx942", body, registers=registers, waves=per_lane(column)[1])
    classes = [class_of(form, x) for x in column.tolist()]
    for n in range(10):
        got = lanes_of(outcome.s64(20 + 2 * n)).reshape(-1)[: len(column)].tolist()
        assert got == [kind == n for kind in classes]


@pytest.mark.parametrize(
    "line",
    [
        "v_add_f32 v0, v1, v2 mul:3",
        "v_add_f32 v0, v1, v2 op_sel:[1,0,0]",
        "v_add_f32 v0, v1, v2 neg_lo:[1,0]",
        "v_cvt_i32_f32 v0, v1 clamp",
        "v_cmp_lt_f32 vcc, v1, v2 clamp",
        "v_trig_preop_f64 v[0:1], v[2:3], v4",
        "v_cubeid_f32 v0, v1, v2, v3",
    ],
)
def test_what_is_not_honoured_is_refused(line):
    with pytest.raises(Unsupported):
        execute("gfx942", line)
