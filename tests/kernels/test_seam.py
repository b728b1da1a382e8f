"""`emulate(gfx)`: what a kernel test outside this project would use, on kernels of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton import knobs

from tests.kernels import user_kernels
from tests.kernels.registry import GFX
from vllm_amdopt.emulator.definitions import MemFault


@pytest.mark.parametrize("gfx", GFX)
@pytest.mark.parametrize("n", [1, 100, 1024])
def test_a_triton_kernel(n, gfx, emulate) -> None:
    x, y = torch.randn(n), torch.randn(n)
    out = torch.full((n,), float("nan"))
    with emulate(gfx) as device:
        user_kernels.vector_add[(-(-n // 256),)](x, y, out, n, BLOCK=256)
    assert torch.equal(out, x + y)
    assert device.launches[-1]["bytes"]["global_load"] == 2 * 4 * n


@pytest.mark.parametrize(("gfx", "version", "k"), [("gfx942", 3, 16), ("gfx950", 4, 32)])
def test_a_gluon_kernel_in_the_dialect_of_the_chip(gfx, version, k, emulate) -> None:
    a, b = torch.randn(16, k).to(torch.bfloat16), torch.randn(k, 16).to(torch.bfloat16)
    out = torch.full((16, 16), float("nan"))
    with emulate(gfx) as device:
        user_kernels.matrix_tile[(1,)](a, b, out, version, k, num_warps=1)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-6, atol=1e-6)
    assert device.launches[-1]["instrs"]["mfma"] == 1


def specialisation(gfx: str, emulate, *arguments) -> str:
    """the IR that Triton's launcher asked for"""
    with emulate(gfx):
        kernel = user_kernels.vector_add[(1,)](*arguments, BLOCK=64)
    return kernel.asm["ttir"]


def test_arguments_are_specialised_as_on_a_gpu(emulate) -> None:
    """multiples of 16, 1 as a constant, and storage under 2 GiB"""
    x = torch.zeros(4096)
    usual = specialisation("gfx942", emulate, x, x, x, 64)
    assert usual.count("tt.pointer_range = 32") == 3
    assert usual.count("tt.divisibility = 16") == 4
    assert specialisation("gfx942", emulate, x, x, x, 63).count("tt.divisibility = 16") == 3
    shifted = specialisation("gfx942", emulate, x[1:], x, x, 64)
    assert shifted.count("tt.divisibility = 16") == 3
    assert "%n" in usual and "%n" not in specialisation("gfx942", emulate, x, x, x, 1)
    large = torch.empty(2**29, dtype=torch.float32)
    assert specialisation("gfx942", emulate, x, x, large, 64).count("tt.pointer_range = 32") == 2


def test_an_access_outside_the_tensors_is_a_fault(emulate) -> None:
    x = torch.zeros(64)
    with pytest.raises(MemFault, match="outside every buffer"), emulate("gfx942"):
        user_kernels.vector_add[(1,)](x, x, x, 1 << 20, BLOCK=1 << 10)


PROGRAM = """
import os, time
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
import torch, triton
from tests.kernels.user_kernels import vector_add
from vllm_amdopt.emulator.launch import emulate
compiled = []
triton.knobs.compilation.listener = lambda **what: compiled.append(not what["cache_hit"])
x, out = torch.randn(1000), torch.zeros(1000)
started = time.process_time()
with emulate("gfx942"):
    vector_add[(4,)](x, x, out, 1000, BLOCK=256)
print(sum(compiled), time.process_time() - started)
assert torch.equal(out, x + x)
"""


def test_a_kernel_is_compiled_once_for_all_runs(tmp_path) -> None:
    """A new process finds it on disk. Also prints what the launch took, compilation included."""
    answers = []
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=Path(__file__).resolve().parents[2],
            env={"TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        compiled, seconds = run.stdout.split()
        answers.append(int(compiled))
        print(f"vector add, {'compiled' if int(compiled) else 'from disk'}: {seconds} CPU seconds")
    assert answers == [1, 0]


def test_triton_is_told_whether_to_fuse_multiply_and_add() -> None:
    assert knobs.language.default_fp_fusion
