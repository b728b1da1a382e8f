"""Judges two arms' answers item by item: flips, McNemar, intervals, verdict; pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

from vllm_amdopt.accuracy.statistics import (
    Flips,
    Interval,
    count_flips,
    difference_of_shares,
    items_to_show,
    mcnemar_two_sided,
    mcnemar_worse,
)
from vllm_amdopt.accuracy.task_folder import Samples
from vllm_amdopt.bench.statistics import holm

ALL_TASKS = "all"
ALPHA = 0.05

Outcome = Literal["passed", "failed", "inconclusive"]


@dataclass(frozen=True)
class Comparison:
    """One task, or all together. p_worse: exact McNemar, one-sided, Holm-adjusted over the tasks.

    p_two_sided is not adjusted: it is shown, not judged by.
    """

    flips: Flips
    difference: Interval
    p_worse: float
    p_two_sided: float


@dataclass(frozen=True)
class Verdict:
    """What came out for one arm. `informative`: the tasks of which the first arm got any right."""

    outcome: Outcome
    sentence: str
    informative: tuple[str, ...]


def compare(first: Samples, second: Samples) -> dict[str, Comparison]:
    """Each task and, last, all of them together; the samples have to be of the same items."""
    flips = {
        task: count_flips(
            (sample.right, second[task][number].right) for number, sample in samples.items()
        )
        for task, samples in first.items()
    }
    adjusted = holm({task: mcnemar_worse(one) for task, one in flips.items()})
    together = reduce(add, flips.values())
    rows = {task: _comparison(one, adjusted[task]) for task, one in flips.items()}
    return rows | {ALL_TASKS: _comparison(together, mcnemar_worse(together))}


def _comparison(flips: Flips, p_worse: float) -> Comparison:
    return Comparison(flips, difference_of_shares(flips), p_worse, mcnemar_two_sided(flips))


def judge(compared: Mapping[str, Comparison], margin: float) -> Verdict:
    """Failed: a loss that is no chance and may be larger than the margin, in all tasks or in one.

    Passed: over all tasks the interval excludes a loss of the margin. Else the items are too few.
    """
    informative = tuple(
        task for task, one in compared.items() if task != ALL_TASKS and one.flips.first_share > 0
    )
    lost = [
        (task, one)
        for task, one in reversed(list(compared.items()))
        if one.p_worse <= ALPHA and one.difference.low <= -margin
    ]
    together = compared[ALL_TASKS]
    if lost:
        task, one = lost[0]
        return Verdict(
            "failed",
            f"{task}: {one.flips.only_first} of {one.flips.items} items were lost and "
            f"{one.flips.only_second} won, p = {one.p_worse:.2g}",
            informative,
        )
    low = 100 * together.difference.low
    if together.difference.low > -margin:
        return Verdict(
            "passed",
            f"a loss of {100 * margin:g} points is excluded (the interval begins at {low:+.2f})",
            informative,
        )
    return Verdict(
        "inconclusive",
        f"no loss was shown, and one of {100 * margin:g} points is not excluded (the interval "
        f"begins at {low:+.2f}): without a single flip it takes {items_to_show(margin)} items",
        informative,
    )
