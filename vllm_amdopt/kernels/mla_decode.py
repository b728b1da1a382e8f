"""Kernels for absorbed MLA attention of a sequence's last tokens over the paged latent cache.

All heads attend to the same latent, which serves as key (all of it) and as value (without its
rotary part), so each tile is read once for all rows of a program; a row is one head of one of the
sequence's new tokens. The waves of a workgroup own a quarter of the latent's columns each: for the
scores they add up partial sums, for the values they need nothing from each other.
`reduce_kernel` merges the parts of a split sequence; with a single part `split_kernel` writes the
result itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_amdopt.kernels import mla_decode_plan
from vllm_amdopt.kernels.mla_decode_plan import choose_config, choose_reduce_config
from vllm_amdopt.kernels.variants import Budget, CodegenVariant

COLUMN_GROUPS = tl.constexpr(4)
XCDS = tl.constexpr(mla_decode_plan.XCDS)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def tile_blocks(table_row_ptr, tile_start, last, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Block numbers of the tile's tokens: a scalar where block >= tile, otherwise [TILE].

    For tokens behind `last` it is the last one's: table entries behind it may be anything.
    """
    if BLOCK_SIZE >= TILE:
        return tl.load(table_row_ptr + tl.minimum(tile_start, last) // BLOCK_SIZE)
    else:
        position = tl.minimum(tile_start + tl.arange(0, TILE), last)
        return tl.load(table_row_ptr + position // BLOCK_SIZE)


@triton.jit
def load_tile(
    cache_ptr,
    blocks,
    tile_start,
    last,
    stride_block,
    stride_row,
    LATENT_SIZE: tl.constexpr,
    ROPE_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """The tile's latents [groups, TILE, columns] and rotary parts, with no mask.

    Rows behind `last` may hold anything, NaN too, and 0 * NaN would spread: the last row is read in
    their place, by the same instruction, so that it costs no memory traffic.
    """
    LATENT_COLUMNS: tl.constexpr = LATENT_SIZE // COLUMN_GROUPS
    ROPE_COLUMNS: tl.constexpr = ROPE_SIZE // COLUMN_GROUPS
    position = tl.minimum(tile_start + tl.arange(0, TILE), last)
    row = position % BLOCK_SIZE * stride_row
    # 64 bits: a cache exceeds 2^31 elements. Only the rows' starts need them.
    row_ptr = (cache_ptr + (blocks.to(tl.int64) * stride_block + row))[None, :, None]
    group = tl.arange(0, COLUMN_GROUPS)[:, None, None]
    latent_column = group * LATENT_COLUMNS + tl.arange(0, LATENT_COLUMNS)[None, None, :]
    rope_column = group * ROPE_COLUMNS + tl.arange(0, ROPE_COLUMNS)[None, None, :]
    return tl.load(row_ptr + latent_column), tl.load(row_ptr + (LATENT_SIZE + rope_column))


@triton.jit(do_not_specialize=["sequences", "heads", "splits", "table_stride"])
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
    value_scale,
    sequences,
    heads,
    splits,
    table_stride,
    query_stride_token,
    query_stride_head,
    stride_block,
    stride_row,
    out_stride_token,
    out_stride_head,
    lse_stride_token,
    lse_stride_head,
    LATENT_SIZE: tl.constexpr,
    ROPE_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DIRECT: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """Grid (`programs`,). LATENT_SIZE and ROPE_SIZE are powers of two.

    A sequence has heads * QUERY_LEN rows, its new tokens one after the other. score_scale and
    value_scale hold the scale of a quantized cache. DIRECT writes `out` and, with HAS_LSE, the
    natural log-sum-exp; otherwise the normalised partial result goes to partial [seqs, rows,
    splits, LATENT_SIZE] and its base-2 log-sum-exp to partial_lse [seqs, rows, splits], both fp32
    and dense. A part without tokens writes nothing.
    """
    rows = heads * QUERY_LEN
    row_tiles = tl.cdiv(rows, ROWS)
    # Workgroups go to the XCDs in turn. The row tiles of the same tokens run on one of them, one
    # after the other, so that all but the first find the latents in its L2.
    program = tl.program_id(0)
    turn = program // XCDS
    item = turn // row_tiles * XCDS + program % XCDS
    row_tile = turn % row_tiles
    if item >= sequences * splits:
        return
    sequence = (item % sequences).to(tl.int64)
    split = item // sequences

    row = row_tile * ROWS + tl.arange(0, ROWS)
    present = row < rows
    if QUERY_LEN == 1:
        token = tl.zeros([ROWS], tl.int32)
        head = row
    else:
        token = row // heads
        head = row % heads
    out_row_ptr = (
        out_ptr
        + sequence * QUERY_LEN * out_stride_token
        + (token * out_stride_token + head * out_stride_head)[None, :, None]
    )
    lse_row_ptr = (
        lse_ptr
        + sequence * QUERY_LEN * lse_stride_token
        + (token * lse_stride_token + head * lse_stride_head)
        if HAS_LSE
        else None
    )
    LATENT_COLUMNS: tl.constexpr = LATENT_SIZE // COLUMN_GROUPS
    ROPE_COLUMNS: tl.constexpr = ROPE_SIZE // COLUMN_GROUPS
    group = tl.arange(0, COLUMN_GROUPS)[:, None, None]
    latent_column = group * LATENT_COLUMNS + tl.arange(0, LATENT_COLUMNS)[None, None, :]
    rope_column = LATENT_SIZE + group * ROPE_COLUMNS + tl.arange(0, ROPE_COLUMNS)[None, None, :]

    seq_len = tl.load(seq_lens_ptr + sequence)
    tokens_per_split = tl.cdiv(tl.cdiv(seq_len, TILE), splits) * TILE
    start = split * tokens_per_split
    end = tl.minimum(start + tokens_per_split, seq_len)
    if start >= end:
        if DIRECT:
            zeros = tl.zeros([COLUMN_GROUPS, ROWS, LATENT_COLUMNS], out_ptr.dtype.element_ty)
            tl.store(out_row_ptr + latent_column, zeros, mask=present[None, :, None])
            if HAS_LSE:
                nothing = tl.full([ROWS], float("-inf"), tl.float32)
                tl.store(lse_row_ptr, nothing, mask=present)
        return

    # The last tile comes first: it alone may be partly filled, and what follows needs no mask.
    last = end - 1
    tail = start + (last - start) // TILE * TILE
    table_row_ptr = block_table_ptr + sequence * table_stride
    blocks = tile_blocks(table_row_ptr, tail, last, BLOCK_SIZE, TILE)
    latent, rope = load_tile(
        latent_cache_ptr,
        blocks,
        tail,
        last,
        stride_block,
        stride_row,
        LATENT_SIZE,
        ROPE_SIZE,
        BLOCK_SIZE,
        TILE,
    )
    blocks = tile_blocks(table_row_ptr, start, last, BLOCK_SIZE, TILE)
    tile_start = tail

    # Rows of the padding read the last row and are not stored.
    read_token = tl.minimum(row, rows - 1) // heads if QUERY_LEN > 1 else token
    read_head = tl.minimum(row, rows - 1) % heads if QUERY_LEN > 1 else tl.minimum(row, heads - 1)
    query_row_ptr = (
        query_ptr
        + sequence * QUERY_LEN * query_stride_token
        + (read_token * query_stride_token + read_head * query_stride_head)[None, :, None]
    )
    query_latent = tl.load(query_row_ptr + latent_column)
    query_rope = tl.load(query_row_ptr + rope_column)
    # A new token sees those before it and itself.
    limit = seq_len - (QUERY_LEN - 1) + token

    # A finite floor instead of -inf: exp2(-inf - floor) is 0, exp2(-inf - -inf) would be NaN.
    maximum = tl.full([ROWS], -1.0e30, tl.float32)
    denominator = tl.zeros([ROWS], tl.float32)
    accumulator = tl.zeros([COLUMN_GROUPS, ROWS, LATENT_COLUMNS], tl.float32)
    for next_start in range(start, tail + 1, TILE):
        # Tile by tile: the next one's latents and the block numbers of the one after it are under
        # way while this one is worked on. Behind the last there is none.
        next_latent = latent
        next_rope = rope
        if next_start < tail:
            next_latent, next_rope = load_tile(
                latent_cache_ptr,
                blocks,
                next_start,
                last,
                stride_block,
                stride_row,
                LATENT_SIZE,
                ROPE_SIZE,
                BLOCK_SIZE,
                TILE,
            )
            blocks = tile_blocks(table_row_ptr, next_start + TILE, last, BLOCK_SIZE, TILE)

        key = latent.to(query_latent.dtype)
        key_rope = rope.to(query_latent.dtype)
        products = tl.dot(query_latent, tl.permute(key, (0, 2, 1)), input_precision="ieee")
        products = tl.dot(
            query_rope, tl.permute(key_rope, (0, 2, 1)), products, input_precision="ieee"
        )
        scores = tl.sum(products, 0) * score_scale
        position = tile_start + tl.arange(0, TILE)
        if QUERY_LEN == 1:
            visible = (position < end)[None, :]
        else:
            visible = position[None, :] < tl.minimum(limit, end)[:, None]
        scores = tl.where(visible, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        correction = tl.exp2(maximum - new_maximum)
        weights = tl.exp2(scores - new_maximum[:, None])
        denominator = denominator * correction + tl.sum(weights, 1)
        accumulator = accumulator * correction[None, :, None]
        weights = tl.broadcast_to(weights.to(key.dtype)[None], (COLUMN_GROUPS, ROWS, TILE))
        accumulator = tl.dot(weights, key, accumulator, input_precision="ieee")
        maximum = new_maximum
        latent = next_latent
        rope = next_rope
        tile_start = next_start

    factor = value_scale / tl.where(denominator > 0.0, denominator, 1.0)
    result = accumulator * factor[None, :, None]
    lse = maximum + tl.log2(denominator)
    if DIRECT:
        tl.store(
            out_row_ptr + latent_column,
            result.to(out_ptr.dtype.element_ty),
            mask=present[None, :, None],
        )
        if HAS_LSE:
            tl.store(lse_row_ptr, lse * LN_2, mask=present)
    else:
        part = (sequence * rows + row) * splits + split
        tl.store(
            partial_ptr + part[None, :, None] * LATENT_SIZE + latent_column,
            result,
            mask=present[None, :, None],
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
    out_stride_token,
    out_stride_head,
    lse_stride_token,
    lse_stride_head,
    LATENT_SIZE: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """Grid (seqs, rows, pieces of COLUMNS). CHUNK parts at a time. TILE: the split kernel's."""
    sequence = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    tiles = tl.cdiv(tl.load(seq_lens_ptr + sequence), TILE)
    tiles_per_split = tl.cdiv(tiles, splits)
    first_part = (sequence * heads * QUERY_LEN + row) * splits
    # A finite floor instead of -inf: exp2(-inf - floor) is 0, exp2(-inf - -inf) would be NaN.
    maximum = tl.full([1], -1.0e30, tl.float32)
    total = tl.zeros([1], tl.float32)
    result = tl.zeros([COLUMNS], tl.float32)
    part = tl.arange(0, CHUNK)
    # The split kernel's arithmetic: parts that would start at `tiles` or later were not written.
    for _ in range(0, tiles, tl.maximum(CHUNK * tiles_per_split, 1)):
        present = part * tiles_per_split < tiles
        # No mask: in the place of parts that are not there, the first one is read for nothing. Both
        # loads are under way together; their results are not needed to know what to read.
        read = first_part + tl.where(present, part, 0)
        partial = tl.load(partial_ptr + read[:, None] * LATENT_SIZE + column[None, :])
        part_lse = tl.load(partial_lse_ptr + read)
        part_lse = tl.where(present, part_lse, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(part_lse, 0))
        correction = tl.exp2(maximum - new_maximum)
        weights = tl.exp2(part_lse - new_maximum)
        total = total * correction + tl.sum(weights, 0)
        result = result * correction + tl.sum(partial * weights[:, None], 0)
        maximum = new_maximum
        part += CHUNK
    result *= 1.0 / tl.where(total > 0.0, total, 1.0)
    token = sequence
    head = row
    if QUERY_LEN > 1:
        token = sequence * QUERY_LEN + row // heads
        head = row % heads
    tl.store(
        out_ptr + token * out_stride_token + head * out_stride_head + column,
        result.to(out_ptr.dtype.element_ty),
    )
    if HAS_LSE:  # noqa: SIM102 without one there is no pointer to compile the rest for
        if tl.program_id(2) == 0:
            tl.store(
                lse_ptr + token * lse_stride_token + head * lse_stride_head + tl.arange(0, 1),
                (maximum + tl.log2(total)) * LN_2,
            )


_STRIDES = (
    "query_stride_token",
    "query_stride_head",
    "stride_block",
    "stride_row",
    "out_stride_token",
    "out_stride_head",
)


_BUDGETS: dict[str, dict[str, Budget]] = {
    "split/bf16/latent512/rows16/block1": {
        "gfx942": Budget(3, "f32_16x16x16_bf16", {64: 1, 32: 2}, full_waits=1),
        "gfx950": Budget(3, "f32_16x16x16_bf16 f32_16x16x32_bf16", {64: 1, 32: 2}, full_waits=1),
    },
    "split/bf16/latent512/rows16/block1/direct": {
        "gfx942": Budget(3, "f32_16x16x16_bf16", {64: 1, 32: 2}, full_waits=1),
        "gfx950": Budget(3, "f32_16x16x16_bf16 f32_16x16x32_bf16", {64: 1, 32: 2}, full_waits=1),
    },
    "split/bf16/latent512/rows16/block64": {
        "gfx942": Budget(3, "f32_16x16x16_bf16", {64: 1}, full_waits=1),
        "gfx950": Budget(3, "f32_16x16x16_bf16 f32_16x16x32_bf16", {64: 1}, full_waits=1),
    },
    "split/bf16/latent512/rows32/block1": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", {32: 3}, full_waits=1),
        "gfx950": Budget(2, "f32_32x32x16_bf16", {32: 3}, full_waits=1),
    },
    "split/bf16/latent512/rows32/block64": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", full_waits=1),
        "gfx950": Budget(2, "f32_32x32x16_bf16", full_waits=1),
    },
    "split/bf16/latent256/rows16/block1/direct": {
        "gfx942": Budget(5, "f32_16x16x16_bf16", {64: 1, 32: 2}, full_waits=1),
        "gfx950": Budget(5, "f32_16x16x16_bf16 f32_16x16x32_bf16", {64: 1, 32: 2}, full_waits=1),
    },
    "split/fp16/latent512/rows16/block1": {
        "gfx942": Budget(3, "f32_16x16x16_f16", {64: 1, 32: 2}, full_waits=1),
        "gfx950": Budget(3, "f32_16x16x16_f16 f32_16x16x32_f16", {64: 1, 32: 2}, full_waits=1),
    },
    "split/bf16/latent512/rows16/block1/fp8_cache": {
        "gfx942": Budget(4, "f32_16x16x16_bf16", {32: 3}),
        "gfx950": Budget(4, "f32_16x16x16_bf16 f32_16x16x32_bf16", {32: 3}),
    },
    "split/bf16/latent512/rows32/block64/fp8_cache": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", {64: 1}, full_waits=1),
        "gfx950": Budget(2, "f32_32x32x16_bf16", {64: 1}, full_waits=1),
    },
    "split/bf16/latent512/rows32/block1/query2": {
        "gfx942": Budget(2, "f32_32x32x8_bf16", {32: 3}, full_waits=1),
        "gfx950": Budget(2, "f32_32x32x16_bf16", {32: 3}, full_waits=1),
    },
    "reduce/bf16/latent512/splits16": {
        "gfx942": Budget(8, narrow_loads={32: 9}, full_waits=1),
        "gfx950": Budget(8, narrow_loads={32: 9}, full_waits=1),
    },
    "reduce/bf16/latent512/splits256": {
        "gfx942": Budget(8, narrow_loads={32: 1}, full_waits=1),
        "gfx950": Budget(8, narrow_loads={32: 1}, full_waits=1),
    },
}


def _split_variant(
    latent_size: int,
    block_size: int,
    heads: int = 16,
    dtype: str = "bf16",
    cache: str | None = None,
    query_len: int = 1,
    direct: bool = False,
) -> CodegenVariant:
    config = choose_config(heads * query_len, 4 if dtype == "fp32" else 2)
    name = f"split/{dtype}/latent{latent_size}/rows{config.rows}/block{block_size}"
    name += f"{f'/{cache}_cache' if cache else ''}{f'/query{query_len}' if query_len > 1 else ''}"
    name += "/direct" if direct else ""
    return CodegenVariant(
        name=name,
        kernel=split_kernel,
        signature={
            "query_ptr": f"*{dtype}",
            "latent_cache_ptr": f"*{cache or dtype}",
            "block_table_ptr": "*i32",
            "seq_lens_ptr": "*i32",
            "out_ptr": f"*{dtype}",
            "lse_ptr": "*fp32",
            "partial_ptr": f"*{dtype}" if direct else "*fp32",
            "partial_lse_ptr": f"*{dtype}" if direct else "*fp32",
            "score_scale": "fp32",
            "value_scale": "fp32",
            "sequences": "i32",
            "heads": "i32",
            "splits": "i32",
            "table_stride": "i32",
            **dict.fromkeys(_STRIDES, "i32"),
            "lse_stride_token": "i32",
            "lse_stride_head": "i32",
        },
        constexprs={
            "LATENT_SIZE": latent_size,
            "ROPE_SIZE": 64,
            "BLOCK_SIZE": block_size,
            "QUERY_LEN": query_len,
            "ROWS": config.rows,
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
    config = choose_reduce_config(splits, latent_size)
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
            "out_stride_token": "i32",
            "out_stride_head": "i32",
            "lse_stride_token": "i32",
            "lse_stride_head": "i32",
        },
        constexprs={
            "LATENT_SIZE": latent_size,
            "QUERY_LEN": 1,
            "CHUNK": config.chunk,
            "COLUMNS": config.columns,
            "TILE": choose_config(16, 2).tile,
            "HAS_LSE": True,
        },
        num_warps=config.num_warps,
        divisible_by_16=("out_stride_token", "out_stride_head"),
        budgets=_BUDGETS.get(name, {}),
    )


CODEGEN_VARIANTS = (
    _split_variant(512, 1),
    _split_variant(512, 1, direct=True),
    _split_variant(512, 64),
    _split_variant(512, 1, heads=32),
    _split_variant(512, 64, heads=32),
    _split_variant(256, 1, direct=True),
    _split_variant(512, 1, dtype="fp16"),
    _split_variant(512, 1, cache="fp8"),
    _split_variant(512, 64, heads=32, cache="fp8"),
    _split_variant(512, 1, query_len=2),
    _reduce_variant(512, 16),
    _reduce_variant(512, 256),
)
