"""Matrix instructions: layouts by one-hot inputs and exact products, all shapes and types.

Where an element lies is written down here a second time, as formulas by element. For the dense
instructions of CDNA3 they agree with AMD's "Matrix Instruction Calculator" (checked element by
element when this file was written); for those of gfx950 alone they continue the pattern.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.emulator.machine_code import execute
from vllm_amdopt.emulator.definitions import Unsupported

BOTH = ("gfx942", "gfx950")
BITS = {"f64": 64, "f32": 32, "xf32": 32, "f16": 16, "bf16": 16}


class Case(NamedTuple):
    name: str
    size: int
    depth: int
    blocks: int
    a: str
    b: str
    result: str = "f32"
    arches: tuple[str, ...] = BOTH


def dense(size: int, depth: int, kind: str, arches: tuple[str, ...] = BOTH, blocks: int = 1):
    result = {"i8": "i32", "f64": "f64"}.get(kind, "f32")
    infix = f"_{blocks}b" if blocks > 1 else ""
    name = f"v_mfma_{result}_{size}x{size}x{depth}{infix}_{kind}"
    return Case(name, size, depth, blocks, kind, kind, result, arches)


CASES = [
    dense(32, 8, "bf16"),
    dense(16, 16, "bf16"),
    dense(32, 8, "f16"),
    dense(16, 16, "f16"),
    dense(32, 2, "f32"),
    dense(16, 4, "f32"),
    dense(32, 4, "xf32", ("gfx942",)),
    dense(16, 8, "xf32", ("gfx942",)),
    dense(32, 16, "i8"),
    dense(16, 32, "i8"),
    dense(16, 4, "f64"),
    dense(4, 4, "f64", blocks=4),
    *(dense(32, d, k, blocks=2) for d, k in ((1, "f32"), (4, "f16"), (4, "bf16"), (4, "i8"))),
    *(dense(16, d, k, blocks=4) for d, k in ((1, "f32"), (4, "f16"), (4, "bf16"), (4, "i8"))),
    *(dense(4, d, k, blocks=16) for d, k in ((1, "f32"), (4, "f16"), (4, "bf16"), (4, "i8"))),
    *(dense(32, 16, k, ("gfx950",)) for k in ("bf16", "f16")),
    *(dense(16, 32, k, ("gfx950",)) for k in ("bf16", "f16")),
    dense(32, 32, "i8", ("gfx950",)),
    dense(16, 64, "i8", ("gfx950",)),
    *(
        Case(f"v_mfma_f32_{size}x{size}x{depth}_{a}_{b}", size, depth, 1, a, b)
        for size, depth in ((32, 16), (16, 32))
        for a in ("fp8", "bf8")
        for b in ("fp8", "bf8")
    ),
]
F8F6F4 = [
    Case(f"v_mfma_f32_{size}x{size}x{depth}_f8f6f4", size, depth, 1, a, b, "f32", ("gfx950",))
    for size, depth in ((16, 128), (32, 64))
    for a, b in (("fp8", "fp8"), ("bf8", "fp8"), ("fp4", "fp4"), ("fp6", "bf6"), ("fp8", "fp4"))
]
FORMATS = ("fp8", "bf8", "fp6", "bf6", "fp4")


def place_of_input(case: Case, kind: str, block: int, i: int, k: int) -> tuple[int, int]:
    """A[block, i, k] (or B[block, k, i]) -> (lane, element of the lane)"""
    if case.name.startswith("v_mfma_f64_4x4"):
        return k * 16 + block * 4 + i, 0
    if case.blocks > 1:
        return block * case.size + i, k
    if case.name.endswith("f8f6f4") and kind in ("fp8", "bf8"):
        groups = 64 // case.size
        return i + case.size * (k // 16 % groups), k // (16 * groups) * 16 + k % 16
    each = case.depth * case.size // 64
    return i + case.size * (k // each), k % each


def place_of_result(case: Case, block: int, i: int, j: int) -> tuple[int, int]:
    """D[block, i, j] -> (lane, value of the lane)"""
    if case.result == "f64":
        return (i * 16 + block * 4 + j, 0) if case.size == 4 else (j + 16 * (i % 4), i // 4)
    if case.size == 32:
        return j + 32 * (i // 4 % 2), 16 * block + 4 * (i // 8) + i % 4
    if case.size == 16:
        return j + 16 * (i // 4), 4 * block + i % 4
    return 4 * block + j, i


def codes(kind: str, arch: str, values: np.ndarray) -> np.ndarray:
    """Small integers -> the bit patterns of a type, by PyTorch where it has the type."""
    tensor = torch.from_numpy(values.astype(np.float32))
    fnuz = "fnuz" if arch == "gfx942" else ""
    if kind in ("f64", "f32", "f16"):
        return values.astype(kind.replace("f", "<f")[:2] + str(BITS[kind] // 8)).view(
            f"u{BITS[kind] // 8}"
        )
    if kind == "xf32":
        return values.astype(np.float32).view(np.uint32)
    if kind == "bf16":
        return tensor.bfloat16().view(torch.uint16).numpy()
    if kind == "i8":
        return values.astype(np.int8).view(np.uint8)
    if kind == "fp8":
        dtype = getattr(torch, f"float8_e4m3fn{'uz' if fnuz else ''}")
        return tensor.to(dtype).view(torch.uint8).numpy()
    if kind == "bf8":
        return tensor.to(getattr(torch, f"float8_e5m2{fnuz}")).view(torch.uint8).numpy()
    # FP4 E2M1, FP6 E2M3 and E3M2: -2 to 2 in each
    table = {
        "fp4": {0: 0, 1: 2, 2: 4, -1: 10, -2: 12},
        "fp6": {0: 0, 1: 8, 2: 16, -1: 40, -2: 48},
        "bf6": {0: 0, 1: 12, 2: 16, -1: 44, -2: 48},
    }[kind]
    return np.vectorize(table.__getitem__)(values.astype(int)).astype(np.uint8)


WIDTH = {"i8": 8, "fp8": 8, "bf8": 8, "fp4": 4, "fp6": 6, "bf6": 6, **BITS}


def registers_of(case: Case, kind: str, arch: str, matrices: np.ndarray) -> np.ndarray:
    """(waves, blocks, size, depth) -> u32 (registers, waves, 64)"""
    bits = WIDTH[kind]
    each = case.depth * case.size * case.blocks // 64
    patterns = codes(kind, arch, matrices)
    waves = len(matrices)
    lanes = np.zeros((waves, 64, each), np.uint64)
    for block in range(case.blocks):
        for i in range(case.size):
            for k in range(case.depth):
                lane, element = place_of_input(case, kind, block, i, k)
                lanes[:, lane, element] = patterns[:, block, i, k]
    single = (lanes[..., None] >> np.arange(bits, dtype=np.uint64) & 1).astype(np.uint8)
    packed = np.packbits(single.reshape(waves, 64, each * bits), axis=-1, bitorder="little")
    return packed.view(np.uint32).transpose(2, 0, 1)


def product(case: Case, arch: str, a, b, c=None, text: str = "") -> np.ndarray:
    """Run the instruction on (waves, blocks, size, depth) matrices, B transposed
    -> (waves, blocks, size, size) in f64"""
    waves = len(a)
    inputs = [registers_of(case, case.a, arch, a), registers_of(case, case.b, arch, b)]
    counts = [len(x) for x in inputs]
    dwords = 2 if case.result == "f64" else 1
    values = case.size * case.size * case.blocks // 64
    first = [0, counts[0] + counts[0] % 2]
    d = first[1] + counts[1] + counts[1] % 2
    registers = {}
    for start, block in zip(first, inputs, strict=True):
        registers |= {f"v{start + n}": block[n] for n in range(len(block))}
    as_type = {"f32": np.float32, "i32": np.int32, "f64": np.float64}[case.result]
    addend = "0"
    if c is not None:
        lanes = np.zeros((values, waves, 64), as_type)
        for block in range(case.blocks):
            for i in range(case.size):
                for j in range(case.size):
                    lane, value = place_of_result(case, block, i, j)
                    lanes[value, :, lane] = c[:, block, i, j]
        addend = f"v[{d}:{d + values * dwords - 1}]"
        for n in range(values):
            if dwords == 2:
                registers[f"v[{d + 2 * n}:{d + 2 * n + 1}]"] = lanes[n]
            else:
                registers[f"v{d + n}"] = lanes[n].view(np.uint32)
    names = [
        f"v[{start}:{start + count - 1}]" if count > 1 else f"v{start}"
        for start, count in zip(first, counts, strict=True)
    ]
    target = f"v[{d}:{d + values * dwords - 1}]"
    line = f"{case.name} {target}, {names[0]}, {names[1]}, {addend} {text}"
    outcome = execute(arch, line, registers=registers, waves=waves)
    result = np.zeros((waves, case.blocks, case.size, case.size))
    for block in range(case.blocks):
        for i in range(case.size):
            for j in range(case.size):
                lane, value = place_of_result(case, block, i, j)
                raw = outcome.v64(d + 2 * value) if dwords == 2 else outcome.v(d + value)
                result[:, block, i, j] = raw.view(as_type)[:, lane]
    return result


def small_integers(case: Case, seed: int, kind: str, waves: int) -> np.ndarray:
    limit = 2 if kind in ("fp4", "fp6", "bf6") else 4
    shape = (waves, case.blocks, case.size, case.depth)
    return np.random.default_rng(seed).integers(-limit, limit + 1, shape).astype(float)


EVERY = [(case, arch) for case in CASES for arch in case.arches]
IDS = [f"{case.name.removeprefix('v_mfma_')}-{arch}" for case, arch in EVERY]


@pytest.mark.parametrize(("case", "arch"), EVERY, ids=IDS)
def test_product_of_known_matrices(case, arch):
    a, b = small_integers(case, 1, case.a, 2), small_integers(case, 2, case.b, 2)
    c = np.random.default_rng(3).integers(-9, 9, (2, case.blocks, case.size, case.size))
    expected = a @ b.swapaxes(-1, -2)
    assert np.array_equal(product(case, arch, a, b), expected)
    assert np.array_equal(product(case, arch, a, b, c), expected + c)


@pytest.mark.parametrize(("case", "arch"), EVERY, ids=IDS)
def test_one_hot_inputs_pick_a_row(case, arch):
    """A single one in A at (i, k) gives row k of B in row i: one wave per place, 16 places."""
    rng = np.random.default_rng(7)
    waves = 16
    a = np.zeros((waves, case.blocks, case.size, case.depth))
    where = [
        (rng.integers(case.blocks), rng.integers(case.size), rng.integers(case.depth))
        for _ in range(waves)
    ]
    for wave, at in enumerate(where):
        a[wave][at] = 1
    b = small_integers(case, 8, case.b, waves)
    result = product(case, arch, a, b)
    for wave, (block, i, k) in enumerate(where):
        expected = np.zeros_like(result[wave])
        expected[block, i] = b[wave, block, :, k]
        assert np.array_equal(result[wave], expected)


@pytest.mark.parametrize("case", F8F6F4, ids=lambda c: f"{c.size}-{c.a}-{c.b}")
def test_f8f6f4_kinds_choose_their_formats(case):
    a, b = small_integers(case, 4, case.a, 2), small_integers(case, 5, case.b, 2)
    text = f"cbsz:{FORMATS.index(case.a)} blgp:{FORMATS.index(case.b)}"
    assert np.array_equal(product(case, "gfx950", a, b, text=text), a @ b.swapaxes(-1, -2))


def test_scaled_product_takes_one_exponent_per_row_and_32_elements():
    case = Case("v_mfma_f32_16x16x128_f8f6f4", 16, 128, 1, "fp8", "fp8")
    rng = np.random.default_rng(6)
    a, b = small_integers(case, 4, "fp8", 1)[0, 0], small_integers(case, 5, "fp8", 1)[0, 0]
    exponents = rng.integers(124, 131, (2, 16, 4))  # matrix, row, block of 32 elements
    lanes = np.arange(64)
    scales = [e[lanes % 16, lanes // 16] for e in exponents]
    registers = {
        f"v{n}": x for n, x in enumerate(registers_of(case, "fp8", "gfx950", a[None, None]))
    }
    registers |= {
        f"v{8 + n}": x for n, x in enumerate(registers_of(case, "fp8", "gfx950", b[None, None]))
    }
    registers |= {"v16": scales[0] << 8, "v17": scales[1] << 16}  # bytes 1 and 2
    line = (
        "v_mfma_scale_f32_16x16x128_f8f6f4 v[20:23], v[0:7], v[8:15], 0, v16, v17 "
        "op_sel:[1,0,0] op_sel_hi:[0,1,0]"
    )
    outcome = execute("gfx950", line, registers=registers)
    factors = 2.0 ** (exponents - 127.0)
    scaled = [
        (matrix.reshape(16, 4, 32) * factor[..., None]).reshape(16, 128)
        for matrix, factor in zip((a, b), factors, strict=True)
    ]
    expected = scaled[0] @ scaled[1].T
    for i in range(16):
        for j in range(16):
            lane, value = place_of_result(case, 0, i, j)
            assert outcome.v(20 + value).view(np.float32)[0, lane] == np.float32(expected[i, j])


def test_accumulation_in_a_registers_and_a_constant_addend():
    ones = np.full((1, 64), 0x3F80_3F80, np.uint32)  # bf16 1.0 twice
    registers = {f"v{n}": ones for n in range(4)} | {f"a{n}": 0x4000_0000 for n in range(4)}
    line = (
        "v_mfma_f32_16x16x16_bf16 a[0:3], v[0:1], v[2:3], a[0:3]\n"
        "v_mfma_f32_16x16x16_bf16 a[4:7], v[0:1], v[2:3], 1.0"
    )
    outcome = execute("gfx942", line, registers=registers)
    for n in range(4):
        assert (outcome.v(n, "a").view(np.float32) == 18).all()
        assert (outcome.v(4 + n, "a").view(np.float32) == 17).all()


def test_exec_does_not_matter():
    ones = np.full((1, 64), 0x3F80_3F80, np.uint32)
    registers = {f"v{n}": ones for n in range(4)} | {"exec": 1}
    outcome = execute(
        "gfx942", "v_mfma_f32_16x16x16_bf16 v[4:7], v[0:1], v[2:3], 0", registers=registers
    )
    assert (outcome.v(7).view(np.float32) == 16).all()


def test_xf32_drops_13_bits_of_the_mantissa():
    case = dense(16, 8, "xf32")
    a = np.zeros((1, 1, 16, 8))
    a[0, 0, 0, 0] = 1 + 2.0**-12  # below half of the last bit kept
    a[0, 0, 1, 0] = 1 + 2.0**-11 + 2.0**-12  # above half
    b = np.zeros((1, 1, 16, 8))
    b[0, 0, 0, 0] = 1
    result = product(case, "gfx942", a, b)[0, 0]
    assert result[0, 0] == 1
    assert result[1, 0] == 1 + 2.0**-10


def test_f64_negates_its_operands():
    case = dense(16, 4, "f64")
    a, b = small_integers(case, 1, "f64", 1), small_integers(case, 2, "f64", 1)
    c = np.random.default_rng(3).integers(-9, 9, (1, 1, 16, 16))
    expected = a @ b.swapaxes(-1, -2)
    assert np.array_equal(product(case, "gfx942", a, b, c, "neg:[1,0,0]"), c - expected)
    assert np.array_equal(product(case, "gfx942", a, b, c, "neg:[1,1,1]"), expected - c)


@pytest.mark.parametrize(
    "line",
    [
        "v_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], 0 cbsz:1",
        "v_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], 0 abid:1",
        "v_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], 0 blgp:2",
        "v_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], 0 neg:[1,0,0]",
        "v_mfma_f32_16x16x17_bf16 v[0:3], v[4:5], v[6:7], 0",
        "v_smfmac_f32_16x16x32_bf16 v[0:3], v[4:5], v[6:9], v10",
    ],
)
def test_what_is_not_emulated_is_refused(line):
    with pytest.raises(Unsupported):
        execute("gfx942", line)
