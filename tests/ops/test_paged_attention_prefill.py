"""Prefill attention: what the cases of tests/kernels do not hold."""

from __future__ import annotations

import torch

from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.ops import paged_attention_prefill


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
