"""Judges replayed arms: a summary of each cell, and whether it keeps the limits; pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from vllm_amdopt.accuracy.divergence import Difference, Position, compare_sequences
from vllm_amdopt.accuracy.statistics import (
    Interval,
    binomial_standard_error,
    clustered_mean,
    mean_interval,
    quantile,
)
from vllm_amdopt.accuracy.thresholds import (
    FEWEST_FOR_TAIL,
    FLOOR_FACTOR,
    LOG_LIKELIHOOD_MARGIN,
    Thresholds,
)

Outcome = Literal["passed", "failed", "inconclusive"]

ALL_CELLS = "all"

Distributions = Mapping[str, list[list[Position]]]
"""Cell -> sequence -> position."""


@dataclass(frozen=True)
class Summary:
    """One comparison in one cell; KL in nats, of the first arm's distribution from the second's.

    kl_error: standard error of the mean over sequences, None with one sequence. disputed: positions
    where the arms prefer different tokens although the first arm's lead is no tie.
    log_likelihood: second minus first, per token; None with one sequence.
    """

    positions: int
    sequences: int
    kl_mean: float
    kl_error: float | None
    kl_median: float
    kl_tail: float
    kl_largest: float
    agreement: float
    agreement_error: float
    disputed: int
    log_likelihood: float
    log_likelihood_interval: Interval | None


def summarize(sequences: Sequence[Sequence[Difference]], tie: float) -> Summary:
    """A summary of a cell's differences, which are kept apart by sequence."""
    every = list(chain.from_iterable(sequences))
    kl = [one.kl for one in every]
    mean, error = clustered_mean([[one.kl for one in sequence] for sequence in sequences])
    agreement = sum(one.agree for one in every) / len(every)
    gains = [[one.log_likelihood for one in sequence] for sequence in sequences]
    return Summary(
        positions=len(every),
        sequences=len(sequences),
        kl_mean=mean,
        kl_error=error,
        kl_median=quantile(kl, 0.5),
        kl_tail=quantile(kl, 0.99),
        kl_largest=max(kl),
        agreement=agreement,
        agreement_error=binomial_standard_error(agreement, len(every)),
        disputed=sum(not one.agree and one.lead >= tie for one in every),
        log_likelihood=clustered_mean(gains)[0],
        log_likelihood_interval=mean_interval(gains),
    )


def summaries(first: Distributions, second: Distributions, tie: float) -> dict[str, Summary]:
    """A summary for each cell that both have, and one of all of them together, which comes last."""
    differences = {
        cell: compare_sequences(first[cell], second[cell]) for cell in first if cell in second
    }
    found = {cell: summarize(sequences, tie) for cell, sequences in differences.items()}
    found[ALL_CELLS] = summarize(list(chain.from_iterable(differences.values())), tie)
    return found


@dataclass(frozen=True)
class Finding:
    """One limit that a cell does not keep."""

    cell: str
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """What came out for one arm. `findings` are its failures, `remarks` what stayed open."""

    outcome: Outcome
    findings: tuple[Finding, ...]
    remarks: tuple[str, ...]

    @property
    def sentence(self) -> str:
        if self.findings:
            return f"{self.findings[0].cell}: {self.findings[0].sentence}"
        return "; ".join(self.remarks) or "every cell is within its limits"


def judge(
    compared: Mapping[str, Summary],
    floors: Sequence[Mapping[str, Summary]],
    limits: Thresholds,
) -> Verdict:
    """Hold an arm against what the first one differs from itself by, cell by cell."""
    findings = [
        Finding(cell, sentence)
        for cell, summary in compared.items()
        for sentence in _exceeded(summary, [floor[cell] for floor in floors], limits)
    ]
    remarks = []
    interval = compared[ALL_CELLS].log_likelihood_interval
    if interval is None:
        remarks.append("one sequence gives no interval for the log-likelihood: ask for more")
    elif interval.high < -LOG_LIKELIHOOD_MARGIN or interval.low > LOG_LIKELIHOOD_MARGIN:
        findings.append(
            Finding(
                ALL_CELLS,
                f"the log-likelihood changed by {interval.estimate:+.2g} nats a token "
                f"[{interval.low:+.2g}, {interval.high:+.2g}], and ±{LOG_LIKELIHOOD_MARGIN} is "
                "allowed",
            )
        )
    elif interval.low < -LOG_LIKELIHOOD_MARGIN or interval.high > LOG_LIKELIHOOD_MARGIN:
        remarks.append(
            f"the log-likelihood's interval [{interval.low:+.2g}, {interval.high:+.2g}] is wider "
            f"than ±{LOG_LIKELIHOOD_MARGIN}: ask for more requests or tokens"
        )
    if findings:
        return Verdict("failed", tuple(findings), tuple(remarks))
    return Verdict("inconclusive" if remarks else "passed", (), tuple(remarks))


def allowed(floors: Iterable[float], limit: float) -> float:
    """What a number may reach where the first arm differs from itself by `floors`."""
    return max(limit, FLOOR_FACTOR * max(floors))


def _exceeded(summary: Summary, floors: Sequence[Summary], limits: Thresholds) -> list[str]:
    sentences = []
    # Written so that a number that is none exceeds every limit.
    mean = allowed((floor.kl_mean for floor in floors), limits.mean_kl)
    if not summary.kl_mean <= mean:
        sentences.append(f"mean KL is {summary.kl_mean:.2g}, and {mean:.2g} is allowed")
    tail = allowed((floor.kl_tail for floor in floors), limits.tail_kl)
    if summary.positions >= FEWEST_FOR_TAIL and not summary.kl_tail <= tail:
        sentences.append(f"1 % of KL are {summary.kl_tail:.2g} or more, and {tail:.2g} is allowed")
    disputed = math.floor(allowed((float(floor.disputed) for floor in floors), 0.0))
    if summary.disputed > disputed:
        sentences.append(
            f"another token is preferred at {summary.disputed} of {summary.positions} positions "
            f"where the first arm's lead is at least {limits.tie:g} nats, and {disputed} are "
            "allowed"
        )
    return sentences
