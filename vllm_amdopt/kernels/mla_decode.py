"""Kernels for absorbed MLA attention of one new token per sequence over the paged latent cache.

All heads attend to the same latent, which serves as key (all of it) and as value (without its
rotary part), so each tile is read once for all heads of a program. `reduce_kernel` merges the
parts of a split sequence; with a single part `split_kernel` writes the result itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from vllm_amdopt.kernels.paged_tile import tile_blocks, token_offsets
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
    num_warps=4, why="64 parts of 512 floats at most: four waves hold them in registers"
)
LN_2 = tl.constexpr(0.6931471805599453)


def choose_config(heads: int, latent_size: int, element_bytes: int) -> LaunchConfig:
    """The launch for `heads` query heads."""
    return LaunchConfig(
        heads=16,
        tile=32 if latent_size * element_bytes <= 1024 else 16,
        num_warps=4,
        num_stages=1,
        why=(
            "16 heads are the smallest matrix tile and a rank of eight's share of DeepSeek's 128; "
            "the accumulator of 16 x 512 floats leaves registers for a tile of 32 latents, whose "
            "36 KiB fit the 64 KiB of LDS once"
        ),
    )


def padded_splits(splits: int) -> int:
    """The reduce kernel's tile: the next power of two, at least 2."""
    return max(2, triton.next_power_of_2(splits))


