"""Causal attention of many new tokens per sequence over a paged cache: reference, launch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vllm_amdopt.ops import refusals
from vllm_amdopt.ops.operation import Implementation, Operation, RefusedError
from vllm_amdopt.ops.paged_cache import gather_heads, wide_dtype

HEAD_SIZES = (32, 64, 80, 96, 128, 192, 256)


def paged_attention_prefill(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    out: Tensor,
    *,
    max_query_len: int,
    max_seq_len: int,
    sliding_window: int = 0,
    logits_soft_cap: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    implementation: str = "triton",
) -> None:
    """Write softmax(scale * query @ keys) @ values to `out`, causally.

    query, out: [tokens, heads, head_size]; the rows of sequence i are
    [query_start_loc[i], query_start_loc[i + 1]), and they are the last tokens of its seq_lens[i],
    whose keys and values all lie in the cache already. Rows beyond the last one are not touched.
    k_cache, v_cache: [blocks, kv_heads, block_size, head_size]; block_table: int32 [seqs,
    max_blocks]; seq_lens: int32 [seqs]; query_start_loc: int32 [seqs + 1].
    max_query_len and max_seq_len are upper bounds known on the host. sliding_window counts the
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
        query_start_loc,
        scale,
        out,
        max_query_len=max_query_len,
        max_seq_len=max_seq_len,
        sliding_window=sliding_window,
        logits_soft_cap=logits_soft_cap,
        k_scale=k_scale,
        v_scale=v_scale,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
    )


def reference(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    out: Tensor,
    *,
    max_query_len: int,
    max_seq_len: int,
    sliding_window: int = 0,
    logits_soft_cap: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
) -> None:
    """The operation in plain PyTorch, in float32 or in `compute_dtype`, to see what that costs."""
    del max_query_len, max_seq_len
    dtype = compute_dtype or wide_dtype(query.dtype)
    starts = query_start_loc.tolist()
    for sequence, length in enumerate(seq_lens.tolist()):
        rows = slice(starts[sequence], starts[sequence + 1])
        out[rows] = attend(
            query[rows].to(dtype),
            gather_heads(k_cache, block_table[sequence], length).to(dtype) * k_scale,
            gather_heads(v_cache, block_table[sequence], length).to(dtype) * v_scale,
            scale,
            sliding_window=sliding_window,
            logits_soft_cap=logits_soft_cap,
            sinks=sinks,
            alibi_slopes=alibi_slopes,
        ).to(out.dtype)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    *,
    sliding_window: int = 0,
    logits_soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    """Causal attention of one sequence: query [n, heads, D], keys and values [length, kv_heads, D].

    The queries are the last n tokens of the keys. Length 0, a padding row of a captured graph,
    gets zeros.
    """
    tokens, heads, head_size = query.shape
    length, kv_heads, _ = keys.shape
    if length == 0:
        return torch.zeros_like(query)
    grouped = query.reshape(tokens, kv_heads, heads // kv_heads, head_size)
    scores = torch.einsum("nkgd,tkd->kgnt", grouped, keys) * scale
    if logits_soft_cap:
        scores = logits_soft_cap * torch.tanh(scores / logits_soft_cap)
    key_position = torch.arange(length, device=query.device)
    query_position = torch.arange(length - tokens, length, device=query.device)[:, None]
    if alibi_slopes is not None:
        slopes = alibi_slopes.to(scores.dtype).view(kv_heads, -1, 1, 1)
        scores = scores + slopes * (key_position - query_position).to(scores.dtype)
    hidden = key_position > query_position
    if sliding_window:
        hidden |= key_position <= query_position - sliding_window
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(kv_heads, -1, 1, 1).expand(-1, -1, tokens, 1)
        scores = torch.cat([scores, sink], dim=-1)
    probabilities = torch.softmax(scores, dim=-1)[..., :length]
    return torch.einsum("kgnt,tkd->nkgd", probabilities, values).flatten(1, 2)


def refusal(
    *,
    head_size: int,
    num_heads: int,
    num_kv_heads: int,
    block_size: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
    gfx: str | None = None,
) -> str | None:
    """Why the Triton kernel does not apply, or None. `cache_dtype` None is the same as `dtype`."""
    cache_dtype = cache_dtype or dtype
    return refusals.first(
        refusals.no_triton(),
        refusals.architecture(gfx),
        refusals.dtype(dtype, "the model"),
        refusals.cache_dtype(cache_dtype, dtype, gfx),
        refusals.block_size(block_size),
        refusals.head_size(head_size, HEAD_SIZES),
        refusals.head_ratio(num_heads, num_kv_heads),
    )


@lru_cache(maxsize=64)
def _check(**facts: Any) -> None:
    sentence = refusal(**facts)
    if sentence is not None:
        raise RefusedError(f"paged_attention_prefill: {sentence}")


def launch(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    out: Tensor,
    *,
    max_query_len: int,
    max_seq_len: int,
    sliding_window: int = 0,
    logits_soft_cap: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
) -> None:
    """The operation by the Triton kernel."""
    del max_seq_len
    _, heads, head_size = query.shape
    _, kv_heads, block_size, _ = k_cache.shape
    _check(
        head_size=head_size,
        num_heads=heads,
        num_kv_heads=kv_heads,
        block_size=block_size,
        dtype=query.dtype,
        cache_dtype=k_cache.dtype,
    )
    refusals.require_dense_rows(
        "paged_attention_prefill", query=query, k_cache=k_cache, v_cache=v_cache, out=out
    )
    from vllm_amdopt.kernels import paged_attention_prefill as kernels
    from vllm_amdopt.kernels.soft_cap import score_factors

    sequences = seq_lens.shape[0]
    if sequences == 0 or max_query_len == 0:
        return
    group = heads // kv_heads
    config = kernels.choose_config(max_query_len * group, head_size, query.element_size())
    score_scale, cap_log2 = score_factors(scale * k_scale, logits_soft_cap)
    kernels.prefill_kernel[(kv_heads * sequences, -(-max_query_len * group // config.rows))](
        query,
        k_cache,
        v_cache,
        block_table,
        seq_lens,
        query_start_loc,
        sinks,
        alibi_slopes,
        out,
        score_scale,
        cap_log2,
        v_scale,
        sliding_window,
        block_table.stride(0),
        *query.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        *out.stride()[:2],
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=block_size,
        ROWS=config.rows,
        TILE=config.tile,
        HAS_WINDOW=sliding_window > 0,
        HAS_SOFT_CAP=logits_soft_cap > 0.0,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        waves_per_eu=config.waves_per_eu,
    )


OPERATION = Operation(
    name="paged_attention_prefill",
    reference=reference,
    implementations=(Implementation("triton", launch, refusal),),
)
