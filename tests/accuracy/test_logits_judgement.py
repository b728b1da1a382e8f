"""Verdicts on replayed arms: what passes, what fails by which limit, and what stays open."""

from __future__ import annotations

import math
import random

import pytest

from vllm_amdopt.accuracy.divergence import Position
from vllm_amdopt.accuracy.logits_judgement import (
    ALL_CELLS,
    Distributions,
    Verdict,
    judge,
    summaries,
)
from vllm_amdopt.accuracy.thresholds import THRESHOLDS, thresholds_for

LIMITS = THRESHOLDS["float32"]


def position(logits: list[float], forced: int) -> Position:
    total = math.log(math.fsum(math.exp(value) for value in logits))
    return Position(
        logits[forced] - total, {token: value - total for token, value in enumerate(logits)}
    )


def arm(
    shift: float = 0.0, seed: int = 0, cell_shift: float = 0.0, scale: float = 1.0
) -> Distributions:
    """Two cells of four sequences of 16 positions; logits differ between arms by rounding of size
    `shift`, in the second cell also by `cell_shift`, and everywhere by a factor."""
    logits, noise = random.Random(7), random.Random(seed)

    def one(further: float) -> Position:
        values = [scale * logits.uniform(0.0, 6.0) for _ in range(8)]
        forced = max(range(8), key=lambda token: values[token])
        return position([v + noise.gauss(0.0, 1.0) * (shift + further) for v in values], forced)

    return {
        cell: [[one(further) for _ in range(16)] for _ in range(4)]
        for cell, further in (("4x8", 0.0), ("4x64", cell_shift))
    }


def verdict(other: Distributions, again: Distributions | None = None) -> Verdict:
    first = arm()
    floor = summaries(first, again or first, LIMITS.tie)
    return judge(summaries(first, other, LIMITS.tie), [floor], LIMITS)


def test_the_same_distributions_pass() -> None:
    found = verdict(arm())
    assert (found.outcome, found.findings) == ("passed", ())


def test_rounding_passes() -> None:
    assert verdict(arm(shift=1e-5, seed=3)).outcome == "passed"


def test_one_percent_fails() -> None:
    found = verdict(arm(scale=1.01))
    assert found.outcome == "failed"
    assert "mean KL is" in found.sentence


def test_an_error_in_one_cell_is_found_there() -> None:
    found = verdict(arm(cell_shift=3e-3, seed=5))
    assert found.outcome == "failed"
    assert {finding.cell for finding in found.findings} == {"4x64", ALL_CELLS}


def test_what_the_first_arm_does_itself_is_allowed() -> None:
    noisy = arm(shift=1e-3, seed=3)
    assert verdict(noisy).outcome == "failed"
    assert verdict(noisy, again=arm(shift=1e-3, seed=4)).outcome == "passed"
    assert verdict(arm(shift=1e-2, seed=3), again=arm(shift=1e-3, seed=4)).outcome == "failed"


def test_another_token_where_the_first_arm_is_sure_is_a_failure_of_its_own() -> None:
    first = {"1x8": [[position([5.0, 4.0], 0)] * 60, [position([4.0, 5.0], 1)] * 60]}
    other = {"1x8": [[position([4.4999, 4.5001], 0)] * 60, [position([4.0, 5.0], 1)] * 60]}
    floor = summaries(first, first, 0.25)
    found = judge(summaries(first, other, 0.25), [floor], thresholds_for("bfloat16"))
    assert any("another token is preferred at 60 of 120" in one.sentence for one in found.findings)


def test_no_numbers_fail() -> None:
    broken = {
        cell: [[Position(math.nan, {0: math.nan, 1: math.nan}) for _ in one] for one in sequences]
        for cell, sequences in arm().items()
    }
    assert verdict(broken).outcome == "failed"


def test_a_likelihood_that_is_not_known_well_enough_stays_open() -> None:
    first = {"2x8": [[position([1.0, 0.0], 0)] * 64, [position([1.0, 0.0], 1)] * 64]}
    other = {"2x8": [[position([1.01, 0.0], 0)] * 64, [position([1.01, 0.0], 1)] * 64]}
    floor = summaries(first, first, 0.25)
    found = judge(summaries(first, other, 0.25), [floor], THRESHOLDS["bfloat16"])
    assert found.outcome == "inconclusive"
    assert "ask for more requests" in found.sentence


def test_one_sequence_has_no_interval() -> None:
    first = {"1x8": [[position([1.0, 0.0], 0)] * 128]}
    floor = summaries(first, first, 0.25)
    found = judge(floor, [floor], LIMITS)
    assert found.outcome == "inconclusive"
    assert "one sequence gives no interval" in found.sentence


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_limits_are_ordered(dtype: str) -> None:
    limits = THRESHOLDS[dtype]
    assert 0 < limits.mean_kl < limits.tail_kl
    assert limits.reason


def test_other_dtypes_have_the_coarsest_limits() -> None:
    assert thresholds_for("float8_e4m3fn") is THRESHOLDS["bfloat16"]
