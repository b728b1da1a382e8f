"""Absorbed MLA attention of one new token per sequence over the latent cache, for CDNA (Gluon).

Each wave attends to 16 tokens of its own with 16 heads. A latent is loaded once, straight into the
operand of the product with the queries. As values it has to lie the other way round; the matrix
unit turns it, exactly, by a product with the identity, whose result lies in a lane as the next
product wants its operand. With more than 16 heads the waves that have the same tokens load a share
of their latents each and exchange them through LDS; with 16 nothing passes between waves.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from vllm_amdopt.kernels import mla_decode_plan
from vllm_amdopt.kernels.cdna.mla_decode_plan import choose_config
from vllm_amdopt.kernels.cdna.tiles import axis_index, group_pages, numbers, powers, row_pointers
from vllm_amdopt.kernels.variants import Budget, CodegenVariant

GENERATION = {"gfx942": 3, "gfx950": 4}
"""gfx -> generation of CDNA, which names the matrix instructions."""

XCDS = gl.constexpr(mla_decode_plan.XCDS)
LN_2 = gl.constexpr(0.6931471805599453)
CHUNK = gl.constexpr(64)
"""Words of a latent, two numbers each, that are multiplied and turned together."""


@gluon.constexpr_function
def operand_layout(token_waves, head_waves, words):
    """[token_waves, 16, words]: 16 latents a wave as the A operand of latents @ query."""
    registers = [[0, 0, word] for word in (1, 2, *powers(16, words))]
    lanes = [[0, row, 0] for row in (1, 2, 4, 8)] + [[0, 0, 4], [0, 0, 8]]
    warps = [[0, 0, 0] for _ in powers(1, head_waves)] + [[w, 0, 0] for w in powers(1, token_waves)]
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [token_waves, 16, words])


@gluon.constexpr_function
def load_layout(token_waves, head_waves, words):
    """The same, where the waves that have the same tokens load a share of the words each."""
    lane_words = min(4, words // 4 // head_waves)
    places = [[0, 0, word] for word in powers(4 * lane_words, words)]
    kept = len(powers(1, words // (4 * lane_words * head_waves)))
    registers = [[0, 0, word] for word in powers(1, lane_words)] + places[:kept]
    lanes = [[0, row, 0] for row in (1, 2, 4, 8)]
    lanes += [[0, 0, word] for word in powers(lane_words, 4 * lane_words)]
    warps = places[kept:] + [[w, 0, 0] for w in powers(1, token_waves)]
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [token_waves, 16, words])


@gluon.constexpr_function
def merged_layout(token_waves, head_waves):
    """[token_waves, heads, 128]: all waves' sums for one place in one lane, 4 neighbours a lane."""
    heads = 16 * head_waves
    places = [[0, 0, element] for element in powers(4, 128)]
    places += [[0, head, 0] for head in powers(1, heads)]
    inside = 6 + len(powers(1, token_waves * head_waves))
    registers = [[wave, 0, 0] for wave in powers(1, token_waves)] + [[0, 0, 1], [0, 0, 2]]
    return gl.DistributedLinearLayout(
        registers + places[inside:], places[:6], places[6:inside], [], [token_waves, heads, 128]
    )


@gluon.jit
def appended(items, item):
    """The tuple and one more."""
    return items + (item,)  # noqa: RUF005 Triton does not unpack one in a tuple


@gluon.jit
def load_part(rows, first: gl.constexpr, words: gl.constexpr, T: gl.constexpr, H: gl.constexpr):
    """Words first .. first + words - 1 of the rows [T, 16], in `load_layout`."""
    layout: gl.constexpr = load_layout(T, H, words)
    rows = gl.convert_layout(rows, gl.SliceLayout(2, layout))
    return gl.load(gl.expand_dims(rows, 2) + (first + axis_index(words, 2, 3, layout)))


