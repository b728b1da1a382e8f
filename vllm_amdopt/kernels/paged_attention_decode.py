"""Kernels for attention of one new token per sequence over a paged cache (flash-decoding).

`split_kernel` attends to one part of a sequence's keys with all query heads of one KV head, so
that keys and values are read once; `reduce_kernel` merges the parts. With a single part the first
kernel writes the result itself.
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
    """One program attends with `heads` query heads (padded) to `tile` tokens at a time."""

    heads: int
    tile: int
    num_warps: int
    num_stages: int
    why: str


@dataclass(frozen=True)
class ReduceConfig:
    """How the merging of parts is launched: one program per sequence and head."""

    num_warps: int
    why: str


REDUCE_CONFIG = ReduceConfig(
    num_warps=1, why="64 parts of 256 floats at most, and usually a handful of 128: one wave"
)


def choose_config(group: int, head_size: int, element_bytes: int) -> LaunchConfig:
    """The launch for `group` query heads per KV head; more than 64 take several programs."""
    row_bytes = triton.next_power_of_2(head_size) * element_bytes
    return LaunchConfig(
        heads=min(64, max(16, triton.next_power_of_2(group))),
        tile=max(16, min(64, 16384 // row_bytes)),
        num_warps=4,
        num_stages=1,
        why=(
            "16 is the smallest matrix-instruction tile: fewer heads are padded to it; 64 tokens "
            "give each of four waves 16 of its own in query @ key; 16 KiB of keys is what fits the "
            "64 KiB of LDS for two or more workgroups per compute unit; compiled for gfx942, more "
            "stages double the LDS without more bytes in flight"
        ),
    )


def padded_splits(splits: int) -> int:
    """The reduce kernel's tile: the next power of two, at least 2."""
    return max(2, triton.next_power_of_2(splits))


@triton.jit
def visible_start(seq_len, window, HAS_WINDOW: tl.constexpr, TILE: tl.constexpr):
    """First token of the first tile that the last token of the sequence sees."""
    if HAS_WINDOW:
        return tl.maximum(seq_len - window, 0) // TILE * TILE
    else:
        return seq_len * 0


