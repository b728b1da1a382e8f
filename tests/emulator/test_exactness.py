"""Bit-exact checks: division and square root as LLVM expands them, fma, casts of small floats."""

import numpy as np
import pytest
import torch
import triton

from tests.emulator import kernels
from vllm_amdopt.emulator.launch import launch

COUNT = 6000


def bits(seed: int, dtype: type, random_bits: bool) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if not random_bits:
        return generator.standard_normal(COUNT).astype(dtype)
    unsigned = {4: np.uint32, 8: np.uint64}[np.dtype(dtype).itemsize]
    return generator.integers(0, 2**64, COUNT, dtype=np.uint64).astype(unsigned).view(dtype)


def different(out: torch.Tensor, expected: np.ndarray) -> int:
    """how many values are not the same bits (any NaN equals any NaN)"""
    got = out.numpy()
    unsigned = {4: np.uint32, 8: np.uint64}[got.dtype.itemsize]
    same = (got.view(unsigned) == expected.view(unsigned)) | (np.isnan(got) & np.isnan(expected))
    return int((~same).sum())


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("random_bits", [True, False], ids=["random-bits", "normal"])
def test_float32_division_root_and_fma_are_bit_exact(arch, random_bits):
    a, b = bits(1, np.float32, random_bits), bits(2, np.float32, random_bits)
    out = [torch.zeros(COUNT) for _ in range(3)]
    inputs = [torch.from_numpy(v.copy()) for v in (a, b)]
    grid = (triton.cdiv(COUNT, 1024),)
    launch(kernels.divide_root_fma_f32, grid, *inputs, *out, COUNT, BLOCK=1024, arch=arch)
    with np.errstate(all="ignore"):
        assert different(out[0], a / b) == 0
        assert different(out[1], np.sqrt(a)) == 0
        fused = (a.astype(np.longdouble) * b + a).astype(np.float32)
        assert different(out[2], fused) == 0


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("random_bits", [True, False], ids=["random-bits", "normal"])
def test_float64_division_and_root(arch, random_bits):
    a, b = bits(3, np.float64, random_bits), bits(4, np.float64, random_bits)
    out = [torch.zeros(COUNT, dtype=torch.float64) for _ in range(2)]
    inputs = [torch.from_numpy(v.copy()) for v in (a, b)]
    grid = (triton.cdiv(COUNT, 1024),)
    launch(kernels.divide_root_f64, grid, *inputs, *out, COUNT, BLOCK=1024, arch=arch)
    with np.errstate(all="ignore"):
        # off by the last bit for a few subnormal quotients (docs/emulator.md)
        assert different(out[0], a / b) <= (8 if random_bits else 0)
        assert different(out[1], np.sqrt(a)) == 0


@pytest.mark.parametrize(
    ("arch", "small"),
    [
        ("gfx942", torch.float8_e4m3fnuz),
        ("gfx942", torch.float8_e5m2fnuz),
        ("gfx950", torch.float8_e4m3fn),
        ("gfx950", torch.float8_e5m2),
        ("gfx942", torch.bfloat16),
        ("gfx950", torch.bfloat16),
        ("gfx942", torch.float16),
        ("gfx950", torch.float16),
    ],
    ids=lambda v: str(v).removeprefix("torch."),
)
def test_casts_between_float32_and_small_floats(arch, small):
    x = torch.randn(512) * 20
    x[:6] = torch.tensor([0.0, -0.0, 1e-3, -(2.0**-9), 1.0625, 2.0**-14])
    narrow = torch.zeros(512).to(small)
    launch(kernels.cast, (1,), x, narrow, 512, BLOCK=512, arch=arch)
    assert torch.equal(narrow.float(), x.to(small).float())
    wide = torch.full((512,), float("nan"))
    launch(kernels.cast, (1,), narrow, wide, 512, BLOCK=512, arch=arch)
    assert torch.equal(wide, narrow.float())
