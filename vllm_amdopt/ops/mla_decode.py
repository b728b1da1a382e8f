"""Absorbed MLA attention of one or a few new tokens per sequence: reference, refusal, launch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vllm_amdopt.ops import mla_decode_cdna as cdna
from vllm_amdopt.ops import refusals
from vllm_amdopt.ops.compute_units import compute_units
from vllm_amdopt.ops.mla_decode_parts import Parts
from vllm_amdopt.ops.operation import Implementation, Operation, RefusedError
from vllm_amdopt.ops.paged_cache import gather_latent, wide_dtype

KV_LORA_RANKS = (256, 512)
ROPE_SIZES = (64,)
MAX_QUERY_LEN = 16
"""New tokens per sequence: each number is a form of its own to compile."""


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
    latent_scale: float = 1.0,
    max_seq_len: int,
    implementation: str = "triton",
) -> None:
    """Write softmax(scale * query @ latents) @ latents[:, :L] to `out`; heads share latents.

    query: [seqs * n, heads, L + R], already multiplied with W_UK, the last n tokens of each
    sequence: n is 1, or more where a draft is verified. Their own latents lie in the cache already,
    and each sees those up to its own. latent_cache: [blocks, block_size, L + R]; a latent is what
    is stored times latent_scale. out: [seqs * n, heads, L]. lse: None or float32 [seqs * n, heads],
    the natural logarithm of the softmax's denominator, which merging of partial attentions needs.
    block_table: int32 [seqs, max_blocks]; seq_lens: int32 [seqs], 0 for a padding row: zeros, and
    lse -inf. max_seq_len is an upper bound known on the host. Raises RefusedError where `refusal`
    refuses.
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
        latent_scale=latent_scale,
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
    latent_scale: float = 1.0,
    max_seq_len: int,
    compute_dtype: torch.dtype | None = None,
) -> None:
    """The operation in plain PyTorch, in float32 or in `compute_dtype`, to see what that costs."""
    del max_seq_len
    dtype = compute_dtype or wide_dtype(query.dtype)
    each = query.shape[0] // max(1, block_table.shape[0])
    for sequence, length in enumerate(seq_lens.tolist()):
        latents = gather_latent(latent_cache, block_table[sequence], length).to(dtype)
        latents = latents * latent_scale
        for token in range(each):
            seen = latents[: max(0, length - each + 1 + token)]
            at = sequence * each + token
            scores = (query[at].to(dtype) @ seen.T) * scale
            if lse is not None:
                lse[at] = torch.logsumexp(scores, dim=-1).to(lse.dtype)
            out[at] = (torch.softmax(scores, dim=-1) @ seen[:, :kv_lora_rank]).to(out.dtype)


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
    """Why the Triton kernel does not apply, or None. `cache_dtype` None is the same as `dtype`."""
    cache_dtype = cache_dtype or dtype
    return refusals.first(
        refusals.no_triton(),
        refusals.architecture(gfx),
        refusals.dtype(dtype, "the model"),
        refusals.cache_dtype(cache_dtype, dtype, gfx),
        refusals.block_size(block_size),
        None
        if kv_lora_rank in KV_LORA_RANKS and rope_size in ROPE_SIZES
        else f"a latent of {kv_lora_rank} + {rope_size} is not among the tested ones "
        f"({' or '.join(map(str, KV_LORA_RANKS))} + {ROPE_SIZES[0]}); use another MLA backend.",
        None
        if 1 <= query_len <= MAX_QUERY_LEN
        else f"the decode kernel takes up to {MAX_QUERY_LEN} new tokens per sequence, not "
        f"{query_len}; use --speculative-config with fewer speculative tokens.",
    )


@lru_cache(maxsize=64)
def _check(
    kv_lora_rank: int,
    rope_size: int,
    block_size: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    query_len: int,
) -> None:
    sentence = refusal(
        kv_lora_rank=kv_lora_rank,
        rope_size=rope_size,
        block_size=block_size,
        dtype=dtype,
        cache_dtype=cache_dtype,
        query_len=query_len,
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
    latent_scale: float = 1.0,
    max_seq_len: int,
    splits: int | None = None,
) -> None:
    """The operation by the Triton kernels. `splits` overrides the planned number of parts."""
    tokens, heads, width = query.shape
    sequences = block_table.shape[0]
    block_size = latent_cache.shape[1]
    query_len = refusals.require_equal_query_len("mla_decode", tokens, sequences)
    if tokens == 0:
        return
    rope_size = width - kv_lora_rank
    _check(kv_lora_rank, rope_size, block_size, query.dtype, latent_cache.dtype, query_len)
    refusals.require_dense_rows("mla_decode", query=query, latent_cache=latent_cache, out=out)
    from vllm_amdopt.kernels import mla_decode as kernels
    from vllm_amdopt.kernels import mla_decode_plan as plans
    from vllm_amdopt.kernels.soft_cap import score_factors

    rows = heads * query_len
    config = plans.choose_config(rows, query.element_size())
    row_tiles = -(-rows // config.rows)
    if splits is None:
        splits = plans.plan(sequences * row_tiles, max_seq_len, compute_units(query.device), config)
    direct = splits == 1
    parts = Parts(out, out)  # a kernel that finishes a sequence writes to neither
    if not direct:
        parts = Parts.empty(sequences, rows, splits, kv_lora_rank, query.device)
    lse_strides = (0, 0) if lse is None else lse.stride()
    # A quantized cache is never multiplied out: its scale goes into the factor of the scores and
    # into that of the result.
    score_scale, _ = score_factors(scale * latent_scale, 0.0)
    kernels.split_kernel[(plans.programs(sequences, row_tiles, splits),)](
        query,
        latent_cache,
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
        ROPE_SIZE=rope_size,
        BLOCK_SIZE=block_size,
        QUERY_LEN=query_len,
        ROWS=config.rows,
        TILE=config.tile,
        DIRECT=direct,
        HAS_LSE=lse is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if not direct:
        parts.merge(seq_lens, out, lse, tile=config.tile, query_len=query_len)


OPERATION = Operation(
    name="mla_decode",
    reference=reference,
    implementations=(
        Implementation("gluon", cdna.launch, cdna.refusal),
        Implementation("triton", launch, refusal),
    ),
)
