"""The statistics of paired runs: what a difference is, how sure it is, what could be seen at all.

The unit is a block, one launch of each arm; requests inside a run are not independent and get no
interval here. How often each statement is wrong was simulated: docs/statistics.md.
"""

import bisect
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from vllm_amdopt.bench.distributions import (
    rank_distance_counts,
    sign_flip_p,
    signed_rank_counts,
    t_quantile,
    two_sided_p,
)

Verdict = Literal["better", "regression", "equivalent", "inconclusive"]

Claim = TypeVar("Claim", bound=Hashable)

POWER = 0.8
"""The chance with which the minimum detectable effect would be noticed."""

OUTLIER_SCORE = 3.5
"""Iglewicz and Hoaglin's limit of the modified z score."""


@dataclass(frozen=True)
class PairedEffect:
    """B against A over blocks, as ratios B/A. What one block cannot tell is None.

    `ratio`: geometric mean. `low`, `high`: its Student-t interval on log ratios. `p`: two-sided,
    against a ratio of 1; where all ratios are the same number it is the sign-flip test's, because
    a t test needs spread. `detectable`: the smallest ratio above 1 that `POWER` of such
    measurements would tell from 1. `shift*`: Hodges-Lehmann and its exact signed-rank interval,
    None where the blocks are too few for one. `outliers`: flagged blocks, by index, never dropped;
    `ratio_without` is the ratio without them.
    """

    n: int
    ratio: float
    confidence: float
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None
    shift: float
    shift_low: float | None
    shift_high: float | None
    sign_flip_p: float
    outliers: tuple[int, ...]
    ratio_without: float
    log_ratios: tuple[float, ...]


def paired_effect(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> PairedEffect:
    """The effect from one number of each arm per block, in the same order of blocks."""
    if len(a) != len(b) or not a:
        raise ValueError(f"pairs need as many numbers of A ({len(a)}) as of B ({len(b)}), from 1")
    if min(*a, *b) <= 0:
        raise ValueError("a ratio needs numbers above 0: take out what was not measured")
    return effect_of_logs([math.log(y / x) for x, y in zip(a, b, strict=True)], confidence)


def effect_of_logs(logs: Sequence[float], confidence: float = 0.95) -> PairedEffect:
    """The effect from the logarithm of B/A in each block."""
    n = len(logs)
    mean = statistics.fmean(logs)
    low = high = p = detectable = None
    if n > 1:
        # fmean of equal numbers may differ from them in the last digit: that is no spread.
        spread = 0.0 if min(logs) == max(logs) else statistics.stdev(logs, mean)
        error = spread / math.sqrt(n)
        quantile = t_quantile((1 + confidence) / 2, n - 1)
        low, high = math.exp(mean - quantile * error), math.exp(mean + quantile * error)
        p = two_sided_p(mean / error, n - 1) if error > 0 else sign_flip_p(logs)
        detectable = math.exp((quantile + t_quantile(POWER, n - 1)) * error)
    shift, shift_low, shift_high = hodges_lehmann(logs, confidence)
    outliers = outlier_indices(logs)
    kept = [value for index, value in enumerate(logs) if index not in outliers]
    return PairedEffect(
        n=n,
        ratio=math.exp(mean),
        confidence=confidence,
        low=low,
        high=high,
        p=p,
        detectable=detectable,
        shift=math.exp(shift),
        shift_low=None if shift_low is None else math.exp(shift_low),
        shift_high=None if shift_high is None else math.exp(shift_high),
        sign_flip_p=sign_flip_p(logs),
        outliers=outliers,
        ratio_without=math.exp(statistics.fmean(kept)) if kept else math.exp(mean),
        log_ratios=tuple(logs),
    )


@dataclass(frozen=True)
class PairedDifference:
    """B minus A over blocks, for metrics that may be 0 (a compilation that does not happen)."""

    n: int
    difference: float
    low: float | None
    high: float | None


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95
) -> PairedDifference:
    """The mean difference and its Student-t interval, in the metric's own unit."""
    differences = [y - x for x, y in zip(a, b, strict=True)]
    low, high = mean_interval(differences, confidence) or (None, None)
    return PairedDifference(len(differences), statistics.fmean(differences), low, high)


