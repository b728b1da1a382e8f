"""Rotary embedding of new heads and their write to the paged cache in one: reference and launch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vllm_amdopt.ops import refusals
from vllm_amdopt.ops.operation import Implementation, Operation, RefusedError
from vllm_amdopt.ops.paged_cache import wide_dtype


def rope_and_cache_write(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    is_neox: bool,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    epsilon: float = 1e-6,
    query_out: Tensor | None = None,
    key_out: Tensor | None = None,
    implementation: str = "triton",
) -> None:
    """Rotate `query` and `key` and write key i and value i to slot `slot_mapping[i]`.

    query: [tokens, heads, D]; key, value: [tokens, kv_heads, D]. query_out, key_out: where the
    rotated ones go, shaped alike, or None for in place. positions: int64 [tokens].
    cos_sin_cache: [positions, R], cosines of R / 2 angles, then their sines; the first R of D
    elements are rotated, in pairs (j, j + R / 2) where `is_neox`, otherwise (2 j, 2 j + 1).
    With query_weight and key_weight, [D] each, every head is divided by its root mean square
    (epsilon added to the mean square) and multiplied by the weight before it is rotated.
    k_cache, v_cache: [blocks, kv_heads, block_size, D], any strides but innermost 1. They hold key
    / k_scale and value / v_scale, clamped to what an fp8 cache can hold. slot_mapping: int64 [n],
    n <= tokens (rows beyond n are rotated but not written), negative = not written.
    Raises RefusedError for what `refusal` refuses.
    """
    OPERATION.run(implementation)(
        query,
        key,
        value,
        positions,
        cos_sin_cache,
        k_cache,
        v_cache,
        slot_mapping,
        is_neox=is_neox,
        k_scale=k_scale,
        v_scale=v_scale,
        query_weight=query_weight,
        key_weight=key_weight,
        epsilon=epsilon,
        query_out=query_out,
        key_out=key_out,
    )


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    is_neox: bool,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    epsilon: float = 1e-6,
    query_out: Tensor | None = None,
    key_out: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
) -> None:
    """The operation in plain PyTorch, in float32 or in `compute_dtype`, to see what that costs."""
    dtype = compute_dtype or wide_dtype(query.dtype)
    angles = cos_sin_cache[positions].to(dtype)
    turned = []
    for heads, weight, out in ((query, query_weight, query_out), (key, key_weight, key_out)):
        x = heads.to(dtype)
        if weight is not None:
            mean_square = x.square().mean(dim=-1, keepdim=True)
            x = x * torch.rsqrt(mean_square + epsilon) * weight.to(dtype)
        x = rotate(x, angles, is_neox)
        (heads if out is None else out).copy_(x)
        turned.append(x)
    token = torch.nonzero(slot_mapping >= 0).flatten()
    slot = slot_mapping[token]
    block, row = slot // k_cache.shape[2], slot % k_cache.shape[2]
    written = ((k_cache, turned[1], k_scale), (v_cache, value.to(dtype), v_scale))
    for cache, x, scale in written:
        limit = largest(cache.dtype)
        stored = x[token] / scale
        cache[block, :, row] = (stored.clamp(-limit, limit) if limit else stored).to(cache.dtype)


def rotate(x: Tensor, angles: Tensor, is_neox: bool) -> Tensor:
    """x [tokens, heads, D] with its first R elements rotated; angles [tokens, R]."""
    rotary = angles.shape[-1]
    cosine, sine = (part.unsqueeze(1) for part in angles.chunk(2, dim=-1))
    rotated, rest = x[..., :rotary], x[..., rotary:]
    if is_neox:
        first, second = rotated.chunk(2, dim=-1)
    else:
        first, second = rotated[..., ::2], rotated[..., 1::2]
    pairs = (first * cosine - second * sine, second * cosine + first * sine)
    turned = torch.cat(pairs, dim=-1) if is_neox else torch.stack(pairs, dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=-1)


def largest(dtype: torch.dtype) -> float:
    """The largest number that an fp8 cache holds; 0.0 for other dtypes, which are not clamped."""
    return float(torch.finfo(dtype).max) if dtype in refusals.FP8_DTYPES else 0.0


def refusal(
    *,
    head_size: int,
    rotary_size: int,
    block_size: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
    gfx: str | None = None,
) -> str | None:
    """Why the Triton kernel does not apply, or None. `cache_dtype` None is the same as `dtype`."""
    return refusals.first(
        refusals.no_triton(),
        refusals.architecture(gfx),
        refusals.dtype(dtype, "the model"),
        refusals.cache_dtype(cache_dtype or dtype, dtype, gfx),
        refusals.written_fp8(cache_dtype or dtype),
        refusals.block_size(block_size),
        None
        if 0 < rotary_size <= head_size and rotary_size % 2 == 0
        else f"{rotary_size} of {head_size} elements of a head cannot be rotated in pairs; leave "
        "rotary embedding and cache write apart for this model.",
    )


@lru_cache(maxsize=64)
def _check(**facts: Any) -> None:
    sentence = refusal(**facts)
    if sentence is not None:
        raise RefusedError(f"rope_and_cache_write: {sentence}")


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    is_neox: bool,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    epsilon: float = 1e-6,
    query_out: Tensor | None = None,
    key_out: Tensor | None = None,
) -> None:
    """The operation by the Triton kernel."""
    tokens, heads, head_size = query.shape
    _, kv_heads, block_size, _ = k_cache.shape
    _check(
        head_size=head_size,
        rotary_size=cos_sin_cache.shape[1],
        block_size=block_size,
        dtype=query.dtype,
        cache_dtype=k_cache.dtype,
    )
    refusals.require_dense_rows(
        "rope_and_cache_write",
        query=query,
        key=key,
        value=value,
        cos_sin_cache=cos_sin_cache,
        k_cache=k_cache,
        v_cache=v_cache,
    )
    if (query_weight is None) != (key_weight is None):
        raise RefusedError(
            "rope_and_cache_write: query and key are normalised both or neither; give both weights."
        )
    if query_out is None or key_out is None:
        if query_out is not None or key_out is not None:
            raise RefusedError(
                "rope_and_cache_write: query and key are rotated in place both or neither; give "
                "both outputs."
            )
        query_out, key_out, in_place = query, key, True
    else:
        refusals.require_dense_rows("rope_and_cache_write", query_out=query_out, key_out=key_out)
        in_place = False
    from vllm_amdopt.kernels import rope_and_cache_write as kernels

    if tokens == 0:
        return
    tile = kernels.heads_per_program(heads, head_size)
    tiles = -(-heads // tile) + -(-kv_heads // tile)
    kernels.rope_and_cache_write_kernel[(tokens, tiles)](
        query,
        key,
        value,
        query_out,
        key_out,
        positions,
        cos_sin_cache,
        query_weight,
        key_weight,
        k_cache,
        v_cache,
        slot_mapping,
        slot_mapping.shape[0],
        heads,
        kv_heads,
        epsilon,
        1.0 / k_scale,
        1.0 / v_scale,
        *query.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        *query_out.stride()[:2],
        *key_out.stride()[:2],
        cos_sin_cache.stride(0),
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        HEAD_SIZE=head_size,
        ROTARY=cos_sin_cache.shape[1],
        IS_NEOX=is_neox,
        HEADS=tile,
        BLOCK_SIZE=block_size,
        LARGEST=largest(k_cache.dtype),
        IN_PLACE=in_place,
        num_warps=kernels.CONFIG.num_warps,
    )


OPERATION = Operation(
    name="rope_and_cache_write",
    reference=reference,
    implementations=(Implementation("triton", launch, refusal),),
)
