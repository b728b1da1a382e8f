"""The backend AMDOPT_ATTN by itself: its classes called as vLLM calls them.

For what no model here has (sinks, ALiBi) and what a CPU does not serve (drafts, CUDA graphs).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata

from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.integration import attention_backend, faults
from vllm_amdopt.integration.attention_backend import (
    AmdOptAttentionBackend,
    AmdOptAttentionImpl,
    AmdOptAttentionMetadataBuilder,
)
from vllm_amdopt.ops import paged_attention_prefill
from vllm_amdopt.ops.tolerance import excess

HEADS, KV_HEADS, SIZE, BLOCK = 4, 2, 64, 16


def builder(draft_tokens: int | None) -> AmdOptAttentionMetadataBuilder:
    speculative = None
    if draft_tokens is not None:
        speculative = SimpleNamespace(
            num_speculative_tokens=draft_tokens, parallel_drafting=False, use_dflash=lambda: False
        )
    config: Any = SimpleNamespace(
        speculative_config=speculative,
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        model_config=SimpleNamespace(get_num_attention_heads=lambda parallel: HEADS),
    )
    spec = SimpleNamespace(num_kv_heads=KV_HEADS, head_size=SIZE)
    return AmdOptAttentionMetadataBuilder(spec, ["layer"], config, torch.device("cpu"))


def batch(query_lens: tuple[int, ...], seq_lens: tuple[int, ...]) -> CommonAttentionMetadata:
    starts = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32)
    blocks = -(-max(seq_lens) // BLOCK)
    table = torch.arange(len(seq_lens) * blocks, dtype=torch.int32).view(len(seq_lens), blocks)
    slots = [
        int(table[i, position // BLOCK]) * BLOCK + position % BLOCK
        for i, (n, length) in enumerate(zip(query_lens, seq_lens, strict=True))
        for position in range(length - n, length)
    ]
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        num_reqs=len(seq_lens),
        num_actual_tokens=sum(query_lens),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
        block_table_tensor=table,
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
    )


@pytest.mark.parametrize(
    ("draft_tokens", "query_lens", "decodes", "tokens", "prefills"),
    [
        pytest.param(None, (1, 1, 5), 2, 2, 1, id="single tokens"),
        pytest.param(None, (2, 5), 0, 0, 2, id="without drafts two tokens are a prefill"),
        pytest.param(3, (4, 4, 9), 2, 8, 1, id="drafts"),
        pytest.param(3, (4, 4, 2), 2, 8, 1, id="a shorter one is a prefill"),
        pytest.param(3, (4, 4, 0), 2, 8, 0, id="padding of a captured batch"),
        pytest.param(3, (1, 1), 2, 2, 0, id="no draft was made"),
    ],
)
def test_requests_with_equally_many_tokens_are_decoded(
    draft_tokens: int | None, query_lens: tuple[int, ...], decodes: int, tokens: int, prefills: int
) -> None:
    seq_lens = tuple(n and 20 + n for n in query_lens)
    meta = builder(draft_tokens).build(0, batch(query_lens, seq_lens))
    assert (meta.num_decodes, meta.num_decode_tokens, meta.num_prefills) == (
        decodes,
        tokens,
        prefills,
    )
    rest = [0]
    for n in query_lens[meta.first_prefill :]:
        rest.append(rest[-1] + n)
    assert not prefills or meta.query_start_loc.tolist() == rest


def test_uniform_batches_are_captured() -> None:
    assert AmdOptAttentionMetadataBuilder._cudagraph_support is AttentionCGSupport.UNIFORM_BATCH


@pytest.mark.parametrize("cache", ["auto", "fp8", "fp8_e4m3"])
def test_what_a_selector_asks_for_is_taken(cache: str) -> None:
    assert AmdOptAttentionBackend.supports_kv_cache_dtype(cache)  # type: ignore[arg-type]
    assert AmdOptAttentionBackend.supports_sink()
    assert not AmdOptAttentionBackend.supports_kv_cache_dtype("fp8_e5m2")


@pytest.mark.parametrize("engine", ["reference", "gfx942"])
@pytest.mark.parametrize("cache_dtype", ["auto", "fp8"])
def test_sinks_alibi_fp8_and_drafts_reach_the_operations(
    engine: str, cache_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests verify three tokens each, a third begins; the cache holds what was written."""
    generator = torch.Generator().manual_seed(5)
    how = "reference" if engine == "reference" else "triton"
    monkeypatch.setattr(attention_backend, "implementation", lambda: how)
    monkeypatch.setattr(attention_backend, "kernel_device", lambda: emulate("gfx942"))
    monkeypatch.setattr(attention_backend, "fp8_dtype", lambda: torch.float8_e4m3fnuz)
    monkeypatch.setattr(attention_backend, "chosen", lambda operation, **facts: "triton")
    monkeypatch.setattr(faults, "_disabled", {})
    sinks = torch.linspace(-1.0, 2.0, HEADS).to(torch.bfloat16)
    slopes = [0.5, 0.25, 0.125, 0.0625]
    impl = AmdOptAttentionImpl(
        HEADS, SIZE, SIZE**-0.5, KV_HEADS, slopes, None, cache_dtype, sinks=sinks
    )
    fp8 = cache_dtype == "fp8"
    layer: Any = SimpleNamespace(_k_scale_float=0.5 if fp8 else 1.0, _v_scale_float=0.75)
    whole, new = (40, 21, 18), (3, 3, 18)
    lens = batch(whole, whole)
    key, value = torch.randn(2, sum(whole), KV_HEADS, SIZE, generator=generator).to(torch.bfloat16)
    blocks = int(lens.block_table_tensor.max()) + 1
    cache = torch.zeros(
        blocks, KV_HEADS, BLOCK, 2 * SIZE, dtype=torch.uint8 if fp8 else torch.bfloat16
    )
    impl.do_kv_cache_update(layer, key, value, cache, lens.slot_mapping)
    meta = builder(2).build(0, batch(new, whole))
    assert (meta.num_decodes, meta.num_prefills) == (2, 1)
    query = torch.randn(sum(new), HEADS * SIZE, generator=generator).to(torch.bfloat16)
    out = torch.full_like(query, float("nan"))
    impl.forward(layer, query, key, value, cache, meta, out)
    assert faults._disabled == {}

    k_cache, v_cache = impl._split(cache)
    stored = k_cache.to(torch.float64)[lens.block_table_tensor[1, 0], :, 5]
    written = key[whole[0] + 5].double()
    torch.testing.assert_close(
        stored * layer._k_scale_float, written, rtol=2**-4 if fp8 else 0, atol=2**-9 if fp8 else 0
    )
    truth, same = (torch.empty(sum(new), HEADS, SIZE, dtype=d) for d in (torch.float64, out.dtype))
    for into, more in ((truth, {}), (same, {"compute_dtype": torch.bfloat16})):
        paged_attention_prefill.reference(
            query.view(-1, HEADS, SIZE).to(into.dtype), k_cache, v_cache, lens.block_table_tensor,
            lens.seq_lens, torch.tensor([0, 3, 6, 24]), SIZE**-0.5, into, max_query_len=18,
            max_seq_len=40, sinks=sinks, alibi_slopes=torch.tensor(slopes), **more,
            **({"k_scale": 0.5, "v_scale": 0.75} if fp8 else {}),
        )  # fmt: skip
    assert excess(out.view(-1, HEADS, SIZE), truth, same) is None
