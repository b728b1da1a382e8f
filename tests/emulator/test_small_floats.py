"""FP8, BF8 and FP4 conversions bit by bit: every code, every rounding tie, overflow and NaN.

The references are PyTorch's types: float8_e4m3fnuz and e5m2fnuz on gfx942, e4m3fn and e5m2 on
gfx950; FP4 is a table of sixteen values.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.emulator.machine_code import execute, per_lane
from vllm_amdopt.emulator.definitions import Unsupported

TYPES = {
    ("gfx942", "fp8"): torch.float8_e4m3fnuz,
    ("gfx942", "bf8"): torch.float8_e5m2fnuz,
    ("gfx950", "fp8"): torch.float8_e4m3fn,
    ("gfx950", "bf8"): torch.float8_e5m2,
}
EVERY = [pytest.param(arch, kind, id=f"{arch}-{kind}") for arch, kind in TYPES]
CODES = np.arange(256, dtype=np.uint32)
SATURATING = "fp16_overflow 1"


def decoded(arch: str, kind: str) -> np.ndarray:
    """The value of every code, by PyTorch."""
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    return codes.view(TYPES[arch, kind]).float().numpy()


def encoded(arch: str, kind: str, values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(TYPES[arch, kind]).view(torch.uint8).numpy()


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """The same bits, any NaN for a NaN."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


@pytest.mark.parametrize(("arch", "kind"), EVERY)
def test_every_code_is_decoded(arch, kind):
    expected = decoded(arch, kind)
    word, waves = per_lane(CODES)
    body = "\n".join(
        f"v_lshlrev_b32 v1, {8 * byte}, v0\n"
        f"v_cvt_f32_{kind}_sdwa v{2 + byte}, v1 src0_sel:BYTE_{byte}"
        for byte in range(4)
    )
    outcome = execute(arch, body, registers={"v0": word}, waves=waves)
    for byte in range(4):
        assert same(outcome.v(2 + byte).view(np.float32).reshape(-1), expected)


@pytest.mark.parametrize(("arch", "kind"), EVERY)
def test_pairs_of_codes_are_decoded(arch, kind):
    expected = decoded(arch, kind)
    words = CODES | (255 - CODES) << 8 | (CODES ^ 0x55) << 16 | (CODES ^ 0xAA) << 24
    lanes, waves = per_lane(words)
    body = (
        f"v_cvt_pk_f32_{kind}_e32 v[2:3], v0\n"
        f"v_cvt_pk_f32_{kind}_sdwa v[4:5], v0 src0_sel:WORD_1\n"
        f"v_cvt_f32_{kind}_e32 v6, v0"
    )
    outcome = execute(arch, body, registers={"v0": lanes}, waves=waves)
    for register, shift in ((2, 0), (3, 8), (4, 16), (5, 24), (6, 0)):
        got = outcome.v(register).view(np.float32).reshape(-1)
        assert same(got, expected[words >> shift & 255])


def ties_and_neighbours(values: np.ndarray) -> np.ndarray:
    """Every number of a format, the half-way points between them, and the f32 next to those."""
    numbers = np.unique(values[np.isfinite(values)]).astype(np.float32)
    half = ((numbers[1:].astype(np.float64) + numbers[:-1]) / 2).astype(np.float32)
    inputs = np.concatenate([numbers, half])
    up, down = np.nextafter(inputs, np.float32(np.inf)), np.nextafter(inputs, np.float32(-np.inf))
    special = np.array([0.0, -0.0, np.nan, 1e-30, -1e-30, 1e-42], np.float32)
    return np.concatenate([inputs, up, down, special]).astype(np.float32)


def convert(arch: str, kind: str, values: np.ndarray, descriptor: str = "") -> np.ndarray:
    lanes, waves = per_lane(values.view(np.uint32))
    body = f"v_cvt_pk_{kind}_f32 v0, v1, v2\nv_cvt_pk_{kind}_f32 v0, v2, -v1 op_sel:[0,0,1]"
    registers = {"v0": 0, "v1": lanes, "v2": lanes[::-1]}
    outcome = execute(arch, body, registers=registers, waves=waves, descriptor=descriptor)
    result = outcome.v(0).reshape(-1)[: len(values)]
    back = outcome.v(0)[::-1].reshape(-1)[: len(values)]
    assert ((result & 255) == (back >> 8 & 255)).all()  # either place of the pair
    return result