# --- what it means ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Improvement:
    """A change in the direction that is good: +0.1 is 10 % more throughput or 10 % less latency.

    Defined as the tables of others define it: B/A - 1 for throughput, 1 - B/A for latency.
    """

    value: float
    low: float | None
    high: float | None


def improvement(effect: PairedEffect, higher_is_better: bool) -> Improvement:
    """The effect as an improvement with its interval."""

    def good(ratio: float | None) -> float | None:
        if ratio is None:
            return None
        return ratio - 1 if higher_is_better else 1 - ratio

    value = good(effect.ratio)
    assert value is not None
    ends = (effect.low, effect.high) if higher_is_better else (effect.high, effect.low)
    return Improvement(value, good(ends[0]), good(ends[1]))


def verdict(
    effect: PairedEffect, higher_is_better: bool, margin: float, adjusted_p: float | None = None
) -> Verdict:
    """What the interval shows.

    `better`: all of it is an improvement. `regression`: all of it is a worsening by more than
    `margin`. `equivalent`: all of it is within the margin. Else `inconclusive`. With `adjusted_p`,
    the p of one of several claims after `holm`, a difference needs that to be small, too.
    """
    change = improvement(effect, higher_is_better)
    if change.low is None or change.high is None:
        return "inconclusive"
    sure = adjusted_p is None or adjusted_p <= 1 - effect.confidence
    if change.low > 0 and sure:
        return "better"
    if change.high < -margin and sure:
        return "regression"
    if -margin < change.low and change.high < margin:
        return "equivalent"
    return "inconclusive"


def holm(p_values: Mapping[Claim, float]) -> dict[Claim, float]:
    """Holm's adjusted p: with all claims judged by these, the chance of any false one is alpha."""
    adjusted: dict[Claim, float] = {}
    largest = 0.0
    for index, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - index) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


# --- robust against a strange block ------------------------------------------------------------


def hodges_lehmann(
    logs: Sequence[float], confidence: float = 0.95
) -> tuple[float, float | None, float | None]:
    """The median of all pairwise means, and the interval that the signed-rank test gives.

    The interval is exact for any symmetric distribution; with fewer than 6 blocks there is none
    at 95 %.
    """
    n = len(logs)
    means = sorted((logs[i] + logs[j]) / 2 for i in range(n) for j in range(i, n))
    counts = signed_rank_counts(n)
    cut, below = -1, 0  # the largest rank sum that is improbable enough
    while (below + counts[cut + 1]) * 2 <= (1 - confidence) * 2**n:
        cut += 1
        below += counts[cut]
    if cut < 0:
        return statistics.median(means), None, None
    return statistics.median(means), means[cut], means[-1 - cut]


def outlier_indices(values: Sequence[float]) -> tuple[int, ...]:
    """Values whose modified z score is above 3.5; a reader is told, nothing is dropped."""
    if len(values) < 3:
        return ()
    middle = statistics.median(values)
    distances = [abs(value - middle) for value in values]
    scale = statistics.median(distances) / 0.6745
    if scale == 0:  # more than half are the same number: the mean distance instead
        scale = statistics.fmean(distances) * 1.253314
    if scale == 0:
        return ()
    return tuple(index for index, value in enumerate(distances) if value / scale > OUTLIER_SCORE)


# --- one arm, and things that spoil a comparison -----------------------------------------------


@dataclass(frozen=True)
class Summary:
    """One metric of one arm over its runs. `variation`: standard deviation by mean, the CoV."""

    n: int
    mean: float
    deviation: float | None
    variation: float | None
    smallest: float
    largest: float


