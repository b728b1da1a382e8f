"""Writing new keys and values, or MLA latents, to the paged cache: reference, refusal, launch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vllm_amdopt.ops import refusals
from vllm_amdopt.ops.operation import Implementation, Operation, RefusedError


def kv_cache_write(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    implementation: str = "triton",
) -> None:
    """Write token i to slot `slot_mapping[i]`, cast to the cache's dtype.

    key, value: [tokens, kv_heads, head_size]. k_cache, v_cache: [blocks, kv_heads, block_size,
    head_size], views with any strides but innermost 1. slot_mapping: int64 [n], n <= tokens (rows
    beyond n are padding), slot = block * block_size + row, negative = skip. A cache in fp8 gets
    keys divided by k_scale and values by v_scale; what exceeds its range becomes its largest.
    Raises RefusedError for what `refusal` refuses.
    """
    OPERATION.run(implementation)(
        key, value, k_cache, v_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale
    )


def latent_cache_write(
    kv_c: Tensor,
    k_pe: Tensor,
    cache: Tensor,
    slot_mapping: Tensor,
    *,
    latent_scale: Tensor | None = None,
    implementation: str = "triton",
) -> None:
    """Write `kv_c[i] || k_pe[i]` to slot `slot_mapping[i]` of an MLA latent cache, cast to match.

    kv_c: [tokens, L]. k_pe: [tokens, R]. cache: [blocks, block_size, L + R], any strides but
    innermost 1. slot_mapping as in `kv_cache_write`. A cache in fp8 gets what is written divided by
    latent_scale, float32 with one element on the cache's device or None for 1, and what exceeds
    its range becomes its largest number.
    """
    LATENT_OPERATION.run(implementation)(kv_c, k_pe, cache, slot_mapping, latent_scale=latent_scale)


def reference(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """`kv_cache_write` in plain PyTorch."""
    token, block, row = _written(slot_mapping, k_cache.shape[2])
    for new, cache, scale in ((key, k_cache, k_scale), (value, v_cache, v_scale)):
        if cache.dtype in refusals.FP8_DTYPES:
            stored = _quantized(new[token], cache.dtype, scale)
            _as_bytes(cache)[block, :, row] = stored.view(torch.uint8)
        else:
            cache[block, :, row] = new[token].to(cache.dtype)


def _quantized(values: Tensor, dtype: torch.dtype, scale: float | Tensor) -> Tensor:
    largest = torch.finfo(dtype).max
    return (values.float() * (1.0 / scale)).clamp(-largest, largest).to(dtype)


def _as_bytes(cache: Tensor) -> Tensor:
    """PyTorch on a CPU has no scatter of 8-bit floats."""
    return cache.view(torch.uint8)


def latent_reference(
    kv_c: Tensor,
    k_pe: Tensor,
    cache: Tensor,
    slot_mapping: Tensor,
    *,
    latent_scale: Tensor | None = None,
) -> None:
    """`latent_cache_write` in plain PyTorch."""
    token, block, row = _written(slot_mapping, cache.shape[1])
    latents = torch.cat([kv_c[token], k_pe[token]], dim=-1)
    if cache.dtype in refusals.FP8_DTYPES:
        scale = 1.0 if latent_scale is None else latent_scale
        stored = _quantized(latents, cache.dtype, scale)
        _as_bytes(cache)[block, row] = stored.view(torch.uint8)
    else:
        cache[block, row] = latents.to(cache.dtype)


def _written(slot_mapping: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    token = torch.nonzero(slot_mapping >= 0).flatten()
    slot = slot_mapping[token]
    return token, slot // block_size, slot % block_size


def refusal(
    *, block_size: int, dtype: torch.dtype, cache_dtype: torch.dtype, gfx: str | None = None
) -> str | None:
    """Why the Triton kernels do not apply, or None. `dtype` is that of the new keys and values."""
    return refusals.first(
        refusals.no_triton(),
        refusals.architecture(gfx),
        refusals.dtype(dtype, "the model"),
        refusals.cache_dtype(cache_dtype, dtype, gfx)
        if cache_dtype in refusals.FP8_DTYPES
        else refusals.dtype(cache_dtype, "the KV cache"),
        refusals.written_fp8(cache_dtype),
        refusals.block_size(block_size),
    )


def latent_refusal(
    *, block_size: int, dtype: torch.dtype, cache_dtype: torch.dtype, gfx: str | None = None
) -> str | None:
    """Why the Triton kernel for latents does not apply, or None."""
    return refusals.first(
        refusals.no_triton(),
        refusals.architecture(gfx),
        refusals.dtype(dtype, "the model"),
        refusals.cache_dtype(cache_dtype, dtype, gfx),
        refusals.written_fp8(cache_dtype),
        refusals.block_size(block_size),
    )


@lru_cache(maxsize=64)
def _check_latent(block_size: int, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    sentence = latent_refusal(block_size=block_size, dtype=dtype, cache_dtype=cache_dtype)
    if sentence is not None:
        raise RefusedError(f"latent_cache_write: {sentence}")


@lru_cache(maxsize=64)
def _check(block_size: int, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    sentence = refusal(block_size=block_size, dtype=dtype, cache_dtype=cache_dtype)
    if sentence is not None:
        raise RefusedError(f"kv_cache_write: {sentence}")


def _largest(dtype: torch.dtype) -> int:
    """The largest number of an fp8 cache, 0 for others."""
    return int(torch.finfo(dtype).max) if dtype in refusals.FP8_DTYPES else 0


def launch(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """`kv_cache_write` by the Triton kernel."""
    _check(k_cache.shape[2], key.dtype, k_cache.dtype)
    refusals.require_dense_rows(
        "kv_cache_write", key=key, value=value, k_cache=k_cache, v_cache=v_cache
    )
    from vllm_amdopt.kernels import kv_cache_write as kernels

    tokens = slot_mapping.shape[0]
    heads, head_size = key.shape[1:]
    if tokens == 0:
        return
    tile = kernels.heads_per_program(heads, head_size)
    kernels.write_heads_kernel[(tokens, -(-heads // tile))](
        key,
        value,
        k_cache,
        v_cache,
        slot_mapping,
        1.0 / k_scale,
        1.0 / v_scale,
        heads,
        *key.stride()[:2],
        *value.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        HEAD_SIZE=head_size,
        HEAD_TILE=tile,
        BLOCK_SIZE=k_cache.shape[2],
        LARGEST=_largest(k_cache.dtype),
        num_warps=kernels.CONFIG.num_warps,
    )


def launch_latent(
    kv_c: Tensor,
    k_pe: Tensor,
    cache: Tensor,
    slot_mapping: Tensor,
    *,
    latent_scale: Tensor | None = None,
) -> None:
    """`latent_cache_write` by the Triton kernel."""
    _check_latent(cache.shape[1], kv_c.dtype, cache.dtype)
    refusals.require_dense_rows("latent_cache_write", kv_c=kv_c, k_pe=k_pe, cache=cache)
    from vllm_amdopt.kernels import kv_cache_write as kernels

    tokens = slot_mapping.shape[0]
    if tokens == 0:
        return
    kernels.write_latent_kernel[(tokens,)](
        kv_c,
        k_pe,
        cache,
        slot_mapping,
        latent_scale if cache.dtype in refusals.FP8_DTYPES else None,
        kv_c.stride(0),
        k_pe.stride(0),
        *cache.stride()[:2],
        LATENT_SIZE=kv_c.shape[1],
        ROPE_SIZE=k_pe.shape[1],
        BLOCK_SIZE=cache.shape[1],
        LARGEST=_largest(cache.dtype),
        num_warps=kernels.CONFIG.num_warps,
    )


OPERATION = Operation(
    name="kv_cache_write",
    reference=reference,
    implementations=(Implementation("triton", launch, refusal),),
)
LATENT_OPERATION = Operation(
    name="latent_cache_write",
    reference=latent_reference,
    implementations=(Implementation("triton", launch_latent, latent_refusal),),
)