@gluon.jit
def load_latents(rows, LATENT: gl.constexpr, ROPE: gl.constexpr, T: gl.constexpr, H: gl.constexpr):
    """(chunks of the latents, rotary part) of the rows [T, 16], as words under way."""
    chunks = ()
    for chunk in gl.static_range(LATENT // 2 // CHUNK):
        chunks = appended(chunks, load_part(rows, chunk * CHUNK, CHUNK, T, H))
    return chunks, load_part(rows, LATENT // 2, ROPE // 2, T, H)


@gluon.jit
def as_operand(words, dtype: gl.constexpr, T: gl.constexpr, H: gl.constexpr, mma: gl.constexpr):
    """Words, as loaded or in LDS, -> numbers [T, 16, 2 * words] as the A operand."""
    count: gl.constexpr = words.shape[2]
    if H == 1:
        words = gl.convert_layout(words, operand_layout(T, H, count), assert_trivial=True)
    else:
        words = words.load(operand_layout(T, H, count))
    values = gl.reshape(numbers(words, dtype), [T, 16, 2 * count])
    return gl.convert_layout(values, gl.DotOperandLayout(0, mma, 8), assert_trivial=True)


@gluon.jit
def turned(key, T: gl.constexpr, mma: gl.constexpr, turn: gl.constexpr):
    """[T, 16 tokens, D] -> [T, D, 16 tokens], the A operand of values @ weights.

    A product with the identity leaves 4 tokens of one number in a lane; times one plus zeros is
    exact. Row (c * 2 + h) * 16 + g * 4 + i is number c * 32 + g * 8 + h * 4 + i, as in lanes.
    """
    D: gl.constexpr = key.shape[2]
    B: gl.constexpr = D // 16
    key_ = gl.reshape(key, [T, 16, D // 32, 4, 2, 4])
    key_ = gl.reshape(gl.permute(key_, [2, 4, 0, 1, 3, 5]), [B * T, 16, 16])
    key_ = gl.convert_layout(key_, gl.DotOperandLayout(0, turn, 4), assert_trivial=True)
    right: gl.constexpr = gl.DotOperandLayout(1, turn, 4)
    diagonal = axis_index(16, 1, 3, right) == axis_index(16, 2, 3, right)
    one = gl.where(diagonal, 1.0, 0.0) + 0.0 * axis_index(B * T, 0, 3, right).to(gl.float32)
    zero = gl.full([B * T, 16, 16], 0.0, gl.float32, turn)
    values = gl.amd.cdna3.mfma(key_, one.to(key.dtype), zero)
    # The upper half is the number: the lower one is zero, and rounding would cost five times.
    bits = values.to(gl.int32, bitcast=True) >> 16
    values = bits.to(gl.int16).to(key.dtype, bitcast=True)
    values = gl.permute(gl.reshape(values, [B, T, 16, 16]), [1, 0, 3, 2])
    values = gl.reshape(values, [T, D, 16])
    return gl.convert_layout(values, gl.DotOperandLayout(0, turn, 4), assert_trivial=True)


@gluon.jit
def load_query(
    row_ptr, first: gl.constexpr, width: gl.constexpr, right: gl.constexpr, T: gl.constexpr
):
    """[T, width, heads]: the same for all waves' tokens, as the B operand."""
    element = first + axis_index(width, 1, 3, right)
    return gl.load(row_ptr + element + axis_index(T, 0, 3, right) * 0)


@gluon.jit
def score_and_turn(
    chunks, rope, rows, queries, query_rope, shared, shared_rope, T: gl.constexpr,
    H: gl.constexpr, mma: gl.constexpr, turn: gl.constexpr,
):  # fmt: skip
    """(products [T, 16, heads], values by chunk, the words of the next tile's rows).

    Each part of the next tile takes the registers of its like in this one as soon as that has been
    used, or has gone to LDS, so that there is always something under way.
    """
    CHUNKS: gl.constexpr = len(chunks)
    LATENT_WORDS: gl.constexpr = CHUNKS * CHUNK
    dtype: gl.constexpr = query_rope.dtype
    following = ()
    next_rope = rope
    if H > 1:
        for chunk in gl.static_range(CHUNKS):
            shared[chunk].store(chunks[chunk])
            following = appended(following, load_part(rows, chunk * CHUNK, CHUNK, T, H))
        shared_rope.store(rope)
        next_rope = load_part(rows, LATENT_WORDS, rope.shape[2], T, H)
    scores = gl.full([T, 16, 16 * H], 0.0, gl.float32, mma)
    values = ()
    for chunk in gl.static_range(CHUNKS):
        words = shared[chunk] if H > 1 else chunks[chunk]
        key = as_operand(words, dtype, T, H, mma)
        scores = gl.amd.cdna3.mfma(key, queries[chunk], scores)
        values = appended(values, turned(key, T, mma, turn))
        if H == 1:
            following = appended(following, load_part(rows, chunk * CHUNK, CHUNK, T, H))
        gl.amd.hint.sched_barrier()
    key = as_operand(shared_rope if H > 1 else rope, dtype, T, H, mma)
    scores = gl.amd.cdna3.mfma(key, query_rope, scores)
    if H == 1:
        next_rope = load_part(rows, LATENT_WORDS, rope.shape[2], T, H)
    gl.amd.hint.sched_barrier()
    return scores, values, following, next_rope


@gluon.jit
def add_values(
    scores, values, maximum, denominator, accumulators, dtype: gl.constexpr, turn: gl.constexpr
):
    """(new maximum [T, heads], denominator, sums by chunk) after a tile with these base-2 scores.

    The denominator is [T, 16, heads]: the 16 are summed once, at the end.
    """
    new_maximum = gl.maximum(maximum, gl.max(scores, 1))
    correction = gl.exp2(maximum - new_maximum)
    weights = gl.exp2(scores - gl.expand_dims(new_maximum, 1))
    denominator = denominator * gl.expand_dims(correction, 1) + weights
    weights = gl.convert_layout(
        weights.to(dtype), gl.DotOperandLayout(1, turn, 4), assert_trivial=True
    )
    factor = gl.convert_layout(correction, gl.SliceLayout(1, turn), assert_trivial=True)
    summed = ()
    for chunk in gl.static_range(len(values)):
        accumulator = accumulators[chunk] * gl.expand_dims(factor, 1)
        summed = appended(summed, gl.amd.cdna3.mfma(values[chunk], weights, accumulator))
    return new_maximum, denominator, summed


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
    CHUNKS: gl.constexpr = LATENT_SIZE // 2 // CHUNK
    ROWS: gl.constexpr = 16 * H
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
        row_tiles = gl.cdiv(heads, ROWS)
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

    by_row: gl.constexpr = gl.SliceLayout(2, load_layout(T, H, CHUNK))
    token = start + axis_index(T, 0, 2, by_row) * 16 + axis_index(16, 1, 2, by_row)
    table_row_ptr = block_table_ptr + sequence * table_stride
    pages = group_pages(table_row_ptr, token, 0, end, BLOCK_SIZE)
    rows = row_pointers(
        latent_cache_ptr, zeros_ptr, pages, token, 0, end, stride_block, stride_row, BLOCK_SIZE
    )
    chunks, rope = load_latents(rows, LATENT_SIZE, ROPE_SIZE, T, H)
    token += TILE
    pages = group_pages(table_row_ptr, token, 0, end, BLOCK_SIZE)

    # Heads past the last one attend like it, and are not stored.
    right: gl.constexpr = gl.DotOperandLayout(1, mma, 8)
    head = gl.minimum(row_tile * ROWS + axis_index(ROWS, 2, 3, right), heads - 1)
    query_row_ptr = query_ptr + sequence * query_stride_token + head * query_stride_head
    queries = ()
    for chunk in gl.static_range(CHUNKS):
        queries = appended(
            queries, load_query(query_row_ptr, chunk * 2 * CHUNK, 2 * CHUNK, right, T)
        )
    query_rope = load_query(query_row_ptr, LATENT_SIZE, ROPE_SIZE, right, T)
    gl.amd.hint.sched_barrier()

    position = start + axis_index(T, 0, 3, mma) * 16 + axis_index(16, 1, 3, mma)
    # A finite floor instead of -inf: exp2(-inf - floor) is 0, exp2(-inf - -inf) would be NaN.
    maximum = gl.full([T, ROWS], -1.0e30, gl.float32, gl.SliceLayout(1, mma))
    denominator = gl.full([T, 16, ROWS], 0.0, gl.float32, mma)
    shared = ()
    shared_rope = 0
    if H > 1:
        # 16-byte groups change places by the row, so that 16 rows of a column are in all banks.
        for _ in gl.static_range(CHUNKS):
            shared = appended(
                shared,
                gl.allocate_shared_memory(
                    gl.int32, [T, 16, CHUNK], gl.SwizzledSharedLayout(4, 1, 16, [2, 1, 0])
                ),
            )
        shared_rope = gl.allocate_shared_memory(
            gl.int32, [T, 16, ROPE_SIZE // 2], gl.SwizzledSharedLayout(4, 2, 8, [2, 1, 0])
        )
    accumulators = ()
    for _ in gl.static_range(CHUNKS):
        accumulators = appended(accumulators, gl.full([T, 2 * CHUNK, ROWS], 0.0, gl.float32, turn))
    # Behind the last tile rows of zeros are asked for: a copy of the tile without takes registers.
    for _ in range(gl.cdiv(end - start, TILE)):
        rows = row_pointers(
            latent_cache_ptr, zeros_ptr, pages, token, 0, end, stride_block, stride_row, BLOCK_SIZE
        )
        token += TILE
        pages = group_pages(table_row_ptr, token, 0, end, BLOCK_SIZE)
        scores, values, chunks, rope = score_and_turn(
            chunks, rope, rows, queries, query_rope, shared, shared_rope, T, H, mma, turn
        )
        scores = gl.where(position < end, scores * score_scale, float("-inf"))
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
    lane = row_tile * ROWS + axis_index(ROWS, 0, 2, places)
    part = (sequence * heads + lane) * splits + split
    for chunk in gl.static_range(CHUNKS):
        result = accumulators[chunk] * gl.expand_dims(share, 1)
        result = gl.reshape(result, [T, CHUNK // 16, 2, 4, 4, ROWS])
        result = gl.reshape(gl.permute(result, [0, 5, 1, 3, 2, 4]), [T, ROWS, 2 * CHUNK])
        result = gl.sum(gl.convert_layout(result, merged), 0)
        element = chunk * 2 * CHUNK + axis_index(2 * CHUNK, 1, 2, places)
        if DIRECT:
            out_ptrs = out_ptr + sequence * out_stride_token + lane * out_stride_head + element
            gl.store(out_ptrs, result.to(dtype), mask=lane < heads)
        else:
            gl.store(partial_ptr + part * LATENT_SIZE + element, result, mask=lane < heads)
    lane = row_tile * ROWS + gl.arange(0, ROWS, layout=highest.type.layout)
    lse = highest + gl.log2(total)
    if not DIRECT:
        part = (sequence * heads + lane) * splits + split
        gl.store(partial_lse_ptr + part, lse, mask=lane < heads)
    elif HAS_LSE:
        lse_ptrs = lse_ptr + sequence * lse_stride_token + lane * lse_stride_head
        gl.store(lse_ptrs, lse * LN_2, mask=lane < heads)


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
    "cdna_latent_split/bf16/latent512/rows64/block64": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {64: 1, 32: 1}),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {64: 1, 32: 1}),
    },
    "cdna_latent_split/bf16/latent512/rows64/block64/row_tiles": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {64: 1, 32: 1}),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {64: 1, 32: 1}),
    },
    "cdna_latent_split/bf16/latent256/rows16/block1/direct": {
        "gfx942": Budget(1, "f32_16x16x16_bf16", {64: 1, 32: 3}, wave_private=True),
        "gfx950": Budget(1, "f32_16x16x16_bf16 f32_16x16x32_bf16", {32: 1}, wave_private=True),
    },
}


def _variant(
    heads: int, block_size: int, latent_size: int = 512, direct: bool = False
) -> CodegenVariant:
    config = choose_config(heads)
    several = heads > config.rows
    name = f"cdna_latent_split/bf16/latent{latent_size}/rows{config.rows}/block{block_size}"
    name += "/row_tiles" if several else ""
    name += "/direct" if direct else ""
    partial = "bf16" if direct else "fp32"
    return CodegenVariant(
        name=name,
        kernel=cdna_latent_split_kernel,
        signature={
            "query_ptr": "*bf16",
            "latent_cache_ptr": "*bf16",
            "zeros_ptr": "*bf16",
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
)
