"""Decode attention by the Gluon kernel for CDNA: what it refuses, and its launch.

The operation, its reference and the portable implementation are in `paged_attention_decode`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vllm_amdopt.ops import cdna, refusals
from vllm_amdopt.ops.compute_units import compute_units
from vllm_amdopt.ops.operation import RefusedError
from vllm_amdopt.ops.workspace import workspace

HEAD_SIZES = (64, 80, 96, 128, 192, 256)
DTYPES = (torch.bfloat16, torch.float16)
MAX_ROWS = 16
"""Query heads per KV head times query tokens: the columns of one matrix instruction."""
MIN_BLOCK_SIZE = 8
"""Tokens whose values a lane reads from one block."""


def refusal(
    *,
    head_size: int,
    num_heads: int,
    num_kv_heads: int,
    block_size: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
    gfx: str | None = None,
    query_len: int = 1,
    has_sinks: bool = False,
    has_alibi: bool = False,
    has_scales: bool = False,
) -> str | None:
    """Why the Gluon kernel does not apply, or None. `cache_dtype` None is the same as `dtype`."""
    del has_scales, has_sinks, has_alibi
    group = num_heads // num_kv_heads if num_kv_heads > 0 else 0
    return refusals.first(
        cdna.no_gluon(gfx),
        cdna.unless(dtype in DTYPES, f"the Gluon kernel has no form for {refusals.short(dtype)}"),
        cdna.unless(
            cache_dtype in (None, dtype)
            or (gfx in refusals.COMPILED_FOR and cache_dtype is refusals.fp8_of(gfx)),
            "the Gluon kernel has no form for a KV cache of "
            f"{refusals.short(cache_dtype or dtype)} and queries of {refusals.short(dtype)}",
        ),
        cdna.unless(
            head_size in HEAD_SIZES, f"the Gluon kernel has no form for head size {head_size}"
        ),
        cdna.unless(
            group >= 1 and num_heads == group * num_kv_heads and group <= MAX_ROWS,
            f"the Gluon kernel takes 1 to {MAX_ROWS} query heads per KV head, not "
            f"{num_heads} for {num_kv_heads}",
        ),
        cdna.unless(
            group * query_len <= MAX_ROWS,
            f"{group} query heads per KV head, times {query_len} query tokens a sequence, are more "
            f"than the {MAX_ROWS} that the Gluon kernel takes",
        ),
        cdna.block_size(block_size, MIN_BLOCK_SIZE),
    )


@lru_cache(maxsize=64)
def _check(**facts: Any) -> None:
    sentence = refusal(**facts)
    if sentence is not None:
        raise RefusedError(f"paged_attention_decode: {sentence}")


def launch(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    scale: float,
    out: Tensor,
    *,
    sliding_window: int = 0,
    logits_soft_cap: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    max_seq_len: int,
    splits: int | None = None,
) -> None:
    """The operation by the Gluon kernel. `splits` overrides the planned number of parts."""
    tokens, heads, head_size = query.shape
    sequences = block_table.shape[0]
    _, kv_heads, block_size, _ = k_cache.shape
    gfx = cdna.current_gfx(query.device)
    query_len = refusals.require_equal_query_len("paged_attention_decode", tokens, sequences)
    _check(
        head_size=head_size,
        num_heads=heads,
        num_kv_heads=kv_heads,
        block_size=block_size,
        dtype=query.dtype,
        cache_dtype=k_cache.dtype,
        gfx=gfx,
        query_len=query_len,
    )
    assert gfx is not None
    refusals.require_dense_rows(
        "paged_attention_decode", query=query, k_cache=k_cache, v_cache=v_cache, out=out
    )
    from vllm_amdopt.kernels.cdna import paged_attention_decode as kernels
    from vllm_amdopt.kernels.cdna import paged_attention_decode_plan as plans
    from vllm_amdopt.kernels.soft_cap import score_factors

    if sequences == 0:
        return
    group, units = heads // kv_heads, compute_units(query.device)
    rows = group * query_len
    workgroups = sequences * kv_heads
    config = plans.choose_config(head_size)
    if splits is None:
        visible = max_seq_len
        if sliding_window:
            visible = min(visible, sliding_window + query_len - 1)
        parts = plans.plan_parts(workgroups, visible, units, config, rows)
    else:
        parts = plans.plan_merge(splits, rows)
    partial = partial_lse = counters = None
    if parts.steps > 0:
        # At least what any planned launch of these sizes takes.
        slots = max(workgroups * parts.slots, 2 * units)
        memory = workspace(
            query.device,
            slots * rows * (head_size + 1),
            max(workgroups * parts.counters, 2 * units),
        )
        partial, partial_lse = memory.floats, memory.floats[slots * rows * head_size :]
        counters = memory.counters
    score_scale, cap_log2 = score_factors(scale * k_scale, logits_soft_cap)
    kernels.cdna_split_kernel[(sequences, kv_heads, parts.splits)](
        query,
        k_cache,
        v_cache,
        cdna.zeros(max(HEAD_SIZES), k_cache.dtype, query.device),
        block_table,
        seq_lens,
        sinks,
        alibi_slopes,
        out,
        partial,
        partial_lse,
        counters,
        score_scale,
        cap_log2,
        v_scale,
        sliding_window,
        parts.splits,
        2**31 // parts.splits + 1 if parts.steps else 0,
        parts.groups,
        block_table.stride(0),
        *query.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        *out.stride()[:2],
        KV_HEADS=kv_heads,
        GROUP=group,
        QUERY_LEN=query_len,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=block_size,
        W=config.num_warps,
        CDNA=kernels.GENERATION[gfx],
        FAN=parts.fan,
        STEPS=parts.steps,
        HAS_WINDOW=sliding_window > 0,
        HAS_SOFT_CAP=logits_soft_cap > 0.0,
        num_warps=config.num_warps,
        waves_per_eu=config.waves_per_eu,
    )
