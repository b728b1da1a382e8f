"""The softmax over keys that come tile by tile, and which keys a row sees: device functions."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def lowest_visible(seq_len, window, HAS_WINDOW: tl.constexpr, QUERY_LEN: tl.constexpr):
    """First key that the first query token of the sequence sees."""
    if HAS_WINDOW:
        return tl.maximum(seq_len - QUERY_LEN + 1 - window, 0)
    else:
        return seq_len * 0


@triton.jit
def visible_keys(position, limit, window, HAS_WINDOW: tl.constexpr):
    """[rows, keys]: which keys, at `position`, the rows see whose own positions are `limit`."""
    visible = position[None, :] <= limit[:, None]
    if HAS_WINDOW:
        visible = visible & (position[None, :] > limit[:, None] - window)
    return visible


@triton.jit
def softmax_step(scores, maximum, denominator):
    """(weights, correction of what was summed before, new maximum, new denominator), base 2."""
    new_maximum = tl.maximum(maximum, tl.max(scores, 1))
    correction = tl.exp2(maximum - new_maximum)
    weights = tl.exp2(scores - new_maximum[:, None])
    return weights, correction, new_maximum, denominator * correction + tl.sum(weights, 1)
