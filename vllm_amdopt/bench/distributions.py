"""Student's t distribution and the exact null distributions that the statistics need; nothing else.

Standard library only: scipy is 100 MB next to a tool that needs four functions of it.
"""

import bisect
import itertools
import math
from collections.abc import Sequence
from functools import cache


def t_cumulative(t: float, freedom: float) -> float:
    """P(T <= t) for Student's t with `freedom` degrees of freedom."""
    if math.isinf(t):
        return 1.0 if t > 0 else 0.0
    tail = 0.5 * _regularised_beta(freedom / (freedom + t * t), freedom / 2, 0.5)
    return 1 - tail if t > 0 else tail


@cache
def t_quantile(probability: float, freedom: float) -> float:
    """The t below which `probability` of Student's t distribution lies; by bisection."""
    if not 0 < probability < 1:
        raise ValueError(f"a quantile needs a probability between 0 and 1, not {probability}")
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while t_cumulative(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if t_cumulative(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def two_sided_p(t: float, freedom: float) -> float:
    """The probability of a |T| at least as large as |t|."""
    # Not 2 * (1 - cumulative): that loses every digit of a small p.
    if math.isinf(t):
        return 0.0
    return _regularised_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def _regularised_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side only
        return 1 - _regularised_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny = 1e-300
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 500):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + numerator * d, tiny)
            c = _away_from_zero(1 + numerator / c, tiny)
            step = c * d
            fraction *= step
        if abs(step - 1) < 1e-15:
            break
    return front * fraction / a


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided p of the mean under random signs: no assumption but symmetry around 0.

    All 2**n signs are counted, by halves, so that 30 differences are no problem. The smallest
    value possible is 2 / 2**n: five differences cannot reach 0.05.
    """
    half = len(differences) // 2
    left, right = _signed_sums(differences[:half]), sorted(_signed_sums(differences[half:]))
    observed = abs(math.fsum(differences))
    # Sums that are equal but for rounding count as equal.
    limit = observed - 1e-12 * math.fsum(abs(value) for value in differences)
    if limit <= 0:
        return 1.0
    beyond = sum(
        len(right)
        - bisect.bisect_left(right, limit - value)
        + bisect.bisect_right(right, -limit - value)
        for value in left
    )
    return beyond / float(2 ** len(differences))


def _signed_sums(values: Sequence[float]) -> list[float]:
    sums = [0.0]
    for value in values:
        sums = [total + value for total in sums] + [total - value for total in sums]
    return sums


@cache
def signed_rank_counts(n: int) -> tuple[int, ...]:
    """How many of the 2**n signs give each value of Wilcoxon's signed-rank sum, 0 to n(n+1)/2."""
    counts = [1]
    for rank in range(1, n + 1):
        longer = counts + [0] * rank
        for value, count in enumerate(counts):
            longer[value + rank] += count
        counts = longer
    return tuple(counts)


@cache
def rank_distance_counts(n: int) -> dict[int, int]:
    """How many of the n! permutations give each sum of squared rank differences (n up to 8)."""
    counts: dict[int, int] = {}
    for order in itertools.permutations(range(n)):
        distance = sum((index - rank) ** 2 for index, rank in enumerate(order))
        counts[distance] = counts.get(distance, 0) + 1
    return counts