@pytest.mark.parametrize(("arch", "kind"), EVERY)
def test_rounding_is_to_nearest_even(arch, kind):
    values = ties_and_neighbours(decoded(arch, kind))
    limit = np.nanmax(np.where(np.isfinite(decoded(arch, kind)), decoded(arch, kind), 0))
    values = values[~(np.abs(values) > limit)]
    result = convert(arch, kind, values)
    assert ((result & 255) == encoded(arch, kind, values)).all()
    assert ((result >> 24) == encoded(arch, kind, -values)).all()  # op_sel, negated source


BEYOND = np.array([1.0001, 1.03, 1.0626, 1.2, 2, 1e6, 1e30, np.inf], np.float64)


@pytest.mark.parametrize(("arch", "kind"), EVERY)
def test_overflow_gives_what_the_format_has_or_the_largest_number(arch, kind):
    numbers = decoded(arch, kind)
    largest = float(np.max(numbers[np.isfinite(numbers)]))
    with np.errstate(over="ignore"):
        values = (largest * np.concatenate([BEYOND, -BEYOND])).astype(np.float32)
    plain = numbers[convert(arch, kind, values) & 255]
    saturated = numbers[convert(arch, kind, values, SATURATING) & 255]
    step = largest - float(np.sort(numbers[np.isfinite(numbers)])[-2])
    for value, got, clipped in zip(values, plain, saturated, strict=True):
        sign = np.sign(value)
        if abs(value) <= largest + step / 2 and (abs(value) < largest + step / 2):
            assert got == clipped == sign * largest
        else:
            beyond = np.isinf(got) if (arch, kind) == ("gfx950", "bf8") else np.isnan(got)
            assert beyond, value
            assert clipped == sign * largest


@pytest.mark.parametrize(("arch", "kind"), EVERY)
def test_nan_stays_nan_and_the_other_word_stays(arch, kind):
    outcome = execute(
        arch,
        f"v_cvt_pk_{kind}_f32 v0, v1, v2",
        registers={"v0": 0x12345678, "v1": 0x7FC00000, "v2": 0xFFC00000},
    )
    codes = int(outcome.v(0)[0, 0])
    assert codes >> 16 == 0x1234
    numbers = decoded(arch, kind)
    assert np.isnan(numbers[codes & 255]) and np.isnan(numbers[codes >> 8 & 255])


@pytest.mark.parametrize(("arch", "kind"), EVERY)
def test_stochastic_rounding_adds_its_bits_before_cutting(arch, kind):
    """Without noise it truncates, with all ones it rounds up; the byte is op_sel's."""
    numbers = decoded(arch, kind)
    finite = np.sort(numbers[np.isfinite(numbers) & (numbers >= 0.25) & (numbers < 16)])
    between = (finite[:-1] + (finite[1:] - finite[:-1]) * 0.3).astype(np.float32)
    body = (
        f"v_cvt_sr_{kind}_f32 v0, v1, v2 op_sel:[0,0,1,0]\n"
        f"v_cvt_sr_{kind}_f32 v0, v1, v3 op_sel:[0,0,1,1]"
    )
    lanes, waves = per_lane(between.view(np.uint32))
    registers = {"v0": 0x5A5A5A5A, "v1": lanes, "v2": 0, "v3": 0xFFFFFFFF}
    outcome = execute(arch, body, registers=registers, waves=waves)
    got = outcome.v(0).reshape(-1)[: len(between)]
    assert ((got & 0x00FF00FF) == 0x005A005A).all()
    assert (numbers[got >> 8 & 255] == finite[:-1]).all()
    assert (numbers[got >> 24] == finite[1:]).all()


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def test_fp4_is_scaled_and_saturates():
    values = ties_and_neighbours(np.concatenate([FP4, -FP4]))
    values = np.concatenate([values[~np.isnan(values)], np.float32([7, 100, -1e9, np.inf])])
    lanes, waves = per_lane(values.view(np.uint32))
    body = "v_cvt_scalef32_pk_fp4_f32 v0, v1, v1, v2 op_sel:[0,0,1,0]"
    scale = np.float32(8.0).view(np.uint32)
    registers = {"v0": 0xFFFFFFFF, "v1": lanes, "v2": scale}
    outcome = execute("gfx950", body, registers=registers, waves=waves)
    got = outcome.v(0).reshape(-1)[: len(values)]
    assert ((got & 0xFFFF00FF) == 0xFFFF00FF).all()
    code = got >> 8 & 15
    assert (code == got >> 12 & 15).all()
    for value, bits in zip(values / np.float32(8), code, strict=True):
        distance = np.abs(FP4 - abs(value))
        nearest = np.flatnonzero(distance == distance.min())
        expected = min(nearest, key=lambda n: n % 2)  # ties to the even code
        assert bits & 7 == (7 if abs(value) > 6 else expected)
        assert bool(bits & 8) == np.signbit(value)


