"""Prefill attention: the kernel as emulated machine code against the reference."""

from __future__ import annotations

import pytest
import torch

from tests.ops.attention_cases import PREFILL_CASES, AttentionCase, check_attention
from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.ops import paged_attention_prefill

BY_NAME = {case.name: case for case in PREFILL_CASES}


@pytest.mark.parametrize("case", PREFILL_CASES, ids=[case.name for case in PREFILL_CASES])
def test_bfloat16_on_gfx942(case: AttentionCase) -> None:
    with emulate("gfx942"):
        assert check_attention(case, torch.bfloat16) is None


@pytest.mark.parametrize("name", ["chunks_and_decodes", "group_3_block_1_window_cap"])
def test_bfloat16_on_gfx950(name: str) -> None:
    with emulate("gfx950"):
        assert check_attention(BY_NAME[name], torch.bfloat16) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "float32"])
def test_other_dtypes_on_gfx942(dtype: torch.dtype) -> None:
    with emulate("gfx942"):
        assert check_attention(BY_NAME["chunks_and_decodes"], dtype) is None


def test_rows_beyond_the_last_query_are_not_touched() -> None:
    query = torch.randn(6, 2, 64).to(torch.bfloat16)
    cache = torch.randn(2, 1, 16, 64).to(torch.bfloat16)
    out = torch.full_like(query, float("nan"))
    with emulate("gfx942"):
        paged_attention_prefill.paged_attention_prefill(
            query,
            cache,
            cache,
            torch.tensor([[1]], dtype=torch.int32),
            torch.tensor([9], dtype=torch.int32),
            torch.tensor([0, 4], dtype=torch.int32),
            0.125,
            out,
            max_query_len=4,
            max_seq_len=9,
        )
    assert bool(out[:4].isfinite().all())
    assert bool(out[4:].isnan().all())


def test_no_query_launches_nothing() -> None:
    empty = torch.empty(0, 2, 64, dtype=torch.bfloat16)
    cache = torch.empty(1, 1, 16, 64, dtype=torch.bfloat16)
    with emulate("gfx942") as device:
        paged_attention_prefill.launch(
            empty,
            cache,
            cache,
            torch.zeros(1, 1, dtype=torch.int32),
            torch.zeros(1, dtype=torch.int32),
            torch.zeros(2, dtype=torch.int32),
            1.0,
            empty,
            max_query_len=0,
            max_seq_len=0,
        )
    assert not device.launches
