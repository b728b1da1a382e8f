"""Attention of one or a few new tokens per sequence over a paged cache: reference and launch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vllm_amdopt.ops import paged_attention_prefill, refusals
from vllm_amdopt.ops.compute_units import compute_units
from vllm_amdopt.ops.operation import Implementation, Operation, RefusedError

HEAD_SIZES = paged_attention_prefill.HEAD_SIZES


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


def refusal(*, query_len: int = 1, **facts: Any) -> str | None:
    """Why the Triton kernels do not apply, or None; `facts` are those of the prefill operation."""
    return refusals.first(
        paged_attention_prefill.refusal(**facts),
        None
        if query_len == 1
        else "the decode kernel takes one query token per sequence, not "
        f"{query_len}; use the prefill operation.",
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
    """The operation by the Triton kernels. `splits` overrides the planned number of parts."""
    tokens, heads, head_size = query.shape
    sequences = block_table.shape[0]
    _, kv_heads, block_size, _ = k_cache.shape
    _check(
        query_len=tokens // sequences if sequences else 1,
        head_size=head_size,
        num_heads=heads,
        num_kv_heads=kv_heads,
        block_size=block_size,
        dtype=query.dtype,
        cache_dtype=k_cache.dtype,
        has_sinks=sinks is not None,
        has_alibi=alibi_slopes is not None,
        has_scales=(k_scale, v_scale) != (1.0, 1.0),
    )
    refusals.require_dense_rows(
        "paged_attention_decode", query=query, k_cache=k_cache, v_cache=v_cache, out=out
    )
    from vllm_amdopt.kernels import paged_attention_decode as kernels
    from vllm_amdopt.kernels.soft_cap import score_factors
    from vllm_amdopt.kernels.split_plan import plan_splits

    if sequences == 0:
        return
    group = heads // kv_heads
    config = kernels.choose_config(group, head_size, query.element_size())
    head_tiles = -(-group // config.heads)
    visible = min(max_seq_len, sliding_window) if sliding_window else max_seq_len
    if splits is None:
        workgroups = sequences * kv_heads * head_tiles
        splits = plan_splits(workgroups, visible, compute_units(query.device))
    direct = splits == 1
    partial, partial_lse = out, out
    if not direct:
        partial = torch.empty(
            (sequences, heads, splits, head_size), dtype=torch.float32, device=query.device
        )
        partial_lse = torch.empty(
            (sequences, heads, splits), dtype=torch.float32, device=query.device
        )
    score_scale, cap_log2 = score_factors(scale, logits_soft_cap)
    kernels.split_kernel[(sequences, kv_heads * head_tiles, splits)](
        query,
        k_cache,
        v_cache,
        block_table,
        seq_lens,
        out,
        partial,
        partial_lse,
        score_scale,
        cap_log2,
        sliding_window,
        splits,
        block_table.stride(0),
        *query.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        *out.stride()[:2],
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=block_size,
        HEADS=config.heads,
        TILE=config.tile,
        DIRECT=direct,
        HAS_WINDOW=sliding_window > 0,
        HAS_SOFT_CAP=logits_soft_cap > 0.0,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if direct:
        return
    kernels.reduce_kernel[(sequences, heads)](
        partial,
        partial_lse,
        seq_lens,
        out,
        sliding_window,
        splits,
        *out.stride()[:2],
        QUERY_HEADS=heads,
        HEAD_SIZE=head_size,
        SPLITS=kernels.padded_splits(splits),
        TILE=config.tile,
        HAS_WINDOW=sliding_window > 0,
        num_warps=kernels.REDUCE_CONFIG.num_warps,
    )


OPERATION = Operation(
    name="paged_attention_decode",
    reference=reference,
    implementations=(Implementation("triton", launch, refusal),),
)
