"""Kernel for causal attention of many new tokens per sequence over a paged cache.

The sequence's keys and values, the new ones too, lie in the cache already. One program takes a
tile of rows, a row being one query head of one token: all heads of a KV head share a tile, so
short chunks fill it and keys are read once for the group. Keys that all rows see, which is most of
them, go through a loop without masks; those at the diagonal and at a window's edge through another.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from vllm_amdopt.kernels.paged_tile import pages_of_tile, token_offsets
from vllm_amdopt.kernels.soft_cap import base2_scores
from vllm_amdopt.kernels.variants import Budget, CodegenVariant


@dataclass(frozen=True)
class LaunchConfig:
    """One program attends with `rows` (token, head) pairs to `tile` tokens at a time."""

    rows: int
    tile: int
    num_warps: int
    num_stages: int
    waves_per_eu: int
    why: str


def choose_config(rows: int, head_size: int, element_bytes: int) -> LaunchConfig:
    """The launch for sequences of at most `rows` (token, head) pairs."""
    row_bytes = triton.next_power_of_2(head_size) * element_bytes
    taken = min(128, 65536 // row_bytes, max(16, triton.next_power_of_2(rows)))
    return LaunchConfig(
        rows=taken,
        tile=32,
        num_warps=max(1, taken // 32),
        num_stages=1,
        waves_per_eu=0 if row_bytes < 256 else 2 if row_bytes == 256 else 1,
        why=(
            "32 rows for each wave: it keeps its rows for itself, so that neither the softmax nor "
            "the weights cross waves, and no matrix instruction is done twice; 32 keys: with 64 "
            "the registers do not suffice for two waves per SIMD on gfx942, and with heads over "
            "128 not even so; 64 KiB is the LDS that the query passes through"
        ),
    )


@triton.jit
def rounded(weights, dtype: tl.constexpr):
    """Softmax weights in the values' dtype.

    To bfloat16 by hand, ties away from zero: weights are never negative and never infinite, and
    gfx942 has no such conversion, for which the compiler writes five instructions an element.
    """
    if dtype == tl.bfloat16:
        bits = weights.to(tl.uint32, bitcast=True) + 0x8000
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return weights.to(dtype)


@triton.jit
def row_pointers(
    head_ptr,
    blocks,
    tile_start,
    stride_block,
    stride_row,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HEAD_PAD: tl.constexpr,
):
    """[TILE, HEAD_PAD] pointers to a tile's keys or values."""
    base, offsets = token_offsets(blocks, tile_start, stride_block, stride_row, BLOCK_SIZE, TILE)
    return head_ptr + base + offsets[:, None] + tl.arange(0, HEAD_PAD)[None, :]


