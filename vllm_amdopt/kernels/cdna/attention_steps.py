"""What decode attention does with one tile in registers, for CDNA (Gluon). No kernel of its own.

Axis 0 of every tensor is the wave; [.., 16] are the rows: query heads of a KV head, token by token.
"""

from __future__ import annotations

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from vllm_amdopt.kernels.cdna.tiles import (
    axis_index,
    cached_numbers,
    in_order_of_keys,
    query_layout,
    token_and_head,
)


@gluon.jit
def load_query(
    seq_ptr, stride_token, stride_head, W: gl.constexpr, GROUP: gl.constexpr,
    QUERY_LEN: gl.constexpr, HEAD_SIZE: gl.constexpr, BITS: gl.constexpr, mma: gl.constexpr,
):  # fmt: skip
    """The rows of a KV head as the B operand [W, D, 16]; those past the last are the last.

    BITS: of a number in the cache, which decides about the order of D.
    """
    HEAD_PAD: gl.constexpr = triton.next_power_of_2(HEAD_SIZE)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, 8)
    layout: gl.constexpr = query_layout(W, HEAD_PAD) if BITS == 8 else right
    row = gl.minimum(axis_index(16, 2, 3, layout), GROUP * QUERY_LEN - 1)
    token, head = token_and_head(row, GROUP, QUERY_LEN)
    element = axis_index(HEAD_PAD, 1, 3, layout)
    row_ptr = seq_ptr + token * stride_token + head * stride_head
    query = gl.load(
        row_ptr + element + axis_index(W, 0, 3, layout) * 0,
        mask=element < HEAD_SIZE,
        other=0.0,
    )
    if BITS == 8:
        query = gl.convert_layout(in_order_of_keys(query, 1), right, assert_trivial=True)
    return query


@gluon.jit
def visible_scores(
    scores, position, limit, low, end, window, HAS_WINDOW: gl.constexpr,
    QUERY_LEN: gl.constexpr, LAST: gl.constexpr,
):  # fmt: skip
    """-inf in the place of scores that a row does not see; LAST: of the tile that `end` may cut.

    One query token sees all of [low, end), which only the first and the last tile leave; of
    several, each sees up to its own position `limit`.
    """
    if QUERY_LEN > 1:
        visible = position <= limit
        if HAS_WINDOW:
            visible = visible & (position > limit - window)
        if LAST:
            visible = visible & (position < end)
        scores = gl.where(visible, scores, float("-inf"))
    elif LAST:
        scores = gl.where((position >= low) & (position < end), scores, float("-inf"))
    elif HAS_WINDOW:
        scores = gl.where(position >= low, scores, float("-inf"))
    return scores


@gluon.jit
def keys_times_query(key, query, cache: gl.constexpr, mma: gl.constexpr):
    """Products [W, 32, 16]; row i * 16 + r belongs to token (r // 4) * 8 + i * 4 + r % 4."""
    W: gl.constexpr = key.shape[0]
    key = gl.reshape(cached_numbers(key, cache, query.dtype), [W, 32, query.shape[1]])
    if cache.primitive_bitwidth == 8:
        key = in_order_of_keys(key, 2)
    key = gl.convert_layout(key, gl.DotOperandLayout(0, mma, 8), assert_trivial=True)
    return gl.amd.cdna3.mfma(key, query, gl.full([W, 32, 16], 0.0, gl.float32, mma))


@gluon.jit
def softmax_step(scores, maximum, denominator, dtype: gl.constexpr, mma: gl.constexpr):
    """(weights as the B operand, correction, new maximum [W, 16], new denominator).

    The denominator is [W, 16, 16]: each lane sums the rows it has, and the lanes are summed once,
    at the end.
    """
    W: gl.constexpr = scores.shape[0]
    new_maximum = gl.maximum(maximum, gl.max(scores, 1))
    correction = gl.exp2(maximum - new_maximum)
    weights = gl.exp2(scores - gl.expand_dims(new_maximum, 1))
    rows = gl.sum(gl.reshape(weights, [W, 2, 16, 16]), 1)
    rows = gl.convert_layout(rows, mma, assert_trivial=True)
    denominator = denominator * gl.expand_dims(correction, 1) + rows
    weights = gl.reshape(weights.to(dtype), [W, 2, 4, 4, 16])
    weights = gl.reshape(gl.permute(weights, [0, 2, 1, 3, 4]), [W, 32, 16])
    weights = gl.convert_layout(weights, gl.DotOperandLayout(1, mma, 8), assert_trivial=True)
    return weights, correction, new_maximum, denominator


@gluon.jit
def add_values(accumulator, value, weights, correction, cache: gl.constexpr, mma: gl.constexpr):
    """accumulator [W, D, 16] * correction + values @ weights.

    Row (d % n) * 16 + d // n of the accumulator is element d of the head, where a lane holds n
    neighbours: so the values need no exchange between lanes, only 16-bit halves change places.
    """
    W: gl.constexpr = value.shape[0]
    D: gl.constexpr = accumulator.shape[1]
    value = gl.reshape(cached_numbers(value, cache, weights.dtype), [W, 4, 8, 16, D // 16])
    value = gl.reshape(gl.permute(value, [0, 4, 3, 1, 2]), [W, D, 32])
    value = gl.convert_layout(value, gl.DotOperandLayout(0, mma, 8), assert_trivial=True)
    accumulator = accumulator * gl.expand_dims(correction, 1)
    return gl.amd.cdna3.mfma(value, weights, accumulator)
