"""MLA decode by the Gluon kernel for CDNA: what it refuses, and its launch.

The operation, its reference and the portable implementation are in `mla_decode`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vllm_amdopt.ops import cdna, refusals
from vllm_amdopt.ops.compute_units import compute_units
from vllm_amdopt.ops.mla_decode_parts import Parts
from vllm_amdopt.ops.operation import RefusedError

KV_LORA_RANKS = (256, 512)
ROPE_SIZE = 64


def refusal(
    *,
    kv_lora_rank: int,
    rope_size: int,
    block_size: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
    query_len: int = 1,
    gfx: str | None = None,
) -> str | None:
    """Why the Gluon kernel does not apply, or None. `cache_dtype` None is the same as `dtype`."""
    del query_len
    return refusals.first(
        cdna.no_gluon(gfx),
        cdna.unless(
            dtype is torch.bfloat16,
            f"the Gluon kernel has no form for {refusals.short(dtype)}",
        ),
        cdna.unless(
            cache_dtype in (None, dtype)
            or (gfx in refusals.COMPILED_FOR and cache_dtype is refusals.fp8_of(gfx)),
            "the Gluon kernel has no form for a latent cache of "
            f"{refusals.short(cache_dtype or dtype)} and queries of {refusals.short(dtype)}",
        ),
        cdna.unless(
            kv_lora_rank in KV_LORA_RANKS and rope_size == ROPE_SIZE,
            f"the Gluon kernel has no form for a latent of {kv_lora_rank} + {rope_size}",
        ),
        cdna.block_size(block_size, 1),
    )


@lru_cache(maxsize=64)
def _check(**facts: Any) -> None:
    sentence = refusal(**facts)
    if sentence is not None:
        raise RefusedError(f"mla_decode: {sentence}")


def launch(
    query: Tensor,
    latent_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    scale: float,
    out: Tensor,
    lse: Tensor | None,
    *,
    kv_lora_rank: int,
    latent_scale: float = 1.0,
    max_seq_len: int,
    splits: int | None = None,
) -> None:
    """The operation by the Gluon kernel. `splits` overrides the planned number of parts."""
    tokens, heads, width = query.shape
    sequences = block_table.shape[0]
    gfx = cdna.current_gfx(query.device)
    query_len = refusals.require_equal_query_len("mla_decode", tokens, sequences)
    _check(
        kv_lora_rank=kv_lora_rank,
        rope_size=width - kv_lora_rank,
        block_size=latent_cache.shape[1],
        dtype=query.dtype,
        cache_dtype=latent_cache.dtype,
        gfx=gfx,
    )
    assert gfx is not None
    refusals.require_dense_rows("mla_decode", query=query, latent_cache=latent_cache, out=out)
    if sequences == 0:
        return
    from vllm_amdopt.kernels import mla_decode_plan as plans
    from vllm_amdopt.kernels.cdna import mla_decode as kernels
    from vllm_amdopt.kernels.cdna.mla_decode_plan import choose_config, plan_parts
    from vllm_amdopt.kernels.soft_cap import score_factors

    rows = heads * query_len
    config = choose_config(rows)
    row_tiles = -(-rows // config.rows)
    if splits is None:
        units = compute_units(query.device)
        splits = plan_parts(sequences * row_tiles, max_seq_len, units, config)
    direct = splits == 1
    parts = Parts(out, out)  # a kernel that finishes a sequence writes to neither
    if not direct:
        parts = Parts.empty(sequences, rows, splits, kv_lora_rank, query.device)
    lse_strides = (0, 0) if lse is None else lse.stride()
    score_scale, _ = score_factors(scale * latent_scale, 0.0)
    grid = (sequences, splits)
    if row_tiles > 1:
        grid = (plans.programs(sequences, row_tiles, splits), 1)
    kernels.cdna_latent_split_kernel[grid](
        query,
        latent_cache,
        cdna.zeros(max(KV_LORA_RANKS) + ROPE_SIZE, latent_cache.dtype, query.device),
        block_table,
        seq_lens,
        out,
        lse,
        parts.results,
        parts.lse,
        score_scale,
        latent_scale,
        sequences,
        heads,
        splits,
        block_table.stride(0),
        *query.stride()[:2],
        *latent_cache.stride()[:2],
        *out.stride()[:2],
        *lse_strides,
        LATENT_SIZE=kv_lora_rank,
        ROPE_SIZE=ROPE_SIZE,
        BLOCK_SIZE=latent_cache.shape[1],
        QUERY_LEN=query_len,
        T=config.num_warps // config.head_waves,
        H=config.head_waves,
        CDNA=kernels.GENERATION[gfx],
        SEVERAL_ROW_TILES=row_tiles > 1,
        DIRECT=direct,
        HAS_LSE=lse is not None,
        num_warps=config.num_warps,
        waves_per_eu=config.waves_per_eu,
    )
    if not direct:
        parts.merge(seq_lens, out, lse, tile=config.tile, query_len=query_len)
