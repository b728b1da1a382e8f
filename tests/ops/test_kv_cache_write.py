"""Cache writes: the kernels as emulated machine code leave every byte as the reference does."""

from __future__ import annotations

import pytest
import torch

from tests.ops.plain_cases import (
    LATENT_CASES,
    WRITE_CASES,
    LatentCase,
    WriteCase,
    check_latent,
    check_write,
)
from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.ops import kv_cache_write


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("case", WRITE_CASES, ids=[case.name for case in WRITE_CASES])
def test_heads(case: WriteCase, arch: str) -> None:
    with emulate(arch):
        assert check_write(case, torch.bfloat16) is None


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("case", LATENT_CASES, ids=[case.name for case in LATENT_CASES])
def test_latents(case: LatentCase, arch: str) -> None:
    with emulate(arch):
        assert check_latent(case, torch.bfloat16) is None


def test_fp8_cache_is_refused() -> None:
    choice = kv_cache_write.OPERATION.choose(
        block_size=16, dtype=torch.bfloat16, cache_dtype=torch.float8_e4m3fnuz
    )
    assert choice.implementation is None
    assert "float8_e4m3fnuz" in choice.refusals["triton"]
