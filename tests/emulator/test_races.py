"""LDS races: none in correct kernels, some when a barrier is taken out of the machine code."""

import pytest
import torch

from tests.emulator import kernels
from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.emulator.run import run


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_a_dropped_barrier_is_reported(arch):
    x = torch.randn(3, 1000)
    y = torch.empty_like(x)
    with emulate(arch, races=True) as device:
        compiled = kernels.softmax[(3,)](x, y, 1000, 1000, BLOCK=1024, num_warps=4)
    assert device.launches[-1]["lds_races"] == []
    lines = compiled.asm["amdgcn"].splitlines()
    barriers = [i for i, line in enumerate(lines) if line.strip().startswith("s_barrier")]
    assert barriers
    reports = []
    for i in barriers:
        counts = run(
            "\n".join(lines[:i] + lines[i + 1 :]),
            compiled.metadata.name,
            (3,),
            4,
            [x, torch.empty_like(x), 1000, 1000],
            arch,
            compiled.metadata.shared,
            races=True,
        )
        reports.append(counts["lds_races"])
    assert any(reports)
    assert "by wave" in next(r for r in reports if r)[0]


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_a_matmul_through_lds_has_no_race(arch):
    a, b = torch.randn(64, 128).bfloat16(), torch.randn(64, 128).bfloat16()
    c = torch.empty(64, 64).bfloat16()
    with emulate(arch, races=True) as device:
        kernels.matmul[(1, 1)](
            *(a, b, c, 64, 64, 128, 128, 1, 128, 64), BM=64, BN=64, BK=64, num_stages=2
        )
    assert device.launches[-1]["lds_races"] == []
    assert device.launches[-1]["bytes"]["lds_load"] > 0
