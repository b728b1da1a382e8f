"""How far two arms' next-token distributions are apart, from their most probable tokens only.

Every number here is a lower bound on what the whole vocabulary would give, never an estimate from
above: tokens that an arm did not return are put together, and putting outcomes together can only
make two distributions look more alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

ROUNDING = 1e-6
"""What a sum of some hundred float32 probabilities is uncertain by. A rest below it is nothing."""


@dataclass(frozen=True)
class Position:
    """One next-token distribution: the forced token's log-probability, and the most probable ones.

    top: log-probability by token id, the forced token's included, whatever its rank.
    """

    chosen: float
    top: Mapping[int, float]

    @property
    def best(self) -> int:
        """The most probable token; the lowest id of several."""
        return min(self.top, key=lambda token: (-self.top[token], token))

    @property
    def lead(self) -> float:
        """By how much the most probable token leads the second, in nats; infinite without one."""
        ranked = sorted(self.top.values(), reverse=True)
        return ranked[0] - ranked[1] if len(ranked) > 1 else math.inf

    @property
    def least(self) -> float:
        """What the log-probability of a token that was not returned is at most.

        The forced token may be of any rank, so it is not taken where it is the least of all.
        """
        ranked = sorted(self.top.values())
        if ranked[0] < self.chosen:
            return ranked[0]
        return ranked[1] if len(ranked) > 1 else 0.0


def kl_divergence(first: Position, second: Position) -> float:
    """KL(first || second) in nats, a lower bound.

    The outcomes are the tokens that both arms returned, those that only the first did, and all
    others. Of the second kind it is known that the second arm gives each at most `Position.least`,
    and all together at most what it left over; of the values so allowed, the one that makes the
    sum smallest is taken. Infinite where an arm gave no number, as a kernel that went wrong may.
    """
    if any(map(math.isnan, chain(first.top.values(), second.top.values()))):
        return math.inf
    shared = [token for token in first.top if token in second.top]
    p_shared = [math.exp(first.top[token]) for token in shared]
    q_shared = [math.exp(second.top[token]) for token in shared]
    total = math.fsum(
        _term(p, q, first.top[token] - second.top[token])
        for token, p, q in zip(shared, p_shared, q_shared, strict=True)
    )
    p_left = max(0.0, 1.0 - math.fsum(p_shared))
    q_left = max(0.0, 1.0 - math.fsum(q_shared))
    alone = [value for token, value in first.top.items() if token not in second.top]
    if not alone:
        return total + _bucket(p_left, q_left)
    p_alone = min(p_left, math.fsum(math.exp(value) for value in alone))
    least = math.exp(second.least)
    proportional = q_left * p_alone / p_left if p_left > 0.0 else 0.0
    q_over = max(0.0, 1.0 - math.fsum(map(math.exp, second.top.values())))
    q_alone = min(len(alone) * least, q_over, proportional)
    return total + _bucket(p_alone, q_alone) + _bucket(p_left - p_alone, q_left - q_alone)


def _term(p: float, q: float, log_ratio: float) -> float:
    """p log(p/q) - p + q: never negative, and zero only where p equals q, so that rounding of the
    other terms cannot hide it; the two extra parts add up to zero over all outcomes."""
    if p == 0.0:
        return q
    return max(0.0, p * log_ratio - p + q)


def _bucket(p: float, q: float) -> float:
    p, q = max(p, ROUNDING), max(q, ROUNDING)
    return _term(p, q, math.log(p / q))


@dataclass(frozen=True)
class Difference:
    """What two arms say at one position."""

    kl: float
    agree: bool
    lead: float
    log_likelihood: float


def compare(first: Position, second: Position) -> Difference:
    """`lead` is the first arm's; `log_likelihood` is the second's of the forced token minus the
    first's."""
    return Difference(
        kl=kl_divergence(first, second),
        agree=first.best == second.best,
        lead=first.lead,
        log_likelihood=second.chosen - first.chosen,
    )


def compare_sequences(
    first: Sequence[Sequence[Position]], second: Sequence[Sequence[Position]]
) -> list[list[Difference]]:
    """Position by position, kept apart by sequence."""
    return [
        [compare(a, b) for a, b in zip(one, other, strict=True)]
        for one, other in zip(first, second, strict=True)
    ]
