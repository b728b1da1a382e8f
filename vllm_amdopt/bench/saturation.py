"""Where more load stops paying: saturation, the knee, and the most load that keeps a limit.

Curves go in, one per block, so that what comes out has a spread; no curve is fitted to a model.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_amdopt.bench.statistics import mean_interval

Curve = Sequence[tuple[float, float]]
"""(load, value) with rising load: concurrency and throughput, or concurrency and latency."""

NEAR_PEAK = 0.95
GAIN_PER_DOUBLING = 0.05


def saturation_point(curve: Curve) -> float | None:
    """The first load at 95 % of the best throughput from where a doubling brings less than 5 %.

    None where throughput still rises at the highest load that was measured.
    """
    points = _checked(curve)
    peak = max(value for _, value in points)
    for (load, value), following in itertools.pairwise(points):
        if value >= NEAR_PEAK * peak and _gain((load, value), following) < GAIN_PER_DOUBLING:
            return load
    return None


def _gain(first: tuple[float, float], second: tuple[float, float]) -> float:
    """The relative gain in value per doubling of the load."""
    doublings = math.log2(second[0] / first[0])
    if first[1] <= 0:
        return math.inf
    return (second[1] / first[1]) ** (1 / doublings) - 1 if second[1] > 0 else -1.0


def knee(curve: Curve) -> float | None:
    """The load where two straight lines (on a logarithmic load axis) fit the curve best.

    None for fewer than four points, and where the second line is not the flatter one.
    """
    points = [(math.log2(load), value) for load, value in _checked(curve)]
    best: tuple[float, float] | None = None
    for index in range(1, len(points) - 1):
        left, left_slope = _line_error(points[: index + 1])
        right, right_slope = _line_error(points[index:])
        if right_slope < left_slope and (best is None or left + right < best[0]):
            best = (left + right, points[index][0])
    return None if best is None or len(points) < 4 else 2 ** best[1]


def _line_error(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The squared error of the best straight line, and its slope."""
    slope, intercept = statistics.linear_regression([x for x, _ in points], [y for _, y in points])
    return sum((y - intercept - slope * x) ** 2 for x, y in points), slope


@dataclass(frozen=True)
class Highest:
    """The highest load under a limit. `bound`: "", or ">=" or "<" at an end of what was measured.

    ">= 256": the limit was kept up to the highest load; "< 16": it was broken at the lowest.
    """

    load: float
    bound: str = ""

    def __str__(self) -> str:
        number = f"{self.load:.3g}" if self.load < 100 else f"{self.load:.0f}"
        return f"{self.bound} {number}".strip()


def highest_load_under(curve: Curve, limit: float) -> Highest:
    """Where the curve first crosses the limit, between two loads on logarithmic axes."""
    points = _checked(curve)
    first_load, first_value = points[0]
    if first_value > limit:
        return Highest(first_load, "<")
    for (load, value), (next_load, next_value) in itertools.pairwise(points):
        if next_value > limit:
            if value <= 0:
                return Highest(load)
            share = math.log(limit / value) / math.log(next_value / value)
            return Highest(load * (next_load / load) ** share)
    return Highest(points[-1][0], ">=")


@dataclass(frozen=True)
class HighestLoad:
    """The highest load under a limit over blocks: geometric mean and t interval of the crossings.

    Where some block never crossed there is no mean: `middle` is the median block and `low` and
    `high` the extreme ones, each with its bound.
    """

    middle: Highest
    low: Highest | None
    high: Highest | None
    n: int


def highest_load(curves: Sequence[Curve], limit: float, confidence: float = 0.95) -> HighestLoad:
    """`highest_load_under` for each block's curve, and what they say together."""
    found = [highest_load_under(curve, limit) for curve in curves]
    if any(one.bound for one in found):
        found.sort(key=lambda one: (one.bound == ">=", one.bound != "<", one.load))
        return HighestLoad(found[(len(found) - 1) // 2], found[0], found[-1], len(found))
    logs = [math.log(one.load) for one in found]
    interval = mean_interval(logs, confidence)
    ends = [None, None] if interval is None else [Highest(math.exp(end)) for end in interval]
    return HighestLoad(Highest(math.exp(statistics.fmean(logs))), ends[0], ends[1], len(found))


def _checked(curve: Curve) -> list[tuple[float, float]]:
    points = sorted(curve)
    if not points:
        raise ValueError("a curve needs at least one point")
    loads = [load for load, _ in points]
    if loads[0] <= 0 or len(set(loads)) < len(loads):
        raise ValueError("the loads of a curve have to be above 0 and different")
    return points
