"""Kernels that write new keys and values, or MLA latents, into the paged cache, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from vllm_amdopt.kernels.variants import Budget, CodegenVariant


@dataclass(frozen=True)
class LaunchConfig:
    """`elements_per_program` bounds heads x padded head size in one program."""

    elements_per_program: int
    num_warps: int
    why: str


CONFIG = LaunchConfig(
    elements_per_program=2048,
    num_warps=1,
    why=(
        "a token of 8 heads of 128 is 2 KiB: one wave moves it in two 16-byte loads per lane, and "
        "tokens, not heads, fill the GPU"
    ),
)


def heads_per_program(heads: int, head_size: int) -> int:
    """Heads that one program copies: a power of two, all of them where they fit."""
    fitting = max(1, CONFIG.elements_per_program // triton.next_power_of_2(head_size))
    return min(triton.next_power_of_2(heads), fitting)


@triton.jit
def quantized(values, inverse_scale, LARGEST: tl.constexpr):
    """The values as a cache of that range holds them, but for the rounding; NaN stays NaN."""
    if LARGEST:
        scaled = values.to(tl.float32) * inverse_scale
        return tl.clamp(scaled, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    else:
        return values


@triton.jit(do_not_specialize=["heads"])
def write_heads_kernel(
    key_ptr,
    value_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slot_mapping_ptr,
    inverse_k_scale,
    inverse_v_scale,
    heads,
    key_stride_token,
    key_stride_head,
    value_stride_token,
    value_stride_head,
    k_stride_block,
    k_stride_head,
    k_stride_row,
    v_stride_block,
    v_stride_head,
    v_stride_row,
    HEAD_SIZE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """Grid (tokens, tiles of heads); the dtype is the cache's, LARGEST as for latents."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token)
    if slot < 0:
        return
    block = slot // BLOCK_SIZE
    row = slot % BLOCK_SIZE
    head = (tl.program_id(1) * HEAD_TILE + tl.arange(0, HEAD_TILE))[:, None]
    element = tl.arange(0, triton.next_power_of_2(HEAD_SIZE))[None, :]
    present = (head < heads) & (element < HEAD_SIZE)

    key = tl.load(
        key_ptr + token * key_stride_token + head * key_stride_head + element, mask=present
    )
    value = tl.load(
        value_ptr + token * value_stride_token + head * value_stride_head + element, mask=present
    )
    tl.store(
        k_cache_ptr
        + (block * k_stride_block + row * k_stride_row)
        + head.to(tl.int64) * k_stride_head
        + element,
        quantized(key, inverse_k_scale, LARGEST).to(k_cache_ptr.dtype.element_ty),
        mask=present,
    )
    tl.store(
        v_cache_ptr
        + (block * v_stride_block + row * v_stride_row)
        + head.to(tl.int64) * v_stride_head
        + element,
        quantized(value, inverse_v_scale, LARGEST).to(v_cache_ptr.dtype.element_ty),
        mask=present,
    )