@triton.jit(do_not_specialize=["heads", "splits", "table_stride"])
def split_kernel(
    query_ptr,
    latent_cache_ptr,
    block_table_ptr,
    seq_lens_ptr,
    out_ptr,
    lse_ptr,
    partial_ptr,
    partial_lse_ptr,
    score_scale,
    heads,
    splits,
    table_stride,
    query_stride_seq,
    query_stride_head,
    stride_block,
    stride_row,
    out_stride_seq,
    out_stride_head,
    lse_stride_seq,
    lse_stride_head,
    LATENT_SIZE: tl.constexpr,
    ROPE_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    TILE: tl.constexpr,
    DIRECT: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """Grid (seqs, tiles of heads, splits). LATENT_SIZE and ROPE_SIZE are powers of two.

    DIRECT writes `out` and, with HAS_LSE, the natural log-sum-exp; otherwise the normalised partial
    result goes to partial [seqs, heads, splits, LATENT_SIZE] and its base-2 log-sum-exp to
    partial_lse [seqs, heads, splits], both fp32 and dense. A part without tokens writes nothing.
    """
    sequence = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    seq_len = tl.load(seq_lens_ptr + sequence)
    if DIRECT:
        start = seq_len * 0
        end = seq_len
    else:
        tokens_per_split = tl.cdiv(tl.cdiv(seq_len, TILE), splits) * TILE
        start = split * tokens_per_split
        end = tl.minimum(start + tokens_per_split, seq_len)
        if start >= end:
            return

    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    present = head < heads
    element = tl.arange(0, LATENT_SIZE)
    rope = LATENT_SIZE + tl.arange(0, ROPE_SIZE)
    query_row_ptr = query_ptr + sequence * query_stride_seq + head[:, None] * query_stride_head
    query_latent = tl.load(query_row_ptr + element[None, :], mask=present[:, None], other=0.0)
    query_rope = tl.load(query_row_ptr + rope[None, :], mask=present[:, None], other=0.0)

    # A finite floor instead of -inf: exp2(-inf - floor) is 0, exp2(-inf - -inf) would be NaN.
    maximum = tl.full([HEADS], -1.0e30, tl.float32)
    denominator = tl.zeros([HEADS], tl.float32)
    accumulator = tl.zeros([HEADS, LATENT_SIZE], tl.float32)
    table_row_ptr = block_table_ptr + sequence * table_stride
    blocks = tile_blocks(table_row_ptr, start, end, BLOCK_SIZE, TILE)
    for tile_start in range(start, end, TILE):
        visible = tile_start + tl.arange(0, TILE) < end
        base, offsets = token_offsets(
            blocks, tile_start, stride_block, stride_row, BLOCK_SIZE, TILE
        )
        # Rows past the end may hold anything, NaN too: 0 * NaN would spread, so they are not read.
        row_ptr = latent_cache_ptr + base + offsets[:, None]
        latent = tl.load(row_ptr + element[None, :], mask=visible[:, None], other=0.0)
        key_rope = tl.load(row_ptr + rope[None, :], mask=visible[:, None], other=0.0)
        blocks = tile_blocks(table_row_ptr, tile_start + TILE, end, BLOCK_SIZE, TILE)

        products = tl.dot(query_latent, tl.trans(latent), input_precision="ieee")
        products = tl.dot(query_rope, tl.trans(key_rope), products, input_precision="ieee")
        scores = tl.where(visible[None, :], products * score_scale, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        correction = tl.exp2(maximum - new_maximum)
        weights = tl.exp2(scores - new_maximum[:, None])
        denominator = denominator * correction + tl.sum(weights, 1)
        accumulator = accumulator * correction[:, None]
        accumulator = tl.dot(weights.to(latent.dtype), latent, accumulator, input_precision="ieee")
        maximum = new_maximum

    result = accumulator / tl.where(denominator > 0.0, denominator, 1.0)[:, None]
    lse = maximum + tl.log2(denominator)
    if DIRECT:
        tl.store(
            out_ptr
            + sequence * out_stride_seq
            + head[:, None] * out_stride_head
            + element[None, :],
            result.to(out_ptr.dtype.element_ty),
            mask=present[:, None],
        )
        if HAS_LSE:
            tl.store(
                lse_ptr + sequence * lse_stride_seq + head * lse_stride_head,
                lse * LN_2,
                mask=present,
            )
    else:
        part = (sequence * heads + head) * splits + split
        tl.store(
            partial_ptr + part[:, None] * LATENT_SIZE + element[None, :],
            result,
            mask=present[:, None],
        )
        tl.store(partial_lse_ptr + part, lse, mask=present)


@triton.jit(do_not_specialize=["heads", "splits"])
def reduce_kernel(
    partial_ptr,
    partial_lse_ptr,
    seq_lens_ptr,
    out_ptr,
    lse_ptr,
    heads,
    splits,
    out_stride_seq,
    out_stride_head,
    lse_stride_seq,
    lse_stride_head,
    LATENT_SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """Grid (seqs, heads). SPLITS: `splits` padded to a power of two. TILE: the split kernel's."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    tiles = tl.cdiv(tl.load(seq_lens_ptr + sequence), TILE)
    split = tl.arange(0, SPLITS)
    # The split kernel's arithmetic: parts from here on hold no tokens and were not written.
    used = (split < splits) & (split * tl.cdiv(tiles, splits) < tiles)
    part = (sequence * heads + head) * splits + split
    part_lse = tl.load(partial_lse_ptr + part, mask=used, other=float("-inf"))
    maximum = tl.maximum(tl.max(part_lse, 0), -1.0e30)
    weights = tl.exp2(part_lse - maximum)
    total = tl.sum(weights, 0)
    element = tl.arange(0, LATENT_SIZE)
    partial = tl.load(
        partial_ptr + part[:, None] * LATENT_SIZE + element[None, :],
        mask=used[:, None],
        other=0.0,
    )
    result = tl.sum(partial * weights[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    tl.store(
        out_ptr + sequence * out_stride_seq + head * out_stride_head + element,
        result.to(out_ptr.dtype.element_ty),
    )
    if HAS_LSE:
        tl.store(
            lse_ptr + sequence * lse_stride_seq + head * lse_stride_head,
            (maximum + tl.log2(total)) * LN_2,
        )


_STRIDES = (
    "query_stride_seq",
    "query_stride_head",
    "stride_block",
    "stride_row",
    "out_stride_seq",
    "out_stride_head",
)


_BUDGETS: dict[str, dict[str, Budget]] = {
    "split/bf16/latent512/block1": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {32: 9}, 10, serial_loads=9),
        "gfx950": Budget(1, "f32_16x16x32_bf16", {32: 9}, 2, serial_loads=1),
    },
    "split/bf16/latent512/block1/direct": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {32: 9}, 12, serial_loads=9),
        "gfx950": Budget(1, "f32_16x16x32_bf16", {32: 9}, 3, serial_loads=1),
    },
    "split/bf16/latent512/block64": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", full_waits=9, serial_loads=9),
        "gfx950": Budget(1, "f32_16x16x32_bf16", full_waits=2, serial_loads=1),
    },
    "split/bf16/latent256/block1/direct": {
        "gfx942": Budget(2, "f32_16x16x16_bf16", {32: 5}, 3, serial_loads=1),
        "gfx950": Budget(2, "f32_16x16x32_bf16", {32: 5}, 4, serial_loads=2),
    },
    "split/fp16/latent512/block1": {
        "gfx942": Budget(1, "f32_16x16x16_f16", {32: 9}, 12, serial_loads=9),
        "gfx950": Budget(1, "f32_16x16x32_f16", {32: 9}, 2, serial_loads=1),
    },
    "reduce/bf16/latent512/splits16": {
        "gfx942": Budget(8, narrow_loads={32: 9}),
        "gfx950": Budget(8, narrow_loads={32: 9}),
    },
    "reduce/bf16/latent512/splits64": {
        "gfx942": Budget(4, narrow_loads={32: 33}, scalar_spills=104),
        "gfx950": Budget(4, narrow_loads={32: 33}, scalar_spills=104),
    },
}


def _split_variant(
    latent_size: int, block_size: int, dtype: str = "bf16", direct: bool = False
) -> CodegenVariant:
    config = choose_config(16, latent_size, 2)
    name = f"split/{dtype}/latent{latent_size}/block{block_size}{'/direct' if direct else ''}"
    return CodegenVariant(
        name=name,
        kernel=split_kernel,
        signature={
            "query_ptr": f"*{dtype}",
            "latent_cache_ptr": f"*{dtype}",
            "block_table_ptr": "*i32",
            "seq_lens_ptr": "*i32",
            "out_ptr": f"*{dtype}",
            "lse_ptr": "*fp32",
            "partial_ptr": f"*{dtype}" if direct else "*fp32",
            "partial_lse_ptr": f"*{dtype}" if direct else "*fp32",
            "score_scale": "fp32",
            "heads": "i32",
            "splits": "i32",
            "table_stride": "i32",
            **dict.fromkeys(_STRIDES, "i32"),
            "lse_stride_seq": "i32",
            "lse_stride_head": "i32",
        },
        constexprs={
            "LATENT_SIZE": latent_size,
            "ROPE_SIZE": 64,
            "BLOCK_SIZE": block_size,
            "HEADS": config.heads,
            "TILE": config.tile,
            "DIRECT": direct,
            "HAS_LSE": True,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        divisible_by_16=_STRIDES,
        over_2_gib=("latent_cache_ptr",),
        budgets=_BUDGETS.get(name, {}),
    )


def _reduce_variant(latent_size: int, splits: int) -> CodegenVariant:
    name = f"reduce/bf16/latent{latent_size}/splits{splits}"
    return CodegenVariant(
        name=name,
        kernel=reduce_kernel,
        signature={
            "partial_ptr": "*fp32",
            "partial_lse_ptr": "*fp32",
            "seq_lens_ptr": "*i32",
            "out_ptr": "*bf16",
            "lse_ptr": "*fp32",
            "heads": "i32",
            "splits": "i32",
            "out_stride_seq": "i32",
            "out_stride_head": "i32",
            "lse_stride_seq": "i32",
            "lse_stride_head": "i32",
        },
        constexprs={
            "LATENT_SIZE": latent_size,
            "SPLITS": splits,
            "TILE": choose_config(16, latent_size, 2).tile,
            "HAS_LSE": True,
        },
        num_warps=REDUCE_CONFIG.num_warps,
        divisible_by_16=("out_stride_seq", "out_stride_head"),
        budgets=_BUDGETS.get(name, {}),
    )


CODEGEN_VARIANTS = (
    _split_variant(latent_size=512, block_size=1),
    _split_variant(latent_size=512, block_size=1, direct=True),
    _split_variant(latent_size=512, block_size=64),
    _split_variant(latent_size=256, block_size=1, direct=True),
    _split_variant(latent_size=512, block_size=1, dtype="fp16"),
    _reduce_variant(512, 16),
    _reduce_variant(512, 64),
)