@pytest.mark.parametrize("wide", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("kind", ["fp8", "bf8", "fp4"])
def test_scaled_conversions_go_there_and_back(wide, kind):
    """Every code times 4, then divided by 4: the same code, in the chosen word or byte."""
    count = 16 if kind == "fp4" else 256
    numbers = np.concatenate([FP4, -FP4]) if kind == "fp4" else decoded("gfx950", kind)
    code = np.arange(count)[np.isfinite(numbers) & (np.abs(numbers) < 8000)]
    bits = 4 if kind == "fp4" else 8
    lanes, waves = per_lane((code | code << bits).astype(np.uint32))
    place = "op_sel:[1,0,0]" if bits == 4 else "op_sel:[1,0]"
    shift = 8 if bits == 4 else 16
    up = "v[4:5]" if wide == "f32" else "v4"
    sources = "v4, v5" if wide == "f32" else "v4"
    chosen = "op_sel:[0,0,0,1]"
    body = (
        f"v_lshlrev_b32 v1, {shift}, v0\nv_cvt_scalef32_pk_{wide}_{kind} {up}, v1, v2 {place}\n"
        f"v_cvt_scalef32_pk_{kind}_{wide} v6, {sources}, v2 {chosen}"
    )
    scale = np.float32(4).view(np.uint32)
    registers = {"v0": lanes, "v2": scale, "v6": 0}
    outcome = execute("gfx950", body, registers=registers, waves=waves)
    raw = outcome.v(4)
    if wide == "f32":
        low = raw.view(np.float32)
    elif wide == "f16":
        low = (raw & 0xFFFF).astype(np.uint16).view(np.float16).astype(np.float32)
    else:
        low = (raw << np.uint32(16)).view(np.float32)
    assert same(low.reshape(-1)[: len(code)], numbers[code] * 4)
    back = outcome.v(6).reshape(-1)[: len(code)] >> 16
    assert ((back & ((1 << bits) - 1)) == code).all()
    assert ((back >> bits & ((1 << bits) - 1)) == code).all()


@pytest.mark.parametrize(
    "line",
    [
        "v_cvt_pk_fp8_f32 v0, v1, v2 clamp",
        "v_cvt_pk_fp8_f32 v0, v1, v2 op_sel:[1,0,0]",
        "v_cvt_f32_fp8_sdwa v0, v1 src0_sel:WORD_1",
        "v_cvt_f32_fp8_sdwa v0, v1 dst_sel:WORD_1 src0_sel:BYTE_0",
        "v_cvt_f32_fp8_dpp v0, v1 row_shl:1",
        "v_cvt_scalef32_sr_fp8_f32 v0, v1, v2, v3",
        "v_cvt_scalef32_pk32_f32_fp6 v[0:31], v[32:37], v38",
    ],
)
def test_what_is_not_honoured_is_refused(line):
    with pytest.raises(Unsupported):
        execute("gfx950", line)
