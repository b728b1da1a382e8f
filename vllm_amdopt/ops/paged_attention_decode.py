"""Attention of one or a few new tokens per sequence over a paged cache: reference and launch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vllm_amdopt.ops import paged_attention_decode_cdna as cdna
from vllm_amdopt.ops import paged_attention_prefill, refusals
from vllm_amdopt.ops.compute_units import compute_units
from vllm_amdopt.ops.operation import Implementation, Operation, RefusedError
from vllm_amdopt.ops.workspace import Workspace, workspace

HEAD_SIZES = paged_attention_prefill.HEAD_SIZES
MOST_QUERY_TOKENS = 16


def paged_attention_decode(
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
    implementation: str = "triton",
) -> None:
    """Write softmax(scale * query @ keys) @ values to `out`, equally many tokens per sequence.

    query, out: [seqs * n, heads, head_size], the last n tokens of each sequence: n is 1, or more
    where a draft is verified. Their own keys lie in the cache already, and each sees those up to
    its own.
    k_cache, v_cache: [blocks, kv_heads, block_size, head_size], views with any strides but
    innermost 1; block_table: int32 [seqs, max_blocks]; seq_lens: int32 [seqs], 0 for a padding row,
    which gets zeros. max_seq_len is an upper bound known on the host. sliding_window counts the
    token itself; 0 is none. logits_soft_cap 0.0 is none. A cached key is what is stored times
    k_scale, a value times v_scale. sinks: float32 [heads], one more score in each head's softmax,
    with no value. alibi_slopes: float32 [heads]; slope * (key position - query position) is added
    to the score, after the cap. Raises RefusedError where `refusal` does.
    """
    OPERATION.run(implementation)(
        query,
        k_cache,
        v_cache,
        block_table,
        seq_lens,
        scale,
        out,
        sliding_window=sliding_window,
        logits_soft_cap=logits_soft_cap,
        k_scale=k_scale,
        v_scale=v_scale,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        max_seq_len=max_seq_len,
    )


def reference(
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
    compute_dtype: torch.dtype | None = None,
) -> None:
    """The operation in plain PyTorch: decode is prefill with as many query tokens everywhere."""
    sequences = block_table.shape[0]
    each = query.shape[0] // max(1, sequences)
    paged_attention_prefill.reference(
        query,
        k_cache,
        v_cache,
        block_table,
        seq_lens,
        torch.arange(sequences + 1, dtype=torch.int32, device=query.device) * each,
        scale,
        out,
        max_query_len=each,
        max_seq_len=max_seq_len,
        sliding_window=sliding_window,
        logits_soft_cap=logits_soft_cap,
        k_scale=k_scale,
        v_scale=v_scale,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        compute_dtype=compute_dtype,
    )


def refusal(
    *,
    head_size: int,
    num_heads: int,
    num_kv_heads: int,
    block_size: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
    has_sinks: bool = False,
    has_alibi: bool = False,
    has_scales: bool = False,
    query_len: int = 1,
    gfx: str | None = None,
) -> str | None:
    """Why the Triton kernel does not apply, or None. `cache_dtype` None is the same as `dtype`."""
    del has_sinks, has_alibi, has_scales
    return refusals.first(
        refusals.no_triton(),
        refusals.architecture(gfx),
        refusals.dtype(dtype, "the model"),
        refusals.cache_dtype(cache_dtype or dtype, dtype, gfx),
        refusals.block_size(block_size),
        refusals.head_size(head_size, HEAD_SIZES),
        refusals.head_ratio(num_heads, num_kv_heads),
        None
        if 1 <= query_len <= MOST_QUERY_TOKENS
        else f"the decode kernel takes up to {MOST_QUERY_TOKENS} query tokens per sequence, not "
        f"{query_len}; use the prefill operation.",
    )


@lru_cache(maxsize=64)
def _check(**facts: Any) -> None:
    sentence = refusal(**facts)
    if sentence is not None:
        raise RefusedError(f"paged_attention_decode: {sentence}")


def reserve(
    device: torch.device, num_heads: int, num_kv_heads: int, head_size: int, query_len: int = 1
) -> None:
    """Take the workspace that launches of these sizes need, so that none does it under capture."""
    from vllm_amdopt.kernels import paged_attention_decode as kernels

    config = kernels.choose_config(num_heads // num_kv_heads * query_len, head_size)
    _workspace(device, config.rows, head_size, 0)


def _workspace(device: torch.device, rows: int, head_size: int, slots: int) -> Workspace:
    """For the most workgroups that a planned launch has, which does not depend on the batch."""
    from vllm_amdopt.kernels.split_plan import most_workgroups

    slots = max(slots, most_workgroups(compute_units(device)))
    return workspace(device, slots * rows * (head_size + 1), 2 * slots)


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
    """The operation by the Triton kernel. `splits` overrides the planned number of parts."""
    tokens, heads, head_size = query.shape
    sequences = block_table.shape[0]
    _, kv_heads, block_size, _ = k_cache.shape
    query_len = refusals.require_equal_query_len("paged_attention_decode", tokens, sequences)
    _check(
        query_len=query_len,
        head_size=head_size,
        num_heads=heads,
        num_kv_heads=kv_heads,
        block_size=block_size,
        dtype=query.dtype,
        cache_dtype=k_cache.dtype,
    )
    refusals.require_dense_rows(
        "paged_attention_decode", query=query, k_cache=k_cache, v_cache=v_cache, out=out
    )
    if tokens == 0:
        return
    from vllm_amdopt.kernels import paged_attention_decode as kernels
    from vllm_amdopt.kernels.soft_cap import score_factors
    from vllm_amdopt.kernels.split_plan import FUSED_SPLIT_POLICY, plan_fused_splits

    policy = FUSED_SPLIT_POLICY
    rows = heads // kv_heads * query_len
    config = kernels.choose_config(rows, head_size)
    row_tiles = kv_heads * -(-rows // config.rows)
    if splits is None:
        visible = max_seq_len
        if sliding_window:
            visible = min(max_seq_len, sliding_window + query_len - 1)
        splits = plan_fused_splits(sequences * row_tiles, visible, compute_units(query.device))
    partial = partial_lse = counters = None
    if splits > 1:
        slots = sequences * row_tiles * splits
        memory = _workspace(query.device, config.rows, head_size, slots)
        partial, partial_lse = memory.floats, memory.floats[slots * config.rows * head_size :]
        counters = memory.counters
    score_scale, cap_log2 = score_factors(scale * k_scale, logits_soft_cap)
    kernels.decode_kernel[(sequences, row_tiles, splits)](
        query,
        k_cache,
        v_cache,
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
        splits,
        block_table.stride(0),
        *query.stride()[:2],
        *k_cache.stride()[:2],
        *v_cache.stride()[:2],
        *out.stride()[:2],
        K_STRIDE_ROW=k_cache.stride(2),
        V_STRIDE_ROW=v_cache.stride(2),
        GROUP=heads // kv_heads,
        QUERY_LEN=query_len,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=block_size,
        ROWS=config.rows,
        TILE=config.tile,
        DIRECT=splits == 1,
        LEAST_TILES=policy.least_tokens // config.tile,
        MANY_TILES=policy.least_tokens_in_two_steps // config.tile,
        FAN=policy.fan_in,
        MERGE_CHUNK=config.merge_chunk,
        HAS_WINDOW=sliding_window > 0,
        HAS_SOFT_CAP=logits_soft_cap > 0.0,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


OPERATION = Operation(
    name="paged_attention_decode",
    reference=reference,
    implementations=(
        Implementation("gluon", cdna.launch, cdna.refusal),
        Implementation("triton", launch, refusal),
    ),
)
