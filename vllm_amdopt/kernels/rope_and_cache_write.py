"""Kernel that normalises and rotates heads of new tokens and writes them to the paged cache.

One program takes some heads of one token: first tiles of query heads, then tiles of KV heads, which
go to the cache as well. Not a general rotary embedding: the angles' cosines and sines are given.
"""

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
    elements_per_program=1024,
    num_warps=1,
    why=(
        "8 heads of 128, which one wave holds in 16 values a lane; tokens times tiles of heads "
        "fill the GPU from a few tokens on"
    ),
)


def heads_per_program(heads: int, head_size: int) -> int:
    """Heads that one program takes: a power of two, all of them where they fit."""
    fitting = max(1, CONFIG.elements_per_program // triton.next_power_of_2(head_size))
    return min(triton.next_power_of_2(heads), fitting)


@triton.jit
def stored(x, inverse_scale, cache_ptr, LARGEST: tl.constexpr):
    """What the cache holds for `x`, float32, clamped to LARGEST where that is not 0.0."""
    x = x * inverse_scale
    if LARGEST > 0.0:
        x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
    return x.to(cache_ptr.dtype.element_ty)


@triton.jit
def load_pairs(
    head_ptrs, present, ROTARY: tl.constexpr, IS_NEOX: tl.constexpr, HEADS: tl.constexpr
):
    """The two partners of each rotated pair, [HEADS, ROTARY / 2 padded] each, in float32.

    head_ptrs, present: [HEADS, 1]. Partners stand half the rotated part apart (neox) or side by
    side (GPT-J).
    """
    HALF: tl.constexpr = ROTARY // 2
    PAD: tl.constexpr = triton.next_power_of_2(HALF)
    if IS_NEOX:
        pair = tl.arange(0, PAD)[None, :]
        mask = present & (pair < HALF)
        first = tl.load(head_ptrs + pair, mask=mask, other=0.0)
        second = tl.load(head_ptrs + HALF + pair, mask=mask, other=0.0)
    else:
        element = tl.arange(0, 2 * PAD)[None, :]
        both = tl.load(head_ptrs + element, mask=present & (element < ROTARY), other=0.0)
        first, second = tl.split(tl.reshape(both, (HEADS, PAD, 2)))
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def store_pairs(
    head_ptrs,
    present,
    first,
    second,
    ROTARY: tl.constexpr,
    IS_NEOX: tl.constexpr,
    HEADS: tl.constexpr,
):
    """The reverse of `load_pairs`, for what already has the target's dtype."""
    HALF: tl.constexpr = ROTARY // 2
    PAD: tl.constexpr = triton.next_power_of_2(HALF)
    if IS_NEOX:
        pair = tl.arange(0, PAD)[None, :]
        mask = present & (pair < HALF)
        tl.store(head_ptrs + pair, first, mask=mask)
        tl.store(head_ptrs + HALF + pair, second, mask=mask)
    else:
        element = tl.arange(0, 2 * PAD)[None, :]
        both = tl.reshape(tl.join(first, second), (HEADS, 2 * PAD))
        tl.store(head_ptrs + element, both, mask=present & (element < ROTARY))


@triton.jit
def rotate_heads(
    head_ptrs,
    target_ptrs,
    present,
    weight_ptr,
    epsilon,
    cosine,
    sine,
    HEAD_SIZE: tl.constexpr,
    ROTARY: tl.constexpr,
    IS_NEOX: tl.constexpr,
    HEADS: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    """Normalise (where there is a weight), rotate and store heads at `target_ptrs`.

    Returns (first partners, second partners, what is not rotated), float32; the last is [HEADS, 1]
    of zeros where all is rotated.
    """
    REST: tl.constexpr = HEAD_SIZE - ROTARY
    if IN_PLACE:
        target_ptrs = head_ptrs  # or the compiler holds the same addresses twice
    first, second = load_pairs(head_ptrs, present, ROTARY, IS_NEOX, HEADS)
    rest = tl.zeros([HEADS, 1], tl.float32)
    if REST > 0:
        element = tl.arange(0, triton.next_power_of_2(REST))[None, :]
        in_rest = present & (element < REST)
        rest = tl.load(head_ptrs + ROTARY + element, mask=in_rest, other=0.0).to(tl.float32)
    if weight_ptr is not None:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1) + tl.sum(rest * rest, 1)
        factor = (1.0 / tl.sqrt(squares / HEAD_SIZE + epsilon))[:, None]
        always = tl.full([1, 1], 1, tl.int32) > 0
        weights = weight_ptr + tl.zeros([1, 1], tl.int32)
        first_weight, second_weight = load_pairs(weights, always, ROTARY, IS_NEOX, 1)
        first = first * factor * first_weight
        second = second * factor * second_weight
        if REST > 0:
            rest_weight = tl.load(weights + ROTARY + element, mask=element < REST, other=0.0)
            rest = rest * factor * rest_weight.to(tl.float32)
    if REST > 0 and (weight_ptr is not None or not IN_PLACE):
        tl.store(
            target_ptrs + ROTARY + element,
            rest.to(target_ptrs.dtype.element_ty),
            mask=in_rest,
        )
    turned_first = first * cosine - second * sine
    turned_second = second * cosine + first * sine
    store_pairs(
        target_ptrs,
        present,
        turned_first.to(target_ptrs.dtype.element_ty),
        turned_second.to(target_ptrs.dtype.element_ty),
        ROTARY,
        IS_NEOX,
        HEADS,
    )
    return turned_first, turned_second, rest


@triton.jit(do_not_specialize=["slots", "heads", "kv_heads"])
def rope_and_cache_write_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    query_out_ptr,
    key_out_ptr,
    positions_ptr,
    cos_sin_ptr,
    query_weight_ptr,
    key_weight_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slot_mapping_ptr,
    slots,
    heads,
    kv_heads,
    epsilon,
    inverse_k_scale,
    inverse_v_scale,
    query_stride_token,
    query_stride_head,
    key_stride_token,
    key_stride_head,
    value_stride_token,
    value_stride_head,
    query_out_stride_token,
    query_out_stride_head,
    key_out_stride_token,
    key_out_stride_head,
    cos_sin_stride,
    k_stride_block,
    k_stride_head,
    k_stride_row,
    v_stride_block,
    v_stride_head,
    v_stride_row,
    HEAD_SIZE: tl.constexpr,
    ROTARY: tl.constexpr,
    IS_NEOX: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    """Grid (tokens, tiles of query heads + tiles of KV heads), HEADS heads to a tile.

    LARGEST: the largest number that the cache's dtype holds, 0.0 where there is nothing to clamp.
    IN_PLACE: whether the results go where the heads came from.
    """
    HALF: tl.constexpr = ROTARY // 2
    REST: tl.constexpr = HEAD_SIZE - ROTARY
    token = tl.program_id(0).to(tl.int64)
    query_tiles = tl.cdiv(heads, HEADS)
    tile = tl.program_id(1)
    # Both at once: the slot does not wait for the position, nor the position for the slot.
    position = tl.load(positions_ptr + token).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token, mask=token < slots, other=-1).to(tl.int64)
    pair = tl.arange(0, triton.next_power_of_2(HALF))
    angle_ptr = cos_sin_ptr + position * cos_sin_stride + pair
    cosine = tl.load(angle_ptr, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
    sine = tl.load(angle_ptr + HALF, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
    if tile < query_tiles:
        head = (tile * HEADS + tl.arange(0, HEADS))[:, None]
        rotate_heads(
            query_ptr + token * query_stride_token + head * query_stride_head,
            query_out_ptr + token * query_out_stride_token + head * query_out_stride_head,
            head < heads,
            query_weight_ptr,
            epsilon,
            cosine,
            sine,
            HEAD_SIZE,
            ROTARY,
            IS_NEOX,
            HEADS,
            IN_PLACE,
        )
    else:
        head = ((tile - query_tiles) * HEADS + tl.arange(0, HEADS))[:, None]
        present = head < kv_heads
        first, second, rest = rotate_heads(
            key_ptr + token * key_stride_token + head * key_stride_head,
            key_out_ptr + token * key_out_stride_token + head * key_out_stride_head,
            present,
            key_weight_ptr,
            epsilon,
            cosine,
            sine,
            HEAD_SIZE,
            ROTARY,
            IS_NEOX,
            HEADS,
            IN_PLACE,
        )
        if slot >= 0:
            block = slot // BLOCK_SIZE
            row = slot % BLOCK_SIZE
            k_ptrs = (
                k_cache_ptr
                + (block * k_stride_block + row * k_stride_row)
                + head.to(tl.int64) * k_stride_head
            )
            store_pairs(
                k_ptrs,
                present,
                stored(first, inverse_k_scale, k_cache_ptr, LARGEST),
                stored(second, inverse_k_scale, k_cache_ptr, LARGEST),
                ROTARY,
                IS_NEOX,
                HEADS,
            )
            if REST > 0:
                element = tl.arange(0, triton.next_power_of_2(REST))[None, :]
                tl.store(
                    k_ptrs + ROTARY + element,
                    stored(rest, inverse_k_scale, k_cache_ptr, LARGEST),
                    mask=present & (element < REST),
                )
            element = tl.arange(0, triton.next_power_of_2(HEAD_SIZE))[None, :]
            in_head = present & (element < HEAD_SIZE)
            value = tl.load(
                value_ptr + token * value_stride_token + head * value_stride_head + element,
                mask=in_head,
                other=0.0,
            ).to(tl.float32)
            tl.store(
                v_cache_ptr
                + (block * v_stride_block + row * v_stride_row)
                + head.to(tl.int64) * v_stride_head
                + element,
                stored(value, inverse_v_scale, v_cache_ptr, LARGEST),
                mask=in_head,
            )


_STRIDES = (
    "query_stride_token",
    "query_stride_head",
    "key_stride_token",
    "key_stride_head",
    "value_stride_token",
    "value_stride_head",
    "query_out_stride_token",
    "query_out_stride_head",
    "key_out_stride_token",
    "key_out_stride_head",
    "cos_sin_stride",
    "k_stride_block",
    "k_stride_head",
    "k_stride_row",
    "v_stride_block",
    "v_stride_head",
    "v_stride_row",
)

_BUDGETS: dict[str, dict[str, Budget]] = {
    "rope_and_write/bf16/32x128/rotary128/neox": {
        "gfx942": Budget(8, narrow_loads={16: 2}),
        "gfx950": Budget(8, narrow_loads={16: 2}),
    },
    "rope_and_write/bf16/32x128/rotary128/gptj": {
        "gfx942": Budget(8, narrow_loads={16: 2}),
        "gfx950": Budget(8, narrow_loads={16: 2}),
    },
    "rope_and_write/bf16/64x128/rotary128/neox/norm": {
        "gfx942": Budget(8, narrow_loads={16: 6}),
        "gfx950": Budget(8, narrow_loads={16: 6}),
    },
    "rope_and_write/fp8/32x128/rotary128/neox": {
        "gfx942": Budget(8, narrow_loads={64: 2, 16: 2}),
        "gfx950": Budget(8, narrow_loads={64: 2, 16: 2}),
    },
    "rope_and_write/bf16/32x80/rotary32/neox": {
        "gfx942": Budget(8, narrow_loads={32: 6}),
        "gfx950": Budget(8, narrow_loads={32: 6}),
    },
}


def _variant(
    heads: int,
    head_size: int,
    rotary: int | None = None,
    is_neox: bool = True,
    norm: bool = False,
    cache: str = "bf16",
) -> CodegenVariant:
    rotary = rotary or head_size
    name = f"rope_and_write/{cache}/{heads}x{head_size}/rotary{rotary}"
    name += ("/neox" if is_neox else "/gptj") + "/norm" * norm
    return CodegenVariant(
        name=name,
        kernel=rope_and_cache_write_kernel,
        signature={
            "query_ptr": "*bf16",
            "key_ptr": "*bf16",
            "value_ptr": "*bf16",
            "query_out_ptr": "*bf16",
            "key_out_ptr": "*bf16",
            "positions_ptr": "*i64",
            "cos_sin_ptr": "*bf16",
            **({"query_weight_ptr": "*bf16", "key_weight_ptr": "*bf16"} if norm else {}),
            "k_cache_ptr": f"*{cache}",
            "v_cache_ptr": f"*{cache}",
            "slot_mapping_ptr": "*i64",
            **dict.fromkeys(("slots", "heads", "kv_heads"), "i32"),
            **dict.fromkeys(("epsilon", "inverse_k_scale", "inverse_v_scale"), "fp32"),
            **dict.fromkeys(_STRIDES, "i32"),
        },
        constexprs={
            **({} if norm else {"query_weight_ptr": None, "key_weight_ptr": None}),
            "HEAD_SIZE": head_size,
            "ROTARY": rotary,
            "IS_NEOX": is_neox,
            "HEADS": heads_per_program(heads, head_size),
            "BLOCK_SIZE": 16,
            "LARGEST": 240.0 if cache == "fp8" else 0.0,
            "IN_PLACE": not norm,  # as vLLM calls the two
        },
        num_warps=CONFIG.num_warps,
        divisible_by_16=_STRIDES,
        over_2_gib=("k_cache_ptr", "v_cache_ptr"),
        budgets=_BUDGETS.get(name, {}),
    )


CODEGEN_VARIANTS = (
    _variant(32, 128),
    _variant(32, 128, is_neox=False),
    _variant(64, 128, norm=True),
    _variant(32, 128, cache="fp8"),
    _variant(32, 80, rotary=32),
)