@triton.jit
def write_latent_kernel(
    kv_c_ptr,
    k_pe_ptr,
    cache_ptr,
    slot_mapping_ptr,
    scale_ptr,
    kv_c_stride_token,
    k_pe_stride_token,
    stride_block,
    stride_row,
    LATENT_SIZE: tl.constexpr,
    ROPE_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """Grid (tokens,); the latent first, the rotary part behind it, in the cache's dtype.

    LARGEST: the largest number of a quantized cache, which gets the latent over its scale and
    keeps within its range; 0 for others, which get the latent as it is.
    """
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token)
    if slot < 0:
        return
    row_ptr = cache_ptr + (slot // BLOCK_SIZE) * stride_block + (slot % BLOCK_SIZE) * stride_row
    latent = tl.arange(0, triton.next_power_of_2(LATENT_SIZE))
    kv_c = tl.load(kv_c_ptr + token * kv_c_stride_token + latent, mask=latent < LATENT_SIZE)
    inverse_scale = 1.0 if scale_ptr is None else tl.div_rn(1.0, tl.load(scale_ptr))
    kv_c = quantized(kv_c, inverse_scale, LARGEST).to(cache_ptr.dtype.element_ty)
    tl.store(row_ptr + latent, kv_c, mask=latent < LATENT_SIZE)
    rope = tl.arange(0, triton.next_power_of_2(ROPE_SIZE))
    k_pe = tl.load(k_pe_ptr + token * k_pe_stride_token + rope, mask=rope < ROPE_SIZE)
    k_pe = quantized(k_pe, inverse_scale, LARGEST).to(cache_ptr.dtype.element_ty)
    tl.store(row_ptr + LATENT_SIZE + rope, k_pe, mask=rope < ROPE_SIZE)


_HEAD_STRIDES = (
    "key_stride_token",
    "key_stride_head",
    "value_stride_token",
    "value_stride_head",
    "k_stride_block",
    "k_stride_head",
    "k_stride_row",
    "v_stride_block",
    "v_stride_head",
    "v_stride_row",
)
_LATENT_STRIDES = ("kv_c_stride_token", "k_pe_stride_token", "stride_block", "stride_row")

_BUDGETS: dict[str, dict[str, Budget]] = {
    "write_heads/bf16/8x128/block16": {
        "gfx942": Budget(8),
        "gfx950": Budget(8),
    },
    "write_heads/bf16/40x128/block16": {
        "gfx942": Budget(8, full_waits=2, serial_loads=1),
        "gfx950": Budget(8, full_waits=2, serial_loads=1),
    },
    "write_heads/bf16/4x256/block64": {
        "gfx942": Budget(8),
        "gfx950": Budget(8),
    },
    "write_heads/bf16/8x128/block16/fp8_cache": {
        "gfx942": Budget(8, narrow_loads={64: 1}),
        "gfx950": Budget(8, narrow_loads={64: 1}),
    },
    "write_heads/fp16/8x128/block16": {
        "gfx942": Budget(8),
        "gfx950": Budget(8),
    },
    "write_latent/bf16/512+64/block1": {
        "gfx942": Budget(8, narrow_loads={16: 1}),
        "gfx950": Budget(8, narrow_loads={16: 1}),
    },
    "write_latent/bf16/512+64/block64/fp8_cache": {
        "gfx942": Budget(8, narrow_loads={64: 1, 32: 1, 16: 1}),
        "gfx950": Budget(8, narrow_loads={64: 1, 32: 1, 16: 1}),
    },
    "write_latent/bf16/512+64/block64": {
        "gfx942": Budget(8, narrow_loads={16: 1}),
        "gfx950": Budget(8, narrow_loads={16: 1}),
    },
}


def _heads_variant(
    dtype: str, heads: int, head_size: int, block_size: int, fp8: bool = False
) -> CodegenVariant:
    name = f"write_heads/{dtype}/{heads}x{head_size}/block{block_size}{'/fp8_cache' if fp8 else ''}"
    return CodegenVariant(
        name=name,
        kernel=write_heads_kernel,
        signature={
            "key_ptr": f"*{dtype}",
            "value_ptr": f"*{dtype}",
            "k_cache_ptr": "*fp8" if fp8 else f"*{dtype}",
            "v_cache_ptr": "*fp8" if fp8 else f"*{dtype}",
            "slot_mapping_ptr": "*i64",
            "inverse_k_scale": "fp32",
            "inverse_v_scale": "fp32",
            "heads": "i32",
            **dict.fromkeys(_HEAD_STRIDES, "i32"),
        },
        constexprs={
            "HEAD_SIZE": head_size,
            "HEAD_TILE": heads_per_program(heads, head_size),
            "BLOCK_SIZE": block_size,
            "LARGEST": 240 if fp8 else 0,
        },
        num_warps=CONFIG.num_warps,
        divisible_by_16=_HEAD_STRIDES,
        over_2_gib=("k_cache_ptr", "v_cache_ptr"),
        budgets=_BUDGETS.get(name, {}),
    )


def _latent_variant(dtype: str, block_size: int, fp8: bool = False) -> CodegenVariant:
    name = f"write_latent/{dtype}/512+64/block{block_size}{'/fp8_cache' if fp8 else ''}"
    return CodegenVariant(
        name=name,
        kernel=write_latent_kernel,
        signature={
            "kv_c_ptr": f"*{dtype}",
            "k_pe_ptr": f"*{dtype}",
            "cache_ptr": "*fp8" if fp8 else f"*{dtype}",
            "slot_mapping_ptr": "*i64",
            **({"scale_ptr": "*fp32"} if fp8 else {}),
            **dict.fromkeys(_LATENT_STRIDES, "i32"),
        },
        constexprs={
            "LATENT_SIZE": 512,
            "ROPE_SIZE": 64,
            "BLOCK_SIZE": block_size,
            "LARGEST": 240 if fp8 else 0,
            **({} if fp8 else {"scale_ptr": None}),
        },
        num_warps=CONFIG.num_warps,
        divisible_by_16=_LATENT_STRIDES,
        over_2_gib=("cache_ptr",),
        budgets=_BUDGETS.get(name, {}),
    )


CODEGEN_VARIANTS = (
    _heads_variant("bf16", 8, 128, 16),
    _heads_variant("bf16", 40, 128, 16),
    _heads_variant("bf16", 4, 256, 64),
    _heads_variant("fp16", 8, 128, 16),
    _heads_variant("bf16", 8, 128, 16, fp8=True),
    _latent_variant("bf16", 1),
    _latent_variant("bf16", 64),
    _latent_variant("bf16", 64, fp8=True),
)
