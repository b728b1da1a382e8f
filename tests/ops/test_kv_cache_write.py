"""Cache writes: what is refused. The kernels run in tests/kernels."""

from __future__ import annotations

import torch

from vllm_amdopt.ops import kv_cache_write


def test_fp8_cache_is_refused() -> None:
    choice = kv_cache_write.OPERATION.choose(
        block_size=16, dtype=torch.bfloat16, cache_dtype=torch.float8_e4m3fnuz
    )
    assert choice.implementation is None
    assert "float8_e4m3fnuz" in choice.refusals["triton"]