def summary(values: Sequence[float]) -> Summary:
    """Mean, spread and range; the spread of one value is None."""
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    variation = deviation / abs(mean) if deviation is not None and mean else None
    return Summary(len(values), mean, deviation, variation, min(values), max(values))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """The Student-t interval of the mean of one arm's runs; None for a single run."""
    if len(values) < 2:
        return None
    half = (
        t_quantile((1 + confidence) / 2, len(values) - 1)
        * statistics.stdev(values)
        / math.sqrt(len(values))
    )
    mean = statistics.fmean(values)
    return mean - half, mean + half


@dataclass(frozen=True)
class Drift:
    """How a metric goes with the order of the runs: Spearman's rank correlation and its p."""

    correlation: float
    p: float


def drift(values: Sequence[float]) -> Drift | None:
    """Whether values in the order in which they were measured rise or fall; None below 4.

    Exact for up to 8 values without ties, else by Student's t with n - 2 degrees of freedom.
    """
    n = len(values)
    if n < 4 or min(values) == max(values):
        return None
    ranks = _ranks(values)
    order = [float(index) for index in range(n)]
    correlation = statistics.correlation(order, ranks)
    if n <= 8 and len(set(values)) == n:
        counts = rank_distance_counts(n)
        middle = n * (n * n - 1) / 6  # the sum of squared distances at correlation 0
        seen = abs(sum((i - rank) ** 2 for i, rank in zip(order, ranks, strict=True)) - middle)
        extreme = sum(count for value, count in counts.items() if abs(value - middle) >= seen)
        return Drift(correlation, extreme / math.factorial(n))
    if abs(correlation) >= 1:
        return Drift(correlation, 0.0)
    t = correlation * math.sqrt((n - 2) / (1 - correlation**2))
    return Drift(correlation, two_sided_p(t, n - 2))


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    in_order = sorted(values)
    first = {value: index for index, value in reversed(list(enumerate(in_order)))}
    last = {value: index for index, value in enumerate(in_order)}
    return [(first[value] + last[value]) / 2 for value in values]


@dataclass(frozen=True)
class OrderEffect:
    """What it does to B/A that B runs second: the ratio of AB blocks to BA blocks, and its p."""

    ratio: float
    p: float


def order_effect(logs: Sequence[float], b_second: Sequence[bool]) -> OrderEffect | None:
    """A two-sample t test between the two orders; None unless each has two blocks or more."""
    after = [value for value, second in zip(logs, b_second, strict=True) if second]
    before = [value for value, second in zip(logs, b_second, strict=True) if not second]
    if len(after) < 2 or len(before) < 2:
        return None
    difference = statistics.fmean(after) - statistics.fmean(before)
    freedom = len(after) + len(before) - 2
    pooled = (
        statistics.variance(after) * (len(after) - 1)
        + statistics.variance(before) * (len(before) - 1)
    ) / freedom
    error = math.sqrt(pooled * (1 / len(after) + 1 / len(before)))
    if error == 0:
        return OrderEffect(math.exp(difference), 1.0 if difference == 0 else 0.0)
    return OrderEffect(math.exp(difference), two_sided_p(difference / error, freedom))


def blocks_needed(variation: float, half_width: float, confidence: float = 0.95) -> int:
    """Blocks for an interval of +-`half_width` when single runs vary by `variation` (CoV).

    Takes the two runs of a block for independent, so their ratio varies by sqrt(2) as much.
    """
    if not half_width > 0:
        raise ValueError(f"the half width has to be above 0, not {half_width}")
    spread = math.sqrt(2) * variation

    def enough(n: int) -> bool:
        return t_quantile((1 + confidence) / 2, n - 1) * spread / math.sqrt(n) <= half_width

    few, many = 1, 2
    while not enough(many):
        few, many = many, many * 2
        if many > 100_000:
            raise ValueError("over 100000 blocks: ask for a wider interval or quieter runs")
    return bisect.bisect_left(range(many), True, lo=few + 1, key=enough) if many > 2 else 2