@triton.jit(do_not_specialize=["window", "splits", "table_stride"])
def split_kernel(
    query_ptr,
    k_cache_ptr,
    v_cache_ptr,
    block_table_ptr,
    seq_lens_ptr,
    out_ptr,
    partial_ptr,
    partial_lse_ptr,
    score_scale,
    cap_log2,
    window,
    splits,
    table_stride,
    query_stride_seq,
    query_stride_head,
    k_stride_block,
    k_stride_head,
    k_stride_row,
    v_stride_block,
    v_stride_head,
    v_stride_row,
    out_stride_seq,
    out_stride_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    TILE: tl.constexpr,
    DIRECT: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
):
    """Grid (seqs, KV_HEADS x tiles of heads, splits).

    DIRECT writes `out`; otherwise the normalised partial result goes to partial [seqs, heads,
    splits, HEAD_SIZE] and its base-2 log-sum-exp to partial_lse [seqs, heads, splits], both fp32
    and dense. A part without tokens writes nothing.
    """
    HEAD_PAD: tl.constexpr = triton.next_power_of_2(HEAD_SIZE)
    HEAD_TILES: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) // HEAD_TILES
    split = tl.program_id(2)

    seq_len = tl.load(seq_lens_ptr + sequence)
    first = visible_start(seq_len, window, HAS_WINDOW, TILE)
    if DIRECT:
        start = first
        end = seq_len
    else:
        tokens_per_split = tl.cdiv(tl.cdiv(seq_len - first, TILE), splits) * TILE
        start = first + split * tokens_per_split
        end = tl.minimum(start + tokens_per_split, seq_len)
        if start >= end:
            return

    lane = (tl.program_id(1) % HEAD_TILES) * HEADS + tl.arange(0, HEADS)
    head = kv_head * GROUP + lane
    element = tl.arange(0, HEAD_PAD)
    in_head = (element < HEAD_SIZE)[None, :]
    query = tl.load(
        query_ptr
        + sequence * query_stride_seq
        + head[:, None] * query_stride_head
        + element[None, :],
        mask=(lane < GROUP)[:, None] & in_head,
        other=0.0,
    )

    # A finite floor instead of -inf: exp2(-inf - floor) is 0, exp2(-inf - -inf) would be NaN.
    maximum = tl.full([HEADS], -1.0e30, tl.float32)
    denominator = tl.zeros([HEADS], tl.float32)
    accumulator = tl.zeros([HEADS, HEAD_PAD], tl.float32)
    table_row_ptr = block_table_ptr + sequence * table_stride
    k_head_ptr = k_cache_ptr + kv_head.to(tl.int64) * k_stride_head
    v_head_ptr = v_cache_ptr + kv_head.to(tl.int64) * v_stride_head
    blocks = tile_blocks(table_row_ptr, start, end, BLOCK_SIZE, TILE)
    for tile_start in range(start, end, TILE):
        position = tile_start + tl.arange(0, TILE)
        visible = position < end
        if HAS_WINDOW:
            visible = visible & (position >= seq_len - window)
        # Other rows may hold anything, NaN too: 0 * NaN would spread, so they are not read.
        read = visible[:, None] & in_head
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
        scores = tl.where(visible[None, :], scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        correction = tl.exp2(maximum - new_maximum)
        weights = tl.exp2(scores - new_maximum[:, None])
        denominator = denominator * correction + tl.sum(weights, 1)
        accumulator = accumulator * correction[:, None]
        accumulator = tl.dot(weights.to(value.dtype), value, accumulator, input_precision="ieee")
        maximum = new_maximum

    result = accumulator / tl.where(denominator > 0.0, denominator, 1.0)[:, None]
    stored = (lane < GROUP)[:, None] & in_head
    if DIRECT:
        tl.store(
            out_ptr
            + sequence * out_stride_seq
            + head[:, None] * out_stride_head
            + element[None, :],
            result.to(out_ptr.dtype.element_ty),
            mask=stored,
        )
    else:
        part = (sequence * (KV_HEADS * GROUP) + head) * splits + split
        tl.store(partial_ptr + part[:, None] * HEAD_SIZE + element[None, :], result, mask=stored)
        tl.store(partial_lse_ptr + part, maximum + tl.log2(denominator), mask=lane < GROUP)


@triton.jit(do_not_specialize=["window", "splits"])
def reduce_kernel(
    partial_ptr,
    partial_lse_ptr,
    seq_lens_ptr,
    out_ptr,
    window,
    splits,
    out_stride_seq,
    out_stride_head,
    QUERY_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Grid (seqs, heads). SPLITS: `splits` padded to a power of two. TILE: the split kernel's."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    seq_len = tl.load(seq_lens_ptr + sequence)
    tiles = tl.cdiv(seq_len - visible_start(seq_len, window, HAS_WINDOW, TILE), TILE)
    split = tl.arange(0, SPLITS)
    # The split kernel's arithmetic: parts from here on hold no tokens and were not written.
    used = (split < splits) & (split * tl.cdiv(tiles, splits) < tiles)
    part = (sequence * QUERY_HEADS + head) * splits + split
    lse = tl.load(partial_lse_ptr + part, mask=used, other=float("-inf"))
    weights = tl.exp2(lse - tl.maximum(tl.max(lse, 0), -1.0e30))
    total = tl.sum(weights, 0)
    element = tl.arange(0, triton.next_power_of_2(HEAD_SIZE))
    partial = tl.load(
        partial_ptr + part[:, None] * HEAD_SIZE + element[None, :],
        mask=used[:, None] & (element < HEAD_SIZE)[None, :],
        other=0.0,
    )
    result = tl.sum(partial * weights[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    tl.store(
        out_ptr + sequence * out_stride_seq + head * out_stride_head + element,
        result.to(out_ptr.dtype.element_ty),
        mask=element < HEAD_SIZE,
    )


_STRIDES = (
    "query_stride_seq",
    "query_stride_head",
    "k_stride_block",
    "k_stride_head",
    "k_stride_row",
    "v_stride_block",
    "v_stride_head",
    "v_stride_row",
    "out_stride_seq",
    "out_stride_head",
)


_BUDGETS: dict[str, dict[str, Budget]] = {
    "split/bf16/kv8/group4/head128/block16": {
        "gfx942": Budget(2, "f32_16x16x16_bf16", {32: 8}, 6, serial_loads=3),
        "gfx950": Budget(3, "f32_16x16x32_bf16", {32: 4}, 2, serial_loads=1),
    },
    "split/bf16/kv8/group4/head128/block16/direct": {
        "gfx942": Budget(2, "f32_16x16x16_bf16", {32: 8}, 7, serial_loads=4),
        "gfx950": Budget(3, "f32_16x16x32_bf16", {32: 4}, 3, serial_loads=1),
    },
    "split/bf16/kv8/group4/head128/block64/direct": {
        "gfx942": Budget(2, "f32_16x16x16_bf16", full_waits=5, serial_loads=4),
        "gfx950": Budget(3, "f32_16x16x32_bf16", full_waits=2),
    },
    "split/bf16/kv8/group4/head128/block1": {
        "gfx942": Budget(2, "f32_16x16x16_bf16", {32: 8}, 6, serial_loads=3),
        "gfx950": Budget(3, "f32_16x16x32_bf16", {32: 4}, 2, serial_loads=1),
    },
    "split/bf16/kv1/group16/head128/block16": {
        "gfx942": Budget(2, "f32_16x16x16_bf16", {32: 8}, 6, serial_loads=3),
        "gfx950": Budget(3, "f32_16x16x32_bf16", {32: 4}, 2, serial_loads=1),
    },
    "split/bf16/kv1/group64/head128/block16": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", {32: 8}, 6, serial_loads=3, scalar_spills=17),
        "gfx950": Budget(2, "f32_32x32x16_bf16", {32: 4}, 2, serial_loads=1, scalar_spills=7),
    },
    "split/bf16/kv32/group1/head80/block16": {
        "gfx942": Budget(2, "f32_16x16x16_bf16", {32: 8}, 6, serial_loads=4),
        "gfx950": Budget(3, "f32_16x16x32_bf16", {32: 4}, 2, serial_loads=1),
    },
    "split/bf16/kv8/group8/head64/block16/window": {
        "gfx942": Budget(4, "f32_16x16x16_bf16", {32: 4}, 4, serial_loads=2),
        "gfx950": Budget(4, "f32_16x16x32_bf16", {32: 2}, 2, serial_loads=1),
    },
    "split/bf16/kv4/group2/head256/block16/window/cap": {
        "gfx942": Budget(2, "f32_16x16x16_bf16", {32: 8}, 6, serial_loads=3),
        "gfx950": Budget(2, "f32_16x16x32_bf16", {32: 4}, 2, serial_loads=1),
    },
    "split/fp16/kv8/group4/head128/block16": {
        "gfx942": Budget(2, "f32_16x16x16_f16", {32: 8}, 6, serial_loads=3),
        "gfx950": Budget(3, "f32_16x16x32_f16", {32: 4}, 2, serial_loads=1),
    },
    "split/fp32/kv8/group4/head128/block16": {
        "gfx942": Budget(2, "f32_16x16x4_f32", {32: 8}, 6, serial_loads=3),
        "gfx950": Budget(2, "f32_16x16x4_f32", {32: 4}, 7, serial_loads=5),
    },
    "reduce/bf16/heads32/head128/splits16": {
        "gfx942": Budget(8, narrow_loads={32: 9}),
        "gfx950": Budget(8, narrow_loads={32: 9}),
    },
    "reduce/bf16/heads8/head256/splits64": {
        "gfx942": Budget(1, narrow_loads={32: 1}, scalar_spills=173),
        "gfx950": Budget(1, narrow_loads={32: 1}, scalar_spills=173),
    },
}


def _split_variant(
    name: str,
    kv_heads: int,
    group: int,
    head_size: int,
    block_size: int,
    dtype: str = "bf16",
    direct: bool = False,
    window: bool = False,
    soft_cap: bool = False,
) -> CodegenVariant:
    config = choose_config(group, head_size, 4 if dtype == "fp32" else 2)
    name = f"split/{dtype}/{name}"
    return CodegenVariant(
        name=name,
        kernel=split_kernel,
        signature={
            "query_ptr": f"*{dtype}",
            "k_cache_ptr": f"*{dtype}",
            "v_cache_ptr": f"*{dtype}",
            "block_table_ptr": "*i32",
            "seq_lens_ptr": "*i32",
            "out_ptr": f"*{dtype}",
            "partial_ptr": f"*{dtype}" if direct else "*fp32",
            "partial_lse_ptr": f"*{dtype}" if direct else "*fp32",
            "score_scale": "fp32",
            "cap_log2": "fp32",
            "window": "i32",
            "splits": "i32",
            "table_stride": "i32",
            **dict.fromkeys(_STRIDES, "i32"),
        },
        constexprs={
            "KV_HEADS": kv_heads,
            "GROUP": group,
            "HEAD_SIZE": head_size,
            "BLOCK_SIZE": block_size,
            "HEADS": config.heads,
            "TILE": config.tile,
            "DIRECT": direct,
            "HAS_WINDOW": window,
            "HAS_SOFT_CAP": soft_cap,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        divisible_by_16=_STRIDES,
        over_2_gib=("k_cache_ptr", "v_cache_ptr"),
        budgets=_BUDGETS.get(name, {}),
    )


def _reduce_variant(heads: int, head_size: int, splits: int) -> CodegenVariant:
    name = f"reduce/bf16/heads{heads}/head{head_size}/splits{splits}"
    return CodegenVariant(
        name=name,
        kernel=reduce_kernel,
        signature={
            "partial_ptr": "*fp32",
            "partial_lse_ptr": "*fp32",
            "seq_lens_ptr": "*i32",
            "out_ptr": "*bf16",
            "window": "i32",
            "splits": "i32",
            "out_stride_seq": "i32",
            "out_stride_head": "i32",
        },
        constexprs={
            "QUERY_HEADS": heads,
            "HEAD_SIZE": head_size,
            "SPLITS": splits,
            "TILE": choose_config(1, head_size, 2).tile,
            "HAS_WINDOW": False,
        },
        num_warps=REDUCE_CONFIG.num_warps,
        divisible_by_16=("out_stride_seq", "out_stride_head"),
        budgets=_BUDGETS.get(name, {}),
    )


CODEGEN_VARIANTS = (
    _split_variant("kv8/group4/head128/block16", 8, 4, 128, 16),
    _split_variant("kv8/group4/head128/block16/direct", 8, 4, 128, 16, direct=True),
    _split_variant("kv8/group4/head128/block64/direct", 8, 4, 128, 64, direct=True),
    _split_variant("kv8/group4/head128/block1", 8, 4, 128, 1),
    _split_variant("kv1/group16/head128/block16", 1, 16, 128, 16),
    _split_variant("kv1/group64/head128/block16", 1, 64, 128, 16),
    _split_variant("kv32/group1/head80/block16", 32, 1, 80, 16),
    _split_variant("kv8/group8/head64/block16/window", 8, 8, 64, 16, window=True),
    _split_variant(
        "kv4/group2/head256/block16/window/cap", 4, 2, 256, 16, window=True, soft_cap=True
    ),
    _split_variant("kv8/group4/head128/block16", 8, 4, 128, 16, dtype="fp16"),
    _split_variant("kv8/group4/head128/block16", 8, 4, 128, 16, dtype="fp32"),
    _reduce_variant(32, 128, 16),
    _reduce_variant(8, 256, 64),
)
