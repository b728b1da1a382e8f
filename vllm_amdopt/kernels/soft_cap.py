"""The soft cap on attention scores, cap * tanh(score / cap), and the factors it is scaled with."""

from __future__ import annotations

import math

import triton
import triton.language as tl

LOG2_E = math.log2(math.e)


def score_factors(scale: float, soft_cap: float) -> tuple[float, float]:
    """(factor on query @ key, factor on its tanh) that give base-2 scores; soft_cap 0.0 is none.

    The softmax runs in base 2, whose exponential is one instruction; both factors fold log2(e) in.
    """
    if soft_cap:
        return scale / soft_cap, soft_cap * LOG2_E
    return scale * LOG2_E, 0.0


@triton.jit
def base2_scores(products, score_scale, cap_log2, HAS_SOFT_CAP: tl.constexpr):
    """Base-2 scores from fp32 products query @ key; the factors come from `score_factors`."""
    scores = products * score_scale
    if HAS_SOFT_CAP:
        scores = tanh(scores) * cap_log2
    return scores


@triton.jit
def tanh(x):
    """tanh in fp32 to a few units in the last place.

    Near zero 1 - 2 / (e^2x + 1) keeps only absolute accuracy, which the cap then multiplies, so a
    Taylor polynomial takes over below 1/4, where its first omitted term is under 1e-8 of x.
    """
    exponential = tl.exp2(x * 2.8853900817779268)  # 2 / ln 2
    far = 1.0 - 2.0 / (exponential + 1.0)
    square = x * x
    near = x + x * square * (
        -0.3333333333333333
        + square
        * (0.13333333333333333 + square * (-0.05396825396825397 + square * 0.021869488536155203))
    )
    return tl.where(tl.abs(x) < 0.25, near, far)
