"""Kernel for attention of one or a few new tokens per sequence over a paged cache (flash-decoding).

A workgroup attends to one part of a sequence's keys with all query rows of one KV head (its query
heads times the new tokens), so that keys and values are read once. With several parts the last
workgroup of a sequence and head to finish merges them all: one launch in any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from vllm_amdopt.kernels.last_block_merge import is_last_to_arrive, merge_parts
from vllm_amdopt.kernels.online_softmax import lowest_visible, softmax_step, visible_keys
from vllm_amdopt.kernels.paged_tile import load_tile, pages_of_tile
from vllm_amdopt.kernels.soft_cap import base2_scores
from vllm_amdopt.kernels.split_plan import FUSED_SPLIT_POLICY
from vllm_amdopt.kernels.variants import Budget, CodegenVariant

LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True)
class LaunchConfig:
    """One program attends with `rows` query rows (padded) to `tile` tokens at a time.

    merge_chunk: parts whose partial results are loaded at once when they are merged.
    """

    rows: int
    tile: int
    merge_chunk: int
    num_warps: int
    num_stages: int
    why: str


def choose_config(rows: int, head_size: int) -> LaunchConfig:
    """The launch for `rows` query rows per KV head; more than 64 take several programs."""
    padded = min(64, max(16, triton.next_power_of_2(rows)))
    width = triton.next_power_of_2(head_size)
    return LaunchConfig(
        rows=padded,
        tile=32,
        merge_chunk=max(1, min(8, 64 * 256 // (padded * width))),
        num_warps=4,
        num_stages=1,
        why=(
            "16 is the smallest matrix-instruction tile: fewer rows are padded to it; 32 tokens "
            "keep two tiles of keys and values in registers, one attended to and one under way, "
            "and leave four waves per SIMD; compiled for gfx942, more stages double the LDS "
            "without more bytes in flight; 64 registers a lane hold the partial results under way"
        ),
    )


@triton.jit(do_not_specialize=["window", "splits", "table_stride"])
def decode_kernel(
    query_ptr,
    k_cache_ptr,
    v_cache_ptr,
    block_table_ptr,
    seq_lens_ptr,
    sinks_ptr,
    alibi_slopes_ptr,
    out_ptr,
    partial_ptr,
    partial_lse_ptr,
    counters_ptr,
    score_scale,
    cap_log2,
    v_scale,
    window,
    splits,
    table_stride,
    query_stride_token,
    query_stride_head,
    k_stride_block,
    k_stride_head,
    v_stride_block,
    v_stride_head,
    out_stride_token,
    out_stride_head,
    K_STRIDE_ROW: tl.constexpr,
    V_STRIDE_ROW: tl.constexpr,
    GROUP: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DIRECT: tl.constexpr,
    LEAST_TILES: tl.constexpr,
    MANY_TILES: tl.constexpr,
    FAN: tl.constexpr,
    MERGE_CHUNK: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
):
    """Grid (seqs, kv_heads x tiles of rows, splits); a row is one query token of one head.

    DIRECT: one part each, and nothing to merge. Otherwise a sequence takes as many parts as its own
    length fills with LEAST_TILES (over FAN parts: with MANY_TILES), at most `splits`; the other
    workgroups do nothing. A part
    leaves its normalised result in partial [workgroup, ROWS, HEAD_SIZE] and its base-2 log-sum-exp
    in partial_lse [workgroup, ROWS], fp32; counters: 1 + ceil(splits / FAN) for each sequence and
    tile, zero before and after. Head sizes are a power of two, or a sum of two: LOW and REST.
    """
    LOW: tl.constexpr = triton.next_power_of_2(HEAD_SIZE // 2 + 1)
    REST: tl.constexpr = HEAD_SIZE - LOW
    ROW_TILES: tl.constexpr = (GROUP * QUERY_LEN + ROWS - 1) // ROWS
    MASKED: tl.constexpr = HAS_WINDOW or QUERY_LEN > 1
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) // ROW_TILES
    split = tl.program_id(2)

    row = (tl.program_id(1) % ROW_TILES) * ROWS + tl.arange(0, ROWS)
    present = row < GROUP * QUERY_LEN
    leading = present & (row * 0 + split == 0)  # a tensor: Triton does not interpret scalar masks
    token = row // GROUP
    head = kv_head * GROUP + row % GROUP
    low = tl.arange(0, LOW)
    # 64 bits in the scalar part only: what lanes add is small, and keeps the loads' masks cheap.
    out_ptrs = (out_ptr + sequence * QUERY_LEN * out_stride_token) + (
        token[:, None] * out_stride_token + head[:, None] * out_stride_head
    )
    out_type = out_ptr.dtype.element_ty

    seq_len = tl.load(seq_lens_ptr + sequence)
    if seq_len <= 0:
        padded = tl.arange(0, triton.next_power_of_2(HEAD_SIZE))
        tl.store(
            out_ptrs + padded[None, :],
            tl.zeros([ROWS, triton.next_power_of_2(HEAD_SIZE)], out_type),
            mask=leading[:, None] & (padded < HEAD_SIZE)[None, :],
        )
        return
    lowest = lowest_visible(seq_len, window, HAS_WINDOW, QUERY_LEN)
    start = lowest // TILE * TILE
    last = seq_len - 1
    parts = 1
    if not DIRECT:
        tiles = tl.cdiv(seq_len - start, TILE)
        each = tl.maximum(LEAST_TILES, tl.minimum(tl.cdiv(tiles, FAN), MANY_TILES))
        each = tl.maximum(tl.cdiv(tiles, splits), each)
        parts = tl.cdiv(tiles, each)
        if split >= parts:
            return
        start += split * each * TILE
        last = tl.minimum(start + each * TILE, seq_len) - 1

    query_type = query_ptr.dtype.element_ty
    limit = seq_len - QUERY_LEN + token  # the row's own position, the last that it sees
    # A finite floor instead of -inf: exp2(-inf - floor) is 0, exp2(-inf - -inf) would be NaN.
    maximum = tl.full([ROWS], -1.0e30, tl.float32)
    denominator = tl.zeros([ROWS], tl.float32)
    if sinks_ptr is not None:
        # A score like any other, whose value is 0; the first part has it.
        sink = tl.load(sinks_ptr + head, mask=leading, other=float("-inf"))
        sink = sink.to(tl.float32) * LOG2_E
        maximum = tl.maximum(maximum, sink)
        denominator = tl.exp2(sink - maximum)
    if alibi_slopes_ptr is not None:
        slope = tl.load(alibi_slopes_ptr + head, mask=present, other=0.0).to(tl.float32) * LOG2_E
    accumulator = tl.zeros([ROWS, LOW], tl.float32)
    if REST > 0:
        accumulator_rest = tl.zeros([ROWS, REST], tl.float32)

    # Pages are known two tiles ahead, keys and values are under way one tile ahead. A tile of keys
    # is asked for when the one before has been used, so that both take the same registers.
    table_row_ptr = block_table_ptr + sequence * table_stride
    k_head_ptr = k_cache_ptr + kv_head.to(tl.int64) * k_stride_head
    v_head_ptr = v_cache_ptr + kv_head.to(tl.int64) * v_stride_head
    pages = pages_of_tile(table_row_ptr, start, lowest, last, BLOCK_SIZE, TILE)
    key = load_tile(
        k_head_ptr, pages, start, last, k_stride_block, K_STRIDE_ROW, BLOCK_SIZE, TILE, 0, LOW
    )
    value = load_tile(
        v_head_ptr, pages, start, last, v_stride_block, V_STRIDE_ROW, BLOCK_SIZE, TILE, 0, LOW
    )
    if REST > 0:
        key_rest = load_tile(
            k_head_ptr,
            pages,
            start,
            last,
            k_stride_block,
            K_STRIDE_ROW,
            BLOCK_SIZE,
            TILE,
            LOW,
            REST,
        )
        value_rest = load_tile(
            v_head_ptr,
            pages,
            start,
            last,
            v_stride_block,
            V_STRIDE_ROW,
            BLOCK_SIZE,
            TILE,
            LOW,
            REST,
        )
    # Behind the first keys and values, so that all of them are under way together.
    query_ptrs = (query_ptr + sequence * QUERY_LEN * query_stride_token) + (
        token[:, None] * query_stride_token + head[:, None] * query_stride_head
    )
    query = tl.load(query_ptrs + low[None, :], mask=present[:, None], other=0.0)
    if REST > 0:
        rest = LOW + tl.arange(0, REST)
        query_rest = tl.load(query_ptrs + rest[None, :], mask=present[:, None], other=0.0)
    pages = pages_of_tile(table_row_ptr, start + TILE, lowest, last, BLOCK_SIZE, TILE)
    final = start + (last - start) // TILE * TILE
    for tile_start in range(start, final, TILE):
        next_start = tile_start + TILE
        next_pages = pages_of_tile(table_row_ptr, next_start + TILE, lowest, last, BLOCK_SIZE, TILE)
        products = tl.dot(query, tl.trans(key.to(query_type)), input_precision="ieee")
        if REST > 0:
            products = tl.dot(
                query_rest, tl.trans(key_rest.to(query_type)), products, input_precision="ieee"
            )
        key = load_tile(
            k_head_ptr, pages, next_start, last, k_stride_block, K_STRIDE_ROW, BLOCK_SIZE, TILE, 0,
            LOW,
        )  # fmt: skip
        if REST > 0:
            key_rest = load_tile(
                k_head_ptr, pages, next_start, last, k_stride_block, K_STRIDE_ROW, BLOCK_SIZE, TILE,
                LOW, REST,
            )  # fmt: skip
        scores = base2_scores(products, score_scale, cap_log2, HAS_SOFT_CAP)
        position = tile_start + tl.arange(0, TILE)
        if alibi_slopes_ptr is not None:
            scores += slope[:, None] * (position[None, :] - limit[:, None]).to(tl.float32)
        if MASKED:
            visible = visible_keys(position, limit, window, HAS_WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        weights, correction, maximum, denominator = softmax_step(scores, maximum, denominator)
        weights = weights.to(query_type)
        accumulator = accumulator * correction[:, None]
        accumulator = tl.dot(weights, value.to(query_type), accumulator, input_precision="ieee")
        value = load_tile(
            v_head_ptr, pages, next_start, last, v_stride_block, V_STRIDE_ROW, BLOCK_SIZE, TILE, 0,
            LOW,
        )  # fmt: skip
        if REST > 0:
            accumulator_rest = accumulator_rest * correction[:, None]
            accumulator_rest = tl.dot(
                weights, value_rest.to(query_type), accumulator_rest, input_precision="ieee"
            )
            value_rest = load_tile(
                v_head_ptr, pages, next_start, last, v_stride_block, V_STRIDE_ROW, BLOCK_SIZE, TILE,
                LOW, REST,
            )  # fmt: skip
        pages = next_pages

    # The last tile, the only one that may hold fewer tokens, asks for nothing more.
    products = tl.dot(query, tl.trans(key.to(query_type)), input_precision="ieee")
    if REST > 0:
        products = tl.dot(
            query_rest, tl.trans(key_rest.to(query_type)), products, input_precision="ieee"
        )
    scores = base2_scores(products, score_scale, cap_log2, HAS_SOFT_CAP)
    position = final + tl.arange(0, TILE)
    if alibi_slopes_ptr is not None:
        scores += slope[:, None] * (position[None, :] - limit[:, None]).to(tl.float32)
    visible = visible_keys(position, limit, window, HAS_WINDOW)
    scores = tl.where(visible, scores, float("-inf"))
    weights, correction, maximum, denominator = softmax_step(scores, maximum, denominator)
    weights = weights.to(query_type)
    divisor = tl.where(denominator > 0.0, denominator, 1.0)[:, None]
    accumulator = accumulator * correction[:, None]
    accumulator = tl.dot(weights, value.to(query_type), accumulator, input_precision="ieee")
    result = accumulator / divisor
    if REST > 0:
        accumulator_rest = accumulator_rest * correction[:, None]
        accumulator_rest = tl.dot(
            weights, value_rest.to(query_type), accumulator_rest, input_precision="ieee"
        )
        result_rest = accumulator_rest / divisor

    if parts == 1:
        stored = present[:, None]
        tl.store(out_ptrs + low[None, :], (result * v_scale).to(out_type), mask=stored)
        if REST > 0:
            tl.store(out_ptrs + rest[None, :], (result_rest * v_scale).to(out_type), mask=stored)
    elif not DIRECT:
        program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        lane = tl.arange(0, ROWS)
        slot = program * splits + split
        part_ptrs = partial_ptr + (slot * ROWS + lane)[:, None] * HEAD_SIZE
        tl.store(part_ptrs + low[None, :], result, mask=present[:, None])
        if REST > 0:
            tl.store(part_ptrs + rest[None, :], result_rest, mask=present[:, None])
        lse = maximum + tl.log2(denominator)
        tl.store(partial_lse_ptr + slot * ROWS + lane, lse, mask=present)

        # Up to FAN parts are merged at once, more in two steps: by groups, then those together.
        element = tl.arange(0, triton.next_power_of_2(HEAD_SIZE))
        whole = present[:, None] & (element < HEAD_SIZE)[None, :]
        counter_ptr = counters_ptr + program * (1 + tl.cdiv(splits, FAN))
        groups = tl.cdiv(parts, FAN)
        first = split // FAN * FAN
        counter = 1 + first // FAN
        members = tl.minimum(parts - first, FAN)
        step = 1
        finished = True
        for level in range(0, tl.minimum(groups, 2)):
            if finished:
                finished = is_last_to_arrive(counter_ptr + counter, members)
            if finished:
                slot = program * splits + first
                partial_ptrs = (
                    partial_ptr + (slot * ROWS + lane)[:, None] * HEAD_SIZE + element[None, :]
                )
                lse_ptrs = partial_lse_ptr + slot * ROWS + lane
                merged, merged_lse = merge_parts(
                    partial_ptrs,
                    lse_ptrs,
                    members,
                    step * ROWS * HEAD_SIZE,
                    step * ROWS,
                    whole,
                    present,
                    MERGE_CHUNK,
                )
                if (level == 1) | (groups == 1):
                    tl.store(
                        out_ptrs + element[None, :], (merged * v_scale).to(out_type), mask=whole
                    )
                else:
                    # The group's result takes the place of its first part, which all have read.
                    tl.debug_barrier()
                    tl.store(partial_ptrs, merged, mask=whole)
                    tl.store(lse_ptrs, merged_lse, mask=present)
            first = 0
            counter = 0
            members = groups
            step = FAN


_STRIDES = tuple(
    f"{tensor}_stride_{name}"
    for tensor, name in (
        *(("query", "token"), ("query", "head"), ("k", "block"), ("k", "head")),
        *(("v", "block"), ("v", "head"), ("out", "token"), ("out", "head")),
    )
)


_BUDGETS: dict[str, dict[str, Budget]] = {
    "decode/bf16/group4/head128/block16": {
        "gfx942": Budget(4, "f32_16x16x16_bf16", full_waits=1),
        "gfx950": Budget(4, "f32_16x16x32_bf16"),
    },
    "decode/bf16/group4/head128/block16/direct": {
        "gfx942": Budget(4, "f32_16x16x16_bf16", full_waits=1),
        "gfx950": Budget(4, "f32_16x16x32_bf16"),
    },
    "decode/bf16/group4/head128/block64/direct": {
        "gfx942": Budget(4, "f32_16x16x16_bf16", full_waits=1),
        "gfx950": Budget(4, "f32_16x16x32_bf16"),
    },
    "decode/bf16/group4/head128/block1": {
        "gfx942": Budget(4, "f32_16x16x16_bf16", narrow_loads={32: 4}, full_waits=1),
        "gfx950": Budget(4, "f32_16x16x32_bf16", narrow_loads={32: 2}, full_waits=1),
    },
    "decode/bf16/group4/head128/block16/fp8_cache": {
        "gfx942": Budget(4, "f32_16x16x16_bf16", full_waits=1),
        "gfx950": Budget(4, "f32_16x16x32_bf16", full_waits=1),
    },
    "decode/bf16/group4/head128/block16/4_tokens/alibi": {
        "gfx942": Budget(3, "f32_16x16x16_bf16", full_waits=1),
        "gfx950": Budget(3, "f32_16x16x32_bf16"),
    },
    "decode/bf16/group16/head128/block16": {
        "gfx942": Budget(3, "f32_16x16x16_bf16", full_waits=1),
        "gfx950": Budget(3, "f32_16x16x32_bf16"),
    },
    "decode/bf16/group64/head128/block16": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", full_waits=1),
        "gfx950": Budget(2, "f32_32x32x16_bf16"),
    },
    "decode/bf16/group1/head80/block16": {
        "gfx942": Budget(4, "f32_16x16x16_bf16", narrow_loads={32: 2}),
        "gfx950": Budget(4, "f32_16x16x16_bf16 f32_16x16x32_bf16", narrow_loads={32: 2}),
    },
    "decode/bf16/group8/head64/block16/window/sinks": {
        "gfx942": Budget(5, "f32_16x16x16_bf16"),
        "gfx950": Budget(5, "f32_16x16x32_bf16"),
    },
    "decode/bf16/group2/head256/block16/window/cap": {
        "gfx942": Budget(2, "f32_16x16x16_bf16", full_waits=1, scalar_spills=8),
        "gfx950": Budget(2, "f32_16x16x32_bf16"),
    },
    "decode/fp16/group4/head128/block16": {
        "gfx942": Budget(4, "f32_16x16x16_f16", full_waits=1),
        "gfx950": Budget(4, "f32_16x16x32_f16"),
    },
    "decode/fp32/group4/head128/block16": {
        "gfx942": Budget(3, "f32_16x16x4_f32"),
        "gfx950": Budget(3, "f32_16x16x4_f32"),
    },
}


def _variant(
    name: str,
    group: int,
    head_size: int,
    block_size: int,
    dtype: str = "bf16",
    cache: str = "",
    query_len: int = 1,
    direct: bool = False,
    window: bool = False,
    soft_cap: bool = False,
    sinks: bool = False,
    alibi: bool = False,
) -> CodegenVariant:
    config, policy = choose_config(group * query_len, head_size), FUSED_SPLIT_POLICY
    name = f"decode/{dtype}/{name}"
    absent: dict[str, Any] = {}
    if not sinks:
        absent["sinks_ptr"] = None
    if not alibi:
        absent["alibi_slopes_ptr"] = None
    if direct:
        absent |= dict.fromkeys(("partial_ptr", "partial_lse_ptr", "counters_ptr"))
    return CodegenVariant(
        name=name,
        kernel=decode_kernel,
        signature={
            "query_ptr": f"*{dtype}",
            "k_cache_ptr": f"*{cache or dtype}",
            "v_cache_ptr": f"*{cache or dtype}",
            "block_table_ptr": "*i32",
            "seq_lens_ptr": "*i32",
            "sinks_ptr": "*fp32",
            "alibi_slopes_ptr": "*fp32",
            "out_ptr": f"*{dtype}",
            "partial_ptr": "*fp32",
            "partial_lse_ptr": "*fp32",
            "counters_ptr": "*i32",
            "score_scale": "fp32",
            "cap_log2": "fp32",
            "v_scale": "fp32",
            "window": "i32",
            "splits": "i32",
            "table_stride": "i32",
            **dict.fromkeys(_STRIDES, "i32"),
        },
        constexprs={
            **absent,
            "K_STRIDE_ROW": 2 * head_size,
            "V_STRIDE_ROW": 2 * head_size,
            "GROUP": group,
            "QUERY_LEN": query_len,
            "HEAD_SIZE": head_size,
            "BLOCK_SIZE": block_size,
            "ROWS": config.rows,
            "TILE": config.tile,
            "DIRECT": direct,
            "LEAST_TILES": policy.least_tokens // config.tile,
            "MANY_TILES": policy.least_tokens_in_two_steps // config.tile,
            "FAN": policy.fan_in,
            "MERGE_CHUNK": config.merge_chunk,
            "HAS_WINDOW": window,
            "HAS_SOFT_CAP": soft_cap,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        divisible_by_16=_STRIDES,
        over_2_gib=("k_cache_ptr", "v_cache_ptr"),
        budgets=_BUDGETS.get(name, {}),
    )


CODEGEN_VARIANTS = (
    _variant("group4/head128/block16", 4, 128, 16),
    _variant("group4/head128/block16/direct", 4, 128, 16, direct=True),
    _variant("group4/head128/block64/direct", 4, 128, 64, direct=True),
    _variant("group4/head128/block1", 4, 128, 1),
    _variant("group4/head128/block16/fp8_cache", 4, 128, 16, cache="fp8"),
    _variant("group4/head128/block16/4_tokens/alibi", 4, 128, 16, query_len=4, alibi=True),
    _variant("group16/head128/block16", 16, 128, 16),
    _variant("group64/head128/block16", 64, 128, 16),
    _variant("group1/head80/block16", 1, 80, 16),
    _variant("group8/head64/block16/window/sinks", 8, 64, 16, window=True, sinks=True),
    _variant("group2/head256/block16/window/cap", 2, 256, 16, window=True, soft_cap=True),
    _variant("group4/head128/block16", 4, 128, 16, dtype="fp16"),
    _variant("group4/head128/block16", 4, 128, 16, dtype="fp32"),
)
