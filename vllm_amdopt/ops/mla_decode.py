"""Absorbed MLA attention of one new token per sequence: reference, refusal and launch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vllm_amdopt.ops import refusals
from vllm_amdopt.ops.compute_units import compute_units
from vllm_amdopt.ops.operation import Implementation, Operation, RefusedError
from vllm_amdopt.ops.paged_cache import gather_latent, wide_dtype

KV_LORA_RANKS = (256, 512)
ROPE_SIZES = (64,)


def mla_decode(
    query: Tensor,
    latent_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    scale: float,
    out: Tensor,
    lse: Tensor | None,
    *,
    kv_lora_rank: int,
    max_seq_len: int,
    implementation: str = "triton",
) -> None:
    """Write softmax(scale * query @ latents) @ latents[:, :L] to `out`; heads share latents.

    query: [seqs, heads, L + R], already multiplied with W_UK. latent_cache: [blocks, block_size,
    L + R]. out: [seqs, heads, L]. lse: None or float32 [seqs, heads], the natural logarithm of the
    softmax's denominator, which merging of partial attentions needs. block_table: int32 [seqs,
    max_blocks]; seq_lens: int32 [seqs], 0 for a padding row: zeros, and lse -inf. max_seq_len is an
    upper bound known on the host. Raises RefusedError where `refusal` refuses.
    """
    OPERATION.run(implementation)(
        query,
        latent_cache,
        block_table,
        seq_lens,
        scale,
        out,
        lse,
        kv_lora_rank=kv_lora_rank,
        max_seq_len=max_seq_len,
    )


def reference(
    query: Tensor,
    latent_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    scale: float,
    out: Tensor,
    lse: Tensor | None,
    *,
    kv_lora_rank: int,
    max_seq_len: int,
    compute_dtype: torch.dtype | None = None,
) -> None:
    """The operation in plain PyTorch, in float32 or in `compute_dtype`, to see what that costs."""
    del max_seq_len
    dtype = compute_dtype or wide_dtype(query.dtype)
    for sequence, length in enumerate(seq_lens.tolist()):
        latents = gather_latent(latent_cache, block_table[sequence], length).to(dtype)
        scores = (query[sequence].to(dtype) @ latents.T) * scale
        if lse is not None:
            lse[sequence] = torch.logsumexp(scores, dim=-1).to(lse.dtype)
        out[sequence] = (torch.softmax(scores, dim=-1) @ latents[:, :kv_lora_rank]).to(out.dtype)


def refusal(
    *,
    kv_lora_rank: int,
    rope_size: int,
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
        refusals.dtype(cache_dtype, "the KV cache"),
        None
        if cache_dtype is dtype
        else f"the KV cache is {refusals.short(cache_dtype)} and the model "
        f"{refusals.short(dtype)}; use --kv-cache-dtype auto.",
        refusals.block_size(block_size),
        None
        if kv_lora_rank in KV_LORA_RANKS and rope_size in ROPE_SIZES
        else f"a latent of {kv_lora_rank} + {rope_size} is not among the tested ones "
        f"({' or '.join(map(str, KV_LORA_RANKS))} + {ROPE_SIZES[0]}); use another MLA backend.",
    )


@lru_cache(maxsize=64)
def _check(
    kv_lora_rank: int,
    rope_size: int,
    block_size: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
) -> None:
    sentence = refusal(
        kv_lora_rank=kv_lora_rank,
        rope_size=rope_size,
        block_size=block_size,
        dtype=dtype,
        cache_dtype=cache_dtype,
    )
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
    max_seq_len: int,
    splits: int | None = None,
) -> None:
    """The operation by the Triton kernels. `splits` overrides the planned number of parts."""
    sequences, heads, width = query.shape
    block_size = latent_cache.shape[1]
    _check(kv_lora_rank, width - kv_lora_rank, block_size, query.dtype, latent_cache.dtype)
    refusals.require_dense_rows("mla_decode", query=query, latent_cache=latent_cache, out=out)
    from vllm_amdopt.kernels import mla_decode as kernels
    from vllm_amdopt.kernels.soft_cap import score_factors
    from vllm_amdopt.kernels.split_plan import plan_splits

    if sequences == 0:
        return
    config = kernels.choose_config(heads, kv_lora_rank, query.element_size())
    head_tiles = -(-heads // config.heads)
    if splits is None:
        splits = plan_splits(sequences * head_tiles, max_seq_len, compute_units(query.device))
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
    score_scale, _ = score_factors(scale, 0.0)
    kernels.split_kernel[(sequences, head_tiles, splits)](
        query,
        latent_cache,
        block_table,
        seq_lens,
        out,
        lse,
        partial,
        partial_lse,
        score_scale,
        heads,
        splits,
        block_table.stride(0),
        *query.stride()[:2],
        *latent_cache.stride()[:2],
        *out.stride()[:2],
        *lse_strides,
        LATENT_SIZE=kv_lora_rank,
        ROPE_SIZE=width - kv_lora_rank,
        BLOCK_SIZE=block_size,
        HEADS=config.heads,
        TILE=config.tile,
        DIRECT=direct,
        HAS_LSE=lse is not None,
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
        lse,
        heads,
        splits,
        *out.stride()[:2],
        *lse_strides,
        LATENT_SIZE=kv_lora_rank,
        SPLITS=kernels.padded_splits(splits),
        TILE=config.tile,
        HAS_LSE=lse is not None,
        num_warps=kernels.REDUCE_CONFIG.num_warps,
    )


OPERATION = Operation(
    name="mla_decode",
    reference=reference,
    implementations=(Implementation("triton", launch, refusal),),
)
