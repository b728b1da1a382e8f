"""Statistics of paired answers and paired distributions: known formulas, no verdicts.

Two arms answer the same items, or give distributions at the same positions, so everything here is
about differences within a pair; an unpaired test would throw away most of its power.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from vllm_amdopt.bench.distributions import t_quantile

NORMAL_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided 95 % interval."""

    estimate: float
    low: float
    high: float


# --- right or wrong, item by item ---------------------------------------------------------------


@dataclass(frozen=True)
class Flips:
    """A pair of arms on the same items: how many only the first, and only the second, got right."""

    items: int
    both: int
    only_first: int
    only_second: int

    @property
    def first_share(self) -> float:
        return (self.both + self.only_first) / self.items

    @property
    def second_share(self) -> float:
        return (self.both + self.only_second) / self.items

    def __add__(self, other: Flips) -> Flips:
        return Flips(
            self.items + other.items,
            self.both + other.both,
            self.only_first + other.only_first,
            self.only_second + other.only_second,
        )


def count_flips(pairs: Iterable[tuple[bool, bool]]) -> Flips:
    """Flips of (first right, second right) pairs."""
    seen = list(pairs)
    return Flips(
        items=len(seen),
        both=sum(first and second for first, second in seen),
        only_first=sum(first and not second for first, second in seen),
        only_second=sum(second and not first for first, second in seen),
    )


def mcnemar_worse(flips: Flips) -> float:
    """Exact McNemar, one-sided: how probable that many losses are if flips were a fair coin."""
    return _binomial_tail(flips.only_first, flips.only_first + flips.only_second)


def mcnemar_two_sided(flips: Flips) -> float:
    """Exact McNemar, two-sided: twice the smaller tail, at most 1."""
    total = flips.only_first + flips.only_second
    return min(1.0, 2.0 * _binomial_tail(max(flips.only_first, flips.only_second), total))


def _binomial_tail(successes: int, trials: int) -> float:
    """P(X >= successes), X ~ Binomial(trials, 1/2)."""
    ways = sum(math.comb(trials, k) for k in range(successes, trials + 1))
    return ways / 2**trials


def difference_of_shares(flips: Flips) -> Interval:
    """Second minus first share of right answers, with Tango's score interval for paired shares.

    Tango, Statistics in Medicine 17 (1998) 891. Unlike the textbook interval it keeps its width
    where no item flips at all, which is the usual case here.
    """
    gained, lost, items = flips.only_second, flips.only_first, flips.items
    estimate = (gained - lost) / items

    def distance(difference: float) -> float:
        """The score statistic of a hypothetical difference; decreases as the difference grows."""
        a = 2.0 * items
        b = -gained - lost + (2.0 * items - gained + lost) * difference
        c = -lost * difference * (1.0 - difference)
        losing = (math.sqrt(max(0.0, b * b - 4.0 * a * c)) - b) / (2.0 * a)
        variance = items * (2.0 * losing + difference * (1.0 - difference))
        if variance <= 0.0:
            return math.copysign(math.inf, gained - lost - items * difference)
        return (gained - lost - items * difference) / math.sqrt(variance)

    def crossing(target: float, low: float, high: float) -> float:
        for _ in range(80):
            middle = (low + high) / 2.0
            low, high = (middle, high) if distance(middle) > target else (low, middle)
        return (low + high) / 2.0

    return Interval(
        estimate,
        crossing(NORMAL_95, -1.0, estimate),
        crossing(-NORMAL_95, estimate, 1.0),
    )


def items_to_show(margin: float) -> int:
    """Items from which an interval without a single flip excludes a loss of `margin`."""
    squared = NORMAL_95**2
    return math.floor(squared * (1.0 - margin) / margin) + 1


# --- numbers at positions -----------------------------------------------------------------------


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def binomial_standard_error(share: float, trials: int) -> float:
    return math.sqrt(share * (1.0 - share) / trials)


def clustered_mean(clusters: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """Mean of all values and its standard error; None where there are fewer than two clusters.

    Values of one cluster, here the positions of one sequence, may depend on each other in any way;
    clusters may not. The usual sandwich estimate with the factor g / (g - 1) for g clusters.
    """
    values = list(chain.from_iterable(clusters))
    mean = math.fsum(values) / len(values)
    groups = [cluster for cluster in clusters if cluster]
    if len(groups) < 2:
        return mean, None
    squares = math.fsum(math.fsum(value - mean for value in group) ** 2 for group in groups)
    factor = len(groups) / (len(groups) - 1)
    return mean, math.sqrt(factor * squares) / len(values)


def mean_interval(clusters: Sequence[Sequence[float]]) -> Interval | None:
    """Mean with Student's interval over clusters; None where there are fewer than two."""
    mean, error = clustered_mean(clusters)
    if error is None:
        return None
    half = t_quantile(0.975, sum(1 for cluster in clusters if cluster) - 1) * error
    return Interval(mean, mean - half, mean + half)
