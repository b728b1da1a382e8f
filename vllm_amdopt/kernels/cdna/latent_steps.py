"""What MLA decode does with a tile of latents in registers, for CDNA (Gluon). No kernel of its own.

Axis 0 of every tensor is the wave's place among the T waves that have tokens of their own; H waves
that have the same tokens share the heads.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from vllm_amdopt.kernels.cdna.tiles import (
    axis_index,
    cached_numbers,
    in_order_of_keys,
    numbers,
    powers,
    query_layout,
    token_and_head,
    words_from_fp8,
)

CHUNK = gl.constexpr(128)
"""Numbers of a latent that are multiplied and turned together."""


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
def exchange_layout(words):
    """Rows of so many words in LDS: 16-byte groups change places by the row, so that 16 rows of a
    column are in all banks.
    """
    return gl.SwizzledSharedLayout(4, 64 // words, words // 4, [2, 1, 0])


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
def load_latents(
    rows, LATENT: gl.constexpr, ROPE: gl.constexpr, BITS: gl.constexpr, T: gl.constexpr,
    H: gl.constexpr,
):  # fmt: skip
    """(chunks of the latents, rotary part) of the rows [T, 16], as words under way."""
    WORDS: gl.constexpr = CHUNK * BITS // 32
    chunks = ()
    for chunk in gl.static_range(LATENT // CHUNK):
        chunks = appended(chunks, load_part(rows, chunk * WORDS, WORDS, T, H))
    return chunks, load_part(rows, LATENT * BITS // 32, ROPE * BITS // 32, T, H)


@gluon.jit
def to_exchange(words, cache: gl.constexpr, dtype: gl.constexpr):
    """Words as loaded -> words of 16-bit numbers for the waves that share them: so that each number
    is converted once.
    """
    if cache.primitive_bitwidth == 8:
        return gl.reshape(words_from_fp8(words, dtype), [words.shape[0], 16, 2 * words.shape[2]])
    else:
        return words


@gluon.jit
def as_operand(
    words, cache: gl.constexpr, dtype: gl.constexpr, T: gl.constexpr, H: gl.constexpr,
    mma: gl.constexpr,
):  # fmt: skip
    """Words, as loaded or from `to_exchange` in LDS, -> numbers [T, 16, D] as the A operand.

    Loaded ones of 8 bits in their own order (`in_order_of_keys`), others in that of the elements.
    """
    COUNT: gl.constexpr = words.shape[2]
    right: gl.constexpr = gl.DotOperandLayout(0, mma, 8)
    if H > 1:
        words = words.load(operand_layout(T, H, COUNT))
        values = gl.reshape(numbers(words, dtype), [T, 16, 2 * COUNT])
    else:
        words = gl.convert_layout(words, operand_layout(T, H, COUNT), assert_trivial=True)
        values = cached_numbers(words, cache, dtype)
        values = gl.reshape(values, [T, 16, COUNT * 32 // cache.primitive_bitwidth])
        if cache.primitive_bitwidth == 8:
            values = in_order_of_keys(values, 2)
    return gl.convert_layout(values, right, assert_trivial=True)


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
    seq_ptr, stride_token, stride_head, first_row, heads, first: gl.constexpr,
    width: gl.constexpr, QUERY_LEN: gl.constexpr, BITS: gl.constexpr, T: gl.constexpr,
    H: gl.constexpr, mma: gl.constexpr,
):  # fmt: skip
    """[T, width, rows]: the same for all waves' tokens, as the B operand. BITS: of the latents'
    numbers, which decide about the order where no wave shares them.

    Rows past the last one attend like it, and are not stored.
    """
    right: gl.constexpr = gl.DotOperandLayout(1, mma, 8)
    ORDERED: gl.constexpr = BITS == 8 and H == 1
    layout: gl.constexpr = query_layout(T, width) if ORDERED else right
    row = gl.minimum(first_row + axis_index(16 * H, 2, 3, layout), heads * QUERY_LEN - 1)
    token, head = token_and_head(row, heads, QUERY_LEN)
    row_ptr = seq_ptr + token * stride_token + head * stride_head
    element = first + axis_index(width, 1, 3, layout)
    query = gl.load(row_ptr + element + axis_index(T, 0, 3, layout) * 0)
    if ORDERED:
        query = gl.convert_layout(in_order_of_keys(query, 1), right, assert_trivial=True)
    return query


@gluon.jit
def score_and_turn(
    chunks, rope, rows, queries, query_rope, shared, shared_rope, cache: gl.constexpr,
    T: gl.constexpr, H: gl.constexpr, mma: gl.constexpr, turn: gl.constexpr,
):  # fmt: skip
    """(products [T, 16, heads], values by chunk, the words of the next tile's rows).

    Each part of the next tile takes the registers of its like in this one as soon as that has been
    used, or has gone to LDS, so that there is always something under way.
    """
    CHUNKS: gl.constexpr = len(chunks)
    WORDS: gl.constexpr = chunks[0].shape[2]
    dtype: gl.constexpr = query_rope.dtype
    following = ()
    next_rope = rope
    if H > 1:
        shared_rope.store(to_exchange(rope, cache, dtype))
        next_rope = load_part(rows, CHUNKS * WORDS, rope.shape[2], T, H)
        for chunk in gl.static_range(CHUNKS):
            shared[chunk].store(to_exchange(chunks[chunk], cache, dtype))
            following = appended(following, load_part(rows, chunk * WORDS, WORDS, T, H))
            if cache.primitive_bitwidth == 8 and H == 2:
                # Or the conversions of all chunks are under way at once, in more registers.
                gl.amd.hint.sched_barrier()
    scores = gl.full([T, 16, 16 * H], 0.0, gl.float32, mma)
    values = ()
    for chunk in gl.static_range(CHUNKS):
        words = shared[chunk] if H > 1 else chunks[chunk]
        key = as_operand(words, cache, dtype, T, H, mma)
        scores = gl.amd.cdna3.mfma(key, queries[chunk], scores)
        values = appended(values, turned(key, T, mma, turn))
        if H == 1:
            following = appended(following, load_part(rows, chunk * WORDS, WORDS, T, H))
        gl.amd.hint.sched_barrier()
    key = as_operand(shared_rope if H > 1 else rope, cache, dtype, T, H, mma)
    scores = gl.amd.cdna3.mfma(key, query_rope, scores)
    if H == 1:
        next_rope = load_part(rows, CHUNKS * WORDS, rope.shape[2], T, H)
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
