"""The small-batch GEMM: what the cases of tests/kernels do not hold, and refusals."""

from __future__ import annotations

import pytest
import torch

from tests.ops.plain_cases import same_bits
from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.ops import gemm_small_batch
from vllm_amdopt.ops.operation import RefusedError


def test_no_row_launches_nothing() -> None:
    with emulate("gfx942") as device:
        out = gemm_small_batch.gemm_small_batch(torch.empty(0, 8), torch.randn(4, 8))
    assert out.shape == (0, 4)
    assert not device.launches


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, weight = torch.randn(9, 128).to(torch.bfloat16), torch.randn(64, 128).to(torch.bfloat16)
    with emulate("gfx942"):
        together = gemm_small_batch.launch(x, weight, None)
        alone = gemm_small_batch.launch(x[3:4], weight, None)
    assert same_bits(together[3:4], alone)


def test_refusals_are_sentences() -> None:
    choice = gemm_small_batch.OPERATION.choose(
        n=64, k=64, dtype=torch.bfloat16, weight_dtype=torch.float8_e4m3fn
    )
    assert "float8_e4m3fn" in choice.refusals["triton"]
    choice = gemm_small_batch.OPERATION.choose(n=0, k=64, dtype=torch.bfloat16)
    assert "0 x 64" in choice.refusals["triton"]


def test_a_transposed_weight_is_refused() -> None:
    with pytest.raises(RefusedError, match="weight is not contiguous"):
        gemm_small_batch.gemm_small_batch(torch.randn(2, 8), torch.randn(8, 4).T)
