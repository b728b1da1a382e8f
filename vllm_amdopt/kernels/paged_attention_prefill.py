"""Kernel for causal attention of many new tokens per sequence over a paged cache.

The sequence's keys and values, the new ones too, lie in the cache already. One program takes a
tile of rows, a row being one query head of one token: all heads of a KV head share a tile, so
short chunks fill it and keys are read once for the group.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from vllm_amdopt.kernels.paged_tile import tile_blocks, token_offsets
from vllm_amdopt.kernels.soft_cap import base2_scores
from vllm_amdopt.kernels.variants import Budget, CodegenVariant


@dataclass(frozen=True)
class LaunchConfig:
    """One program attends with `rows` (token, head) pairs to `tile` tokens at a time."""

    rows: int
    tile: int
    num_warps: int
    num_stages: int
    why: str


def choose_config(rows: int, head_size: int, element_bytes: int) -> LaunchConfig:
    """The launch for sequences of at most `rows` (token, head) pairs."""
    row_bytes = triton.next_power_of_2(head_size) * element_bytes
    most = 64 if row_bytes <= 512 else 32
    return LaunchConfig(
        rows=min(most, max(16, triton.next_power_of_2(rows))),
        tile=max(16, min(64, 16384 // row_bytes)),
        num_warps=4,
        num_stages=1,
        why=(
            "64 rows give each of four waves one 16-row matrix tile of its own; the query and "
            "16 KiB each of keys and values stay within the 64 KiB of LDS; compiled for gfx942, "
            "more stages double the LDS without more bytes in flight"
        ),
    )


@triton.jit(do_not_specialize=["window", "table_stride"])
def prefill_kernel(
    query_ptr,
    k_cache_ptr,
    v_cache_ptr,
    block_table_ptr,
    seq_lens_ptr,
    query_start_ptr,
    out_ptr,
    score_scale,
    cap_log2,
    window,
    table_stride,
    query_stride_token,
    query_stride_head,
    k_stride_block,
    k_stride_head,
    k_stride_row,
    v_stride_block,
    v_stride_head,
    v_stride_row,
    out_stride_token,
    out_stride_head,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
):
    """Grid (tiles of the longest chunk's rows, kv_heads, seqs); the rest leave at once."""
    HEAD_PAD: tl.constexpr = triton.next_power_of_2(HEAD_SIZE)
    sequence = tl.program_id(2).to(tl.int64)
    kv_head = tl.program_id(1)
    query_start = tl.load(query_start_ptr + sequence)
    query_len = tl.load(query_start_ptr + sequence + 1) - query_start
    first_row = tl.program_id(0) * ROWS
    if first_row >= query_len * GROUP:
        return
    seq_len = tl.load(seq_lens_ptr + sequence)

    row = first_row + tl.arange(0, ROWS)
    token = row // GROUP
    head = kv_head * GROUP + row % GROUP
    present = token < query_len
    position = seq_len - query_len + token
    element = tl.arange(0, HEAD_PAD)
    in_head = (element < HEAD_SIZE)[None, :]
    query_row = query_start + token.to(tl.int64)
    query = tl.load(
        query_ptr
        + (query_row * query_stride_token + head * query_stride_head)[:, None]
        + element[None, :],
        mask=present[:, None] & in_head,
        other=0.0,
    )

    # The tile's last token sees most, its first token sees furthest back.
    last_token = tl.minimum((first_row + ROWS - 1) // GROUP, query_len - 1)
    end = tl.minimum(seq_len - query_len + last_token + 1, seq_len)
    start = seq_len * 0
    if HAS_WINDOW:
        first_position = seq_len - query_len + first_row // GROUP
        start = tl.maximum(first_position - window + 1, 0) // TILE * TILE

    # A finite floor instead of -inf: exp2(-inf - floor) is 0, exp2(-inf - -inf) would be NaN.
    maximum = tl.full([ROWS], -1.0e30, tl.float32)
    denominator = tl.zeros([ROWS], tl.float32)
    accumulator = tl.zeros([ROWS, HEAD_PAD], tl.float32)
    table_row_ptr = block_table_ptr + sequence * table_stride
    k_head_ptr = k_cache_ptr + kv_head.to(tl.int64) * k_stride_head
    v_head_ptr = v_cache_ptr + kv_head.to(tl.int64) * v_stride_head
    blocks = tile_blocks(table_row_ptr, start, end, BLOCK_SIZE, TILE)
    for tile_start in range(start, end, TILE):
        key_position = tile_start + tl.arange(0, TILE)
        # Rows past the end may hold anything, NaN too: 0 * NaN would spread, so they are not read.
        read = (key_position < end)[:, None] & in_head
        base, offsets = token_offsets(
            blocks, tile_start, k_stride_block, k_stride_row, BLOCK_SIZE, TILE
        )
        key = tl.load(k_head_ptr + base + offsets[:, None] + element[None, :], mask=read, other=0.0)
        base, offsets = token_offsets(
            blocks, tile_start, v_stride_block, v_stride_row, BLOCK_SIZE, TILE
        )
        value = tl.load(
            v_head_ptr + base + offsets[:, None] + element[None, :], mask=read, other=0.0
        )
        blocks = tile_blocks(table_row_ptr, tile_start + TILE, end, BLOCK_SIZE, TILE)

        products = tl.dot(query, tl.trans(key), input_precision="ieee")
        scores = base2_scores(products, score_scale, cap_log2, HAS_SOFT_CAP)
        visible = key_position[None, :] <= position[:, None]
        if HAS_WINDOW:
            visible = visible & (key_position[None, :] > position[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        correction = tl.exp2(maximum - new_maximum)
        weights = tl.exp2(scores - new_maximum[:, None])
        denominator = denominator * correction + tl.sum(weights, 1)
        accumulator = accumulator * correction[:, None]
        accumulator = tl.dot(weights.to(value.dtype), value, accumulator, input_precision="ieee")
        maximum = new_maximum

    result = accumulator / tl.where(denominator > 0.0, denominator, 1.0)[:, None]
    tl.store(
        out_ptr
        + (query_row * out_stride_token + head * out_stride_head)[:, None]
        + element[None, :],
        result.to(out_ptr.dtype.element_ty),
        mask=present[:, None] & in_head,
    )


_STRIDES = (
    "query_stride_token",
    "query_stride_head",
    "k_stride_block",
    "k_stride_head",
    "k_stride_row",
    "v_stride_block",
    "v_stride_head",
    "v_stride_row",
    "out_stride_token",
    "out_stride_head",
)


_BUDGETS: dict[str, dict[str, Budget]] = {
    "prefill/bf16/group4/head128/block16": {
        "gfx942": Budget(1, "f32_32x32x8_bf16", {32: 8}, 6, serial_loads=4),
        "gfx950": Budget(2, "f32_32x32x16_bf16", {32: 4}, 3, serial_loads=1),
    },
    "prefill/bf16/group4/head128/block64": {
        "gfx942": Budget(1, "f32_32x32x8_bf16", full_waits=5, serial_loads=4),
        "gfx950": Budget(2, "f32_32x32x16_bf16", full_waits=2),
    },
    "prefill/bf16/group16/head128/block16": {
        "gfx942": Budget(1, "f32_32x32x8_bf16", {32: 8}, 6, serial_loads=4),
        "gfx950": Budget(2, "f32_32x32x16_bf16", {32: 4}, 3, serial_loads=1),
    },
    "prefill/bf16/group4/head128/block16/rows16": {
        "gfx942": Budget(2, "f32_16x16x16_bf16", {32: 8}, 7, serial_loads=4),
        "gfx950": Budget(3, "f32_16x16x32_bf16", {32: 4}, 3, serial_loads=1),
    },
    "prefill/bf16/group4/head128/block1": {
        "gfx942": Budget(1, "f32_32x32x8_bf16", {32: 8}, 6, serial_loads=4),
        "gfx950": Budget(2, "f32_32x32x16_bf16", {32: 4}, 3, serial_loads=1),
    },
    "prefill/bf16/group8/head64/block16/window": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", {32: 4}, 5, serial_loads=2, scalar_spills=16),
        "gfx950": Budget(2, "f32_32x32x16_bf16", {32: 2}, 3, serial_loads=2, scalar_spills=17),
    },
    "prefill/bf16/group2/head256/block16/window/cap": {
        "gfx942": Budget(1, "f32_32x32x8_bf16", {32: 8}, 3, scalar_spills=12),
        "gfx950": Budget(1, "f32_32x32x16_bf16", {32: 4}, 3, serial_loads=1, scalar_spills=32),
    },
    "prefill/fp16/group4/head128/block16": {
        "gfx942": Budget(1, "f32_32x32x8_f16", {32: 8}, 6, serial_loads=4),
        "gfx950": Budget(2, "f32_32x32x16_f16", {32: 4}, 3, serial_loads=1),
    },
}


def _variant(
    group: int,
    head_size: int,
    block_size: int,
    dtype: str = "bf16",
    rows: int = 4096,
    window: bool = False,
    soft_cap: bool = False,
) -> CodegenVariant:
    config = choose_config(rows, head_size, 2)
    name = f"prefill/{dtype}/group{group}/head{head_size}/block{block_size}"
    name += f"/rows{config.rows}" if rows < 4096 else ""
    name += "/window" * window + "/cap" * soft_cap
    return CodegenVariant(
        name=name,
        kernel=prefill_kernel,
        signature={
            "query_ptr": f"*{dtype}",
            "k_cache_ptr": f"*{dtype}",
            "v_cache_ptr": f"*{dtype}",
            "block_table_ptr": "*i32",
            "seq_lens_ptr": "*i32",
            "query_start_ptr": "*i32",
            "out_ptr": f"*{dtype}",
            "score_scale": "fp32",
            "cap_log2": "fp32",
            "window": "i32",
            "table_stride": "i32",
            **dict.fromkeys(_STRIDES, "i32"),
        },
        constexprs={
            "GROUP": group,
            "HEAD_SIZE": head_size,
            "BLOCK_SIZE": block_size,
            "ROWS": config.rows,
            "TILE": config.tile,
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
    _variant(group=4, head_size=128, block_size=16),
    _variant(group=4, head_size=128, block_size=64),
    _variant(group=16, head_size=128, block_size=16),
    _variant(group=4, head_size=128, block_size=16, rows=16),
    _variant(group=4, head_size=128, block_size=1),
    _variant(group=8, head_size=64, block_size=16, window=True),
    _variant(group=2, head_size=256, block_size=16, window=True, soft_cap=True),
    _variant(group=4, head_size=128, block_size=16, dtype="fp16"),
)