@triton.jit
def load_rows(pointers, tile_start, end, HEAD_SIZE: tl.constexpr, ALWAYS: tl.constexpr):
    """A tile's keys or values; none where it starts at `end` or later. ALWAYS: it does not.

    Rows past the sequence's end are read too, in its last page, and may hold anything.
    """
    HEAD_PAD: tl.constexpr = triton.next_power_of_2(HEAD_SIZE)
    in_head = (tl.arange(0, HEAD_PAD) < HEAD_SIZE)[None, :]
    if not ALWAYS:
        # As a vector: of a scalar's truth value the interpreter makes no mask.
        exists = (tl.full([HEAD_PAD], 0, tl.int32) + tile_start < end)[None, :]
        return tl.load(pointers, mask=in_head & exists, other=0.0)
    elif HEAD_SIZE != HEAD_PAD:
        return tl.load(pointers, mask=in_head, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit(do_not_specialize=["window", "table_stride"])
def prefill_kernel(
    query_ptr,
    k_cache_ptr,
    v_cache_ptr,
    block_table_ptr,
    seq_lens_ptr,
    query_start_ptr,
    sinks_ptr,
    alibi_slopes_ptr,
    out_ptr,
    score_scale,
    cap_log2,
    v_scale,
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
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
):
    """Grid (KV_HEADS x seqs, tiles of the longest chunk's rows); the rest leave at once.

    Workgroups go to the XCDs in turn, so with the KV head running fastest those of one head meet in
    as few XCDs' L2 as its number allows: one where KV_HEADS x seqs is a multiple of their number.
    The last rows, which see most keys, start first, so that the short ones fill the end.
    """
    HEAD_PAD: tl.constexpr = triton.next_power_of_2(HEAD_SIZE)
    LOG2_E: tl.constexpr = 1.4426950408889634
    sequence = (tl.program_id(0) // KV_HEADS).to(tl.int64)
    kv_head = tl.program_id(0) % KV_HEADS
    query_start = tl.load(query_start_ptr + sequence)
    query_len = tl.load(query_start_ptr + sequence + 1) - query_start
    first_row = (tl.num_programs(1) - 1 - tl.program_id(1)) * ROWS
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

    # A finite floor instead of -inf: exp2(-inf - floor) is 0, exp2(-inf - -inf) would be NaN.
    maximum = tl.full([ROWS], -1.0e30, tl.float32)
    denominator = tl.zeros([ROWS], tl.float32)
    accumulator = tl.zeros([ROWS, HEAD_PAD], tl.float32)
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head, mask=present, other=0.0) * LOG2_E
        maximum = tl.maximum(maximum, sink)
        denominator = tl.exp2(sink - maximum)
    slope = maximum
    if alibi_slopes_ptr is not None:
        slope = tl.load(alibi_slopes_ptr + head, mask=present, other=0.0) * LOG2_E

    # The tile's last token sees most, its first token sees furthest back.
    first_position = seq_len - query_len + first_row // GROUP
    last_position = seq_len - query_len + tl.minimum((first_row + ROWS - 1) // GROUP, query_len - 1)
    end = tl.minimum(last_position + 1, seq_len)
    oldest = seq_len * 0
    # All rows see the tiles between these two whole; the tile of `first_position` is not one.
    seen_from = oldest
    seen_to = tl.maximum(first_position, 0) // TILE * TILE
    if HAS_WINDOW:
        oldest = tl.maximum(first_position - window + 1, 0)
        edge = tl.cdiv(tl.maximum(last_position - window + 1, 0), TILE) * TILE
        seen_from = tl.minimum(edge, seen_to)
    start = oldest // TILE * TILE
    table_row_ptr = block_table_ptr + sequence * table_stride
    last = tl.maximum(end - 1, 0)
    k_head_ptr = k_cache_ptr + kv_head.to(tl.int64) * k_stride_head
    v_head_ptr = v_cache_ptr + kv_head.to(tl.int64) * v_stride_head
    blocks = pages_of_tile(table_row_ptr, start, oldest, last, BLOCK_SIZE, TILE)
    following = pages_of_tile(table_row_ptr, start + TILE, oldest, last, BLOCK_SIZE, TILE)
    pointers = row_pointers(
        k_head_ptr, blocks, start, k_stride_block, k_stride_row, BLOCK_SIZE, TILE, HEAD_PAD
    )
    key = load_rows(pointers, start, end, HEAD_SIZE, ALWAYS=False)
    for PHASE in tl.static_range(1 - HAS_WINDOW, 3):
        if PHASE == 0:
            walk_from, walk_to = start, seen_from
        elif PHASE == 1:
            walk_from, walk_to = seen_from, seen_to
        else:
            walk_from, walk_to = seen_to, end
        for tile_start in range(walk_from, walk_to, TILE):
            # Keys are loaded one tile ahead and block numbers two, so that no trip to memory waits
            # for another.
            further = pages_of_tile(
                table_row_ptr, tile_start + 2 * TILE, oldest, last, BLOCK_SIZE, TILE
            )
            pointers = row_pointers(
                v_head_ptr,
                blocks,
                tile_start,
                v_stride_block,
                v_stride_row,
                BLOCK_SIZE,
                TILE,
                HEAD_PAD,
            )
            value = load_rows(pointers, tile_start, end, HEAD_SIZE, ALWAYS=True).to(query.dtype)
            ahead = tile_start + TILE
            pointers = row_pointers(
                k_head_ptr,
                following,
                ahead,
                k_stride_block,
                k_stride_row,
                BLOCK_SIZE,
                TILE,
                HEAD_PAD,
            )
            next_key = load_rows(pointers, ahead, end, HEAD_SIZE, ALWAYS=PHASE != 2)
            blocks = following
            following = further

            products = tl.dot(query, tl.trans(key.to(query.dtype)), input_precision="ieee")
            scores = base2_scores(products, score_scale, cap_log2, HAS_SOFT_CAP)
            key_position = tile_start + tl.arange(0, TILE)
            if alibi_slopes_ptr is not None:
                distance = key_position[None, :] - position[:, None]
                scores += slope[:, None] * distance.to(tl.float32)
            if PHASE != 1:
                visible = key_position[None, :] <= position[:, None]
                if HAS_WINDOW:
                    visible = visible & (key_position[None, :] > position[:, None] - window)
                scores = tl.where(visible, scores, float("-inf"))
                # Other rows may hold anything, NaN too, and 0 * NaN would spread.
                seen = (key_position >= oldest) & (key_position < end)
                value = tl.where(seen[:, None], value, 0.0)
            new_maximum = tl.maximum(maximum, tl.max(scores, 1))
            correction = tl.exp2(maximum - new_maximum)
            weights = tl.exp2(scores - new_maximum[:, None])
            denominator = denominator * correction + tl.sum(weights, 1)
            accumulator = accumulator * correction[:, None]
            accumulator = tl.dot(
                rounded(weights, query.dtype), value, accumulator, input_precision="ieee"
            )
            maximum = new_maximum
            key = next_key

    result = accumulator * (v_scale / tl.where(denominator > 0.0, denominator, 1.0))[:, None]
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
    "prefill/bf16/kv8/group4/head128/block16": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", full_waits=1),
        "gfx950": Budget(2, "f32_32x32x16_bf16", full_waits=1),
    },
    "prefill/bf16/kv8/group4/head128/block64": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", full_waits=1),
        "gfx950": Budget(2, "f32_32x32x16_bf16", full_waits=1),
    },
    "prefill/bf16/kv8/group4/head128/block16/rows64": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", full_waits=1),
        "gfx950": Budget(2, "f32_32x32x16_bf16", full_waits=1),
    },
    "prefill/bf16/kv8/group4/head128/block16/rows16": {
        "gfx942": Budget(2, "f32_16x16x16_bf16", full_waits=1),
        "gfx950": Budget(2, "f32_16x16x32_bf16", full_waits=1),
    },
    "prefill/bf16/kv8/group4/head128/block1": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", narrow_loads={32: 4}, full_waits=1),
        "gfx950": Budget(2, "f32_32x32x16_bf16", narrow_loads={32: 2}, full_waits=1),
    },
    "prefill/bf16/kv32/group1/head80/block16": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", full_waits=1),
        "gfx950": Budget(2, "f32_32x32x16_bf16", full_waits=1),
    },
    "prefill/bf16/kv8/group8/head64/block16/window/sinks": {
        "gfx942": Budget(3, "f32_32x32x8_bf16", full_waits=1, scalar_spills=13),
        "gfx950": Budget(3, "f32_32x32x16_bf16", full_waits=1, scalar_spills=14),
    },
    "prefill/bf16/kv4/group2/head256/block16/window/cap": {
        "gfx942": Budget(1, "f32_32x32x8_bf16", full_waits=1),
        "gfx950": Budget(1, "f32_32x32x16_bf16", full_waits=1, scalar_spills=49),
    },
    "prefill/bf16/kv32/group1/head128/block16/alibi": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", full_waits=1),
        "gfx950": Budget(2, "f32_32x32x16_bf16", full_waits=1),
    },
    "prefill/fp16/kv8/group4/head128/block16": {
        "gfx942": Budget(2, "f32_32x32x8_f16", full_waits=1),
        "gfx950": Budget(2, "f32_32x32x16_f16", full_waits=1),
    },
    "prefill/bf16/kv8/group4/head128/block16/fp8": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", full_waits=2, serial_loads=2),
        "gfx950": Budget(2, "f32_32x32x16_bf16", full_waits=2, serial_loads=2),
    },
}


