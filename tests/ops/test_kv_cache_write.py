"""Cache writes: what is refused. The kernels run in tests/kernels."""

from __future__ import annotations

import pytest
import torch

from vllm_amdopt.ops import kv_cache_write
from vllm_amdopt.ops.operation import Operation


@pytest.mark.parametrize("operation", [kv_cache_write.OPERATION, kv_cache_write.LATENT_OPERATION])
def test_fp8_is_the_chips_own(operation: Operation) -> None:
    facts = {"block_size": 16, "dtype": torch.bfloat16, "gfx": "gfx942"}
    own = operation.choose(**facts, cache_dtype=torch.float8_e4m3fnuz)
    assert own.implementation is not None
    other = operation.choose(**facts, cache_dtype=torch.float8_e4m3fn)
    assert other.implementation is None
    assert "gfx942 computes with float8_e4m3fnuz" in other.refusals["triton"]
