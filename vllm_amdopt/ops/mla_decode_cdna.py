"""MLA decode by the Gluon kernel for CDNA: what it refuses, and its launch.

The operation, its reference and the portable implementation are in `mla_decode`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vllm_amdopt.kernels import availability
from vllm_amdopt.ops import refusals
from vllm_amdopt.ops.compute_units import compute_units
from vllm_amdopt.ops.operation import RefusedError

KV_LORA_RANKS = (256, 512)
ROPE_SIZE = 64

_PORTABLE = "the portable kernel takes it"


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
    return refusals.first(
        refusals.no_triton(),
        _unless(
            gfx in refusals.COMPILED_FOR,
            f"the Gluon kernel is for {' and '.join(refusals.COMPILED_FOR)}, and this is "
            f"{gfx or 'no AMD GPU'}",
        ),
        _unless(not availability.interpreted(), "Triton's interpreter does not know Gluon"),
        _unless(
            availability.gluon_for_cdna(),
            "this Triton has no Gluon with CDNA's matrix instructions; install a newer one, or",
        ),
        _unless(
            dtype is torch.bfloat16,
            f"the Gluon kernel has no form for {refusals.short(dtype)}",
        ),
        _unless(
            cache_dtype in (None, dtype),
            "the Gluon kernel has no form for a latent cache of "
            f"{refusals.short(cache_dtype or dtype)} and queries of {refusals.short(dtype)}",
        ),
        _unless(
            kv_lora_rank in KV_LORA_RANKS and rope_size == ROPE_SIZE,
            f"the Gluon kernel has no form for a latent of {kv_lora_rank} + {rope_size}",
        ),
        _unless(
            1 <= block_size <= refusals.MAX_BLOCK_SIZE and block_size & (block_size - 1) == 0,
            f"the Gluon kernel takes blocks of 1 to {refusals.MAX_BLOCK_SIZE} tokens, a power of "
            f"two, not {block_size}",
        ),
        _unless(
            query_len == 1, f"the Gluon kernel has no form for {query_len} query tokens a sequence"
        ),
    )


def _unless(condition: bool, sentence: str) -> str | None:
    return None if condition else f"{sentence}; {_PORTABLE}."


@lru_cache(maxsize=64)
def _check(**facts: Any) -> None:
    sentence = refusal(**facts)
    if sentence is not None:
        raise RefusedError(f"mla_decode: {sentence}")


@lru_cache(maxsize=16)
def _gfx(device: torch.device) -> str | None:
    return availability.current_gfx()


@lru_cache(maxsize=16)
def _zeros(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is read in place of rows that hold no token: one row of the widest cache."""
    return torch.zeros(max(KV_LORA_RANKS) + ROPE_SIZE, dtype=dtype, device=device)


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
    # An emulated GPU may change between two launches, a real one may not.
    gfx = availability.current_gfx() if query.device.type == "cpu" else _gfx(query.device)
    _check(
        kv_lora_rank=kv_lora_rank,
        rope_size=width - kv_lora_rank,
        block_size=latent_cache.shape[1],
        dtype=query.dtype,
        cache_dtype=latent_cache.dtype,
        query_len=tokens // sequences if sequences else 1,
        gfx=gfx,
    )
    assert gfx is not None
    refusals.require_dense_rows("mla_decode", query=query, latent_cache=latent_cache, out=out)
    if sequences == 0:
        return
    from vllm_amdopt.kernels import mla_decode as portable
    from vllm_amdopt.kernels import mla_decode_plan as plans
    from vllm_amdopt.kernels.cdna import mla_decode as kernels
    from vllm_amdopt.kernels.soft_cap import score_factors

    config = kernels.choose_config(heads)
    row_tiles = -(-heads // config.rows)
    if splits is None:
        units = compute_units(query.device)
        splits = kernels.plan_parts(sequences * row_tiles, max_seq_len, units, config)
    direct = splits == 1
    partial, partial_lse = out, out
    if not direct:
        partial = torch.empty(
            (sequences, heads, splits, kv_lora_rank), dtype=torch.float32, device=query.device
        )
        partial_lse = torch.empty(
            (sequences, heads, splits), dtype=torch.float32, device=query.device
        )
    lse_strides = (0, 0) if lse is None else lse.stride()
    score_scale, _ = score_factors(scale * latent_scale, 0.0)
    kernels.cdna_latent_split_kernel[(plans.programs(sequences, row_tiles, splits),)](
        query,
        latent_cache,
        _zeros(latent_cache.dtype, query.device),
        block_table,
        seq_lens,
        out,
        lse,
        partial,
        partial_lse,
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
        T=config.num_warps // config.head_waves,
        H=config.head_waves,
        CDNA=kernels.GENERATION[gfx],
        DIRECT=direct,
        HAS_LSE=lse is not None,
        num_warps=config.num_warps,
        waves_per_eu=config.waves_per_eu,
    )
    if direct:
        return
    merge = plans.choose_reduce_config(splits, kv_lora_rank)
    portable.reduce_kernel[(sequences, heads, kv_lora_rank // merge.columns)](
        partial,
        partial_lse,
        seq_lens,
        out,
        lse,
        heads,
        splits,
        *out.stride()[:2],
        *lse_strides,
        LATENT_SIZE=kv_lora_rank,
        QUERY_LEN=1,
        SPLITS=plans.padded_splits(splits),
        CHUNK=merge.chunk,
        COLUMNS=merge.columns,
        TILE=config.tile,
        HAS_LSE=lse is not None,
        num_warps=merge.num_warps,
    )