def _variant(
    kv_heads: int,
    group: int,
    head_size: int,
    block_size: int,
    dtype: str = "bf16",
    rows: int = 4096,
    cache: str | None = None,
    window: bool = False,
    soft_cap: bool = False,
    sinks: bool = False,
    alibi: bool = False,
) -> CodegenVariant:
    config = choose_config(rows, head_size, 2)
    name = f"prefill/{dtype}/kv{kv_heads}/group{group}/head{head_size}/block{block_size}"
    name += f"/rows{config.rows}" if rows < 4096 else ""
    name += "/fp8" * (cache is not None) + "/window" * window + "/cap" * soft_cap
    name += "/sinks" * sinks + "/alibi" * alibi
    return CodegenVariant(
        name=name,
        kernel=prefill_kernel,
        signature={
            "query_ptr": f"*{dtype}",
            "k_cache_ptr": f"*{cache or dtype}",
            "v_cache_ptr": f"*{cache or dtype}",
            "block_table_ptr": "*i32",
            "seq_lens_ptr": "*i32",
            "query_start_ptr": "*i32",
            **({"sinks_ptr": "*fp32"} if sinks else {}),
            **({"alibi_slopes_ptr": "*fp32"} if alibi else {}),
            "out_ptr": f"*{dtype}",
            "score_scale": "fp32",
            "cap_log2": "fp32",
            "v_scale": "fp32",
            "window": "i32",
            "table_stride": "i32",
            **dict.fromkeys(_STRIDES, "i32"),
        },
        constexprs={
            **({} if sinks else {"sinks_ptr": None}),
            **({} if alibi else {"alibi_slopes_ptr": None}),
            "KV_HEADS": kv_heads,
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
        waves_per_eu=config.waves_per_eu,
        divisible_by_16=_STRIDES,
        over_2_gib=("k_cache_ptr", "v_cache_ptr"),
        budgets=_BUDGETS.get(name, {}),
    )


CODEGEN_VARIANTS = (
    _variant(8, 4, 128, 16),
    _variant(8, 4, 128, 64),
    _variant(8, 4, 128, 16, rows=64),
    _variant(8, 4, 128, 16, rows=16),
    _variant(8, 4, 128, 1),
    _variant(32, 1, 80, 16),
    _variant(8, 8, 64, 16, window=True, sinks=True),
    _variant(4, 2, 256, 16, window=True, soft_cap=True),
    _variant(32, 1, 128, 16, alibi=True),
    _variant(8, 4, 128, 16, dtype="fp16"),
    _variant(8, 4, 128, 16, cache="fp8"),
)
