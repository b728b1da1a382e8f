"""The attention reference against PyTorch's own attention, given the same mask, bias and sinks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vllm_amdopt.ops import paged_attention_decode, paged_attention_prefill
from vllm_amdopt.ops.operation import RefusedError

HEADS, KV_HEADS, SIZE, LENGTH, BLOCK = 6, 2, 32, 21, 4


def inputs(cache_dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """One sequence, its blocks in order; keys and values [LENGTH, KV_HEADS, SIZE] as stored."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (
        torch.randn(LENGTH + 3, KV_HEADS, SIZE, generator=generator).to(cache_dtype)
        for _ in range(2)
    )
    paged = {
        name: stored.view(-1, BLOCK, KV_HEADS, SIZE).transpose(1, 2)
        for name, stored in (("k_cache", keys), ("v_cache", values))
    }
    return {
        **paged,
        "block_table": torch.arange(6, dtype=torch.int32)[None],
        "seq_lens": torch.tensor([LENGTH], dtype=torch.int32),
        "keys": keys[:LENGTH].double(),
        "values": values[:LENGTH].double(),
        "query": torch.randn(LENGTH, HEADS, SIZE, generator=generator).double(),
    }


def by_pytorch(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    window: int,
) -> Tensor:
    """softmax(query @ keys / 8 + bias) @ values; a sink is a key of zeros with the sink as bias."""
    tokens, length = query.shape[0], keys.shape[0]
    bias = torch.zeros(HEADS, tokens, length, dtype=torch.float64)
    for i in range(tokens):
        position = length - tokens + i
        for j in range(length):
            if j > position or (window and j <= position - window):
                bias[:, i, j] = -math.inf
            elif alibi_slopes is not None:
                bias[:, i, j] = alibi_slopes.double() * (j - position)
    q, k, v = (t.transpose(0, 1) for t in (query, keys, values))
    k, v = (t.repeat_interleave(HEADS // KV_HEADS, 0) for t in (k, v))
    if sinks is not None:
        nothing = torch.zeros(HEADS, 1, SIZE, dtype=torch.float64)
        k, v = torch.cat([k, nothing], 1), torch.cat([v, nothing], 1)
        bias = torch.cat([bias, sinks.double().view(-1, 1, 1).expand(-1, tokens, 1)], 2)
    attention = torch.nn.functional.scaled_dot_product_attention
    return attention(q, k, v, attn_mask=bias, scale=0.125).transpose(0, 1)


@pytest.mark.parametrize("tokens", [1, 5, LENGTH])
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("alibi", [False, True], ids=["plain", "alibi"])
@pytest.mark.parametrize("operation", [paged_attention_prefill, paged_attention_decode])
def test_agrees(operation, tokens, window, sinks, alibi) -> None:
    given = inputs()
    sink = torch.linspace(-1.0, 4.0, HEADS) if sinks else None
    slopes = torch.linspace(0.01, 1.0, HEADS) if alibi else None
    query = given["query"][:tokens]
    out = torch.full_like(query, math.nan)
    prefill = operation is paged_attention_prefill
    starts = (torch.tensor([0, tokens], dtype=torch.int32),) if prefill else ()
    operation.reference(
        query, given["k_cache"], given["v_cache"], given["block_table"], given["seq_lens"],
        *starts, 0.125, out, max_seq_len=LENGTH, sliding_window=window, sinks=sink,
        alibi_slopes=slopes, k_scale=0.5, v_scale=3.0,
        **({"max_query_len": tokens} if prefill else {}),
    )  # fmt: skip
    expected = by_pytorch(query, given["keys"] * 0.5, given["values"] * 3.0, sink, slopes, window)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_an_fp8_cache_is_what_is_stored_times_the_scales(dtype) -> None:
    given = inputs(dtype)
    query = given["query"][:2]
    out = torch.full_like(query, math.nan)
    paged_attention_decode.reference(
        query, given["k_cache"], given["v_cache"], given["block_table"], given["seq_lens"], 0.125,
        out, max_seq_len=LENGTH, k_scale=0.25, v_scale=2.0,
    )  # fmt: skip
    expected = by_pytorch(query, given["keys"] * 0.25, given["values"] * 2.0, None, None, 0)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_more_tokens_than_the_decode_kernel_takes_are_refused_in_words() -> None:
    query = torch.empty(17, 2, 64)
    cache = torch.empty(1, 1, 16, 64)
    table, lengths = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    with pytest.raises(RefusedError, match="up to 16 query tokens per sequence, not 17"):
        paged_attention_decode.paged_attention_decode(
            query, cache, cache, table, lengths, 1.0, query, max_seq_len=32
        )
