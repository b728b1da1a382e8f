"""Absorbed MLA attention of a sequence's last tokens over the latent cache, for CDNA (Gluon).

Each wave attends to 16 tokens of its own with 16 rows: heads of one new token after the other's.
A latent is loaded once, straight into the operand of the product with the queries. As values it has
to lie the other way round; the matrix unit turns it, exactly, by a product with the identity, whose
result lies in a lane as the next product wants its operand. With more than 16 rows the waves that
have the same tokens load a share of their latents each and exchange them through LDS; with 16
nothing passes between waves. Latents of 8 bits are converted, exactly, on their way from the words
to the operand.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from vllm_amdopt.kernels import mla_decode_plan
from vllm_amdopt.kernels.cdna.latent_steps import (
    CHUNK,
    add_values,
    appended,
    exchange_layout,
    load_latents,
    load_layout,
    load_query,
    merged_layout,
    score_and_turn,
)
from vllm_amdopt.kernels.cdna.mla_decode_plan import choose_config
from vllm_amdopt.kernels.cdna.tiles import (
    axis_index,
    group_pages,
    in_order_of_elements,
    row_pointers,
    token_and_head,
)
from vllm_amdopt.kernels.variants import Budget, CodegenVariant

GENERATION = {"gfx942": 3, "gfx950": 4}
"""gfx -> generation of CDNA, which names the matrix instructions."""

XCDS = gl.constexpr(mla_decode_plan.XCDS)
LN_2 = gl.constexpr(0.6931471805599453)


@gluon.jit(do_not_specialize=["sequences", "heads", "splits", "table_stride"])
def cdna_latent_split_kernel(
    query_ptr,
    latent_cache_ptr,
    zeros_ptr,
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
    LATENT_SIZE: gl.constexpr,
    ROPE_SIZE: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    QUERY_LEN: gl.constexpr,
    T: gl.constexpr,
    H: gl.constexpr,
    CDNA: gl.constexpr,
    SEVERAL_ROW_TILES: gl.constexpr,
    DIRECT: gl.constexpr,
    HAS_LSE: gl.constexpr,
):
    """Grid (seqs, splits), or with SEVERAL_ROW_TILES (`programs`, 1), by which those of one token
    run on one XCD; arguments and results as in the portable `split_kernel`, and zeros: a row of
    them, of the cache's width and dtype; T, H: waves that share tokens and heads.
    """
    CHUNKS: gl.constexpr = LATENT_SIZE // CHUNK
    CACHE: gl.constexpr = latent_cache_ptr.dtype.element_ty
    BITS: gl.constexpr = CACHE.primitive_bitwidth
    WORDS: gl.constexpr = CHUNK * BITS // 32
    ROWS: gl.constexpr = 16 * H
    rows_there = heads * QUERY_LEN
    TILE: gl.constexpr = 16 * T
    mma: gl.constexpr = gl.amd.AMDMFMALayout(
        version=CDNA,
        instr_shape=[16, 16, 16 if CDNA == 3 else 32],
        transposed=False,
        warps_per_cta=[T, 1, H],
    )
    turn: gl.constexpr = gl.amd.AMDMFMALayout(
        version=CDNA, instr_shape=[16, 16, 16], transposed=False, warps_per_cta=[T, 1, H]
    )
    dtype: gl.constexpr = query_ptr.dtype.element_ty
    if SEVERAL_ROW_TILES:
        row_tiles = gl.cdiv(rows_there, ROWS)
        program = gl.program_id(0)
        item = program // XCDS // row_tiles * XCDS + program % XCDS
        row_tile = program // XCDS % row_tiles
        if item >= sequences * splits:
            return
        sequence = (item % sequences).to(gl.int64)
        split = item // sequences
    else:
        row_tile = 0
        sequence = gl.program_id(0).to(gl.int64)
        split = gl.program_id(1)
    seq_len = gl.load(seq_lens_ptr + sequence)
    start = seq_len * 0
    end = seq_len
    if not DIRECT:
        tokens_per_split = gl.cdiv(gl.cdiv(seq_len, TILE), splits) * TILE
        start = split * tokens_per_split
        end = gl.minimum(start + tokens_per_split, seq_len)
        if start >= end:
            return

    by_row: gl.constexpr = gl.SliceLayout(2, load_layout(T, H, WORDS))
    token = start + axis_index(T, 0, 2, by_row) * 16 + axis_index(16, 1, 2, by_row)
    table_row_ptr = block_table_ptr + sequence * table_stride
    pages = group_pages(table_row_ptr, token, 0, end, BLOCK_SIZE)
    gl.amd.hint.sched_barrier()
    # While the block numbers come.
    query_seq_ptr = query_ptr + sequence * QUERY_LEN * query_stride_token
    queries = ()
    for chunk in gl.static_range(CHUNKS):
        query = load_query(
            query_seq_ptr, query_stride_token, query_stride_head, row_tile * ROWS, heads,
            chunk * CHUNK, CHUNK, QUERY_LEN, BITS, T, H, mma,
        )  # fmt: skip
        queries = appended(queries, query)
    query_rope = load_query(
        query_seq_ptr, query_stride_token, query_stride_head, row_tile * ROWS, heads,
        LATENT_SIZE, ROPE_SIZE, QUERY_LEN, BITS, T, H, mma,
    )  # fmt: skip
    next_pages = group_pages(table_row_ptr, token + TILE, 0, end, BLOCK_SIZE)
    gl.amd.hint.sched_barrier()
    rows = row_pointers(
        latent_cache_ptr, zeros_ptr, pages, token, 0, end, stride_block, stride_row, BLOCK_SIZE
    )
    chunks, rope = load_latents(rows, LATENT_SIZE, ROPE_SIZE, BITS, T, H)
    token += TILE
    pages = next_pages
    gl.amd.hint.sched_barrier()

    position = start + axis_index(T, 0, 3, mma) * 16 + axis_index(16, 1, 3, mma)
    row = row_tile * ROWS + axis_index(ROWS, 2, 3, mma)
    # What a row does not see begins here: behind its own token, and behind the part.
    stop = end
    if QUERY_LEN > 1:
        token_of_row, _ = token_and_head(row, heads, QUERY_LEN)
        stop = gl.minimum(seq_len - (QUERY_LEN - 1) + token_of_row, end)
    # A finite floor instead of -inf: exp2(-inf - floor) is 0, exp2(-inf - -inf) would be NaN.
    maximum = gl.full([T, ROWS], -1.0e30, gl.float32, gl.SliceLayout(1, mma))
    denominator = gl.full([T, 16, ROWS], 0.0, gl.float32, mma)
    shared = ()
    shared_rope = 0
    if H > 1:
        for _ in gl.static_range(CHUNKS):
            shared = appended(
                shared,
                gl.allocate_shared_memory(
                    gl.int32, [T, 16, CHUNK // 2], exchange_layout(CHUNK // 2)
                ),
            )
        shared_rope = gl.allocate_shared_memory(
            gl.int32, [T, 16, ROPE_SIZE // 2], exchange_layout(ROPE_SIZE // 2)
        )
    accumulators = ()
    for _ in gl.static_range(CHUNKS):
        accumulators = appended(accumulators, gl.full([T, CHUNK, ROWS], 0.0, gl.float32, turn))
    # Behind the last tile rows of zeros are asked for: a copy of the tile without takes registers.
    for _ in range(gl.cdiv(end - start, TILE)):
        rows = row_pointers(
            latent_cache_ptr, zeros_ptr, pages, token, 0, end, stride_block, stride_row, BLOCK_SIZE
        )
        token += TILE
        pages = group_pages(table_row_ptr, token, 0, end, BLOCK_SIZE)
        scores, values, chunks, rope = score_and_turn(
            chunks, rope, rows, queries, query_rope, shared, shared_rope, CACHE, T, H, mma, turn
        )
        scores = gl.where(position < stop, scores * score_scale, float("-inf"))
        position += TILE
        maximum, denominator, accumulators = add_values(
            scores, values, maximum, denominator, accumulators, dtype, turn
        )

    highest = gl.max(maximum, 0)
    share = gl.exp2(maximum - gl.expand_dims(highest, 0))
    total = gl.sum(gl.sum(denominator, 1) * share, 0)
    share = share * gl.expand_dims(value_scale / gl.where(total > 0.0, total, 1.0), 0)
    share = gl.convert_layout(share, gl.SliceLayout(1, turn), assert_trivial=True)
    merged: gl.constexpr = merged_layout(T, H)
    places: gl.constexpr = gl.SliceLayout(0, merged)
    row = row_tile * ROWS + axis_index(ROWS, 0, 2, places)
    new, head = token_and_head(row, heads, QUERY_LEN)
    out_seq_ptr = out_ptr + sequence * QUERY_LEN * out_stride_token
    part = (sequence * rows_there + row) * splits + split
    for chunk in gl.static_range(CHUNKS):
        result = accumulators[chunk] * gl.expand_dims(share, 1)
        result = gl.reshape(result, [T, CHUNK // 32, 2, 4, 4, ROWS])
        result = gl.reshape(gl.permute(result, [0, 5, 1, 3, 2, 4]), [T, ROWS, CHUNK])
        if BITS == 8 and H == 1:
            result = in_order_of_elements(result)
        result = gl.sum(gl.convert_layout(result, merged), 0)
        element = chunk * CHUNK + axis_index(CHUNK, 1, 2, places)
        if DIRECT:
            out_ptrs = out_seq_ptr + new * out_stride_token + head * out_stride_head + element
            gl.store(out_ptrs, result.to(dtype), mask=row < rows_there)
        else:
            gl.store(partial_ptr + part * LATENT_SIZE + element, result, mask=row < rows_there)
    row = row_tile * ROWS + gl.arange(0, ROWS, layout=highest.type.layout)
    lse = highest + gl.log2(total)
    if not DIRECT:
        part = (sequence * rows_there + row) * splits + split
        gl.store(partial_lse_ptr + part, lse, mask=row < rows_there)
    elif HAS_LSE:
        new, head = token_and_head(row, heads, QUERY_LEN)
        lse_ptrs = lse_ptr + sequence * QUERY_LEN * lse_stride_token
        lse_ptrs += new * lse_stride_token + head * lse_stride_head
        gl.store(lse_ptrs, lse * LN_2, mask=row < rows_there)


_STRIDES = (
    "query_stride_token",
    "query_stride_head",
    "stride_block",
    "stride_row",
    "out_stride_token",
    "out_stride_head",
)

_BUDGETS: dict[str, dict[str, Budget]] = {
    "cdna_latent_split/bf16/latent512/rows16/block1": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {64: 1, 32: 3}, wave_private=True),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {32: 1}, wave_private=True),
    },
    "cdna_latent_split/bf16/latent512/rows16/block1/direct": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {64: 1, 32: 3}, wave_private=True),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {32: 1}, wave_private=True),
    },
    "cdna_latent_split/bf16/latent512/rows16/block64": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {64: 1, 32: 3}, wave_private=True),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {32: 1}, wave_private=True),
    },
    "cdna_latent_split/bf16/latent512/rows32/block1": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {32: 1}),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {32: 1}),
    },
    "cdna_latent_split/bf16/latent512/rows32/block1/query2": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {32: 1}),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {32: 1}),
    },
    "cdna_latent_split/bf16/latent512/rows64/block64": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {64: 1, 32: 1}),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {64: 1, 32: 1}),
    },
    "cdna_latent_split/bf16/latent512/rows64/block64/row_tiles": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {64: 1, 32: 1}),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {64: 1, 32: 1}),
    },
    "cdna_latent_split/bf16/latent512/rows16/block1/fp8_cache": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {64: 1, 32: 3}, wave_private=True),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {32: 1}, wave_private=True),
    },
    "cdna_latent_split/bf16/latent512/rows32/block64/fp8_cache": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {64: 1, 32: 1}),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {64: 1, 32: 1}),
    },
    "cdna_latent_split/bf16/latent512/rows64/block64/fp8_cache": {
        # Four waves share a chunk of 128 bytes a latent: eight bytes a lane.
        "gfx942": Budget(1, "f32_16x16x16_bf16", {64: 4, 32: 2}, widest=64),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {64: 4, 32: 2}, widest=64),
    },
    "cdna_latent_split/bf16/latent256/rows16/block1/direct": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {64: 1, 32: 3}, wave_private=True),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {32: 1}, wave_private=True),
    },
}


def _variant(
    heads: int,
    block_size: int,
    latent_size: int = 512,
    direct: bool = False,
    cache: str = "",
    query_len: int = 1,
) -> CodegenVariant:
    config = choose_config(heads * query_len)
    several = heads * query_len > config.rows
    name = f"cdna_latent_split/bf16/latent{latent_size}/rows{config.rows}/block{block_size}"
    name += "/row_tiles" if several else ""
    name += f"/{cache}_cache" if cache else ""
    name += f"/query{query_len}" if query_len > 1 else ""
    name += "/direct" if direct else ""
    partial = "bf16" if direct else "fp32"
    return CodegenVariant(
        name=name,
        kernel=cdna_latent_split_kernel,
        signature={
            "query_ptr": "*bf16",
            "latent_cache_ptr": f"*{cache or 'bf16'}",
            "zeros_ptr": f"*{cache or 'bf16'}",
            "block_table_ptr": "*i32",
            "seq_lens_ptr": "*i32",
            "out_ptr": "*bf16",
            "lse_ptr": "*fp32",
            "partial_ptr": f"*{partial}",
            "partial_lse_ptr": f"*{partial}",
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
            "T": config.num_warps // config.head_waves,
            "H": config.head_waves,
            "SEVERAL_ROW_TILES": several,
            "DIRECT": direct,
            "HAS_LSE": True,
        },
        num_warps=config.num_warps,
        waves_per_eu=config.waves_per_eu,
        divisible_by_16=_STRIDES,
        over_2_gib=("latent_cache_ptr",),
        by_gfx={gfx: {"CDNA": generation} for gfx, generation in GENERATION.items()},
        budgets=_BUDGETS.get(name, {}),
    )


CODEGEN_VARIANTS = (
    _variant(16, 1),
    _variant(16, 1, direct=True),
    _variant(16, 64),
    _variant(32, 1),
    _variant(64, 64),
    _variant(128, 64),
    _variant(16, 1, latent_size=256, direct=True),
    _variant(16, 1, cache="fp8"),
    _variant(32, 64, cache="fp8"),
    _variant(64, 64, cache="fp8"),
    _variant(16, 1, query_len=2),
)
