"""KL from the most probable tokens: exact where all are there, and never more than the truth."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_amdopt.accuracy.divergence import Position, compare, kl_divergence

WEIGHTS = st.lists(st.floats(0.0, 8.0), min_size=12, max_size=12)


def distribution(logits: list[float]) -> dict[int, float]:
    total = math.log(math.fsum(math.exp(value) for value in logits))
    return {token: value - total for token, value in enumerate(logits)}


def top(whole: dict[int, float], count: int, forced: int = 0) -> Position:
    """As vLLM returns it: the `count` most probable tokens and the forced one of any rank."""
    ranked = sorted(whole, key=lambda token: -whole[token])[:count]
    return Position(whole[forced], {token: whole[token] for token in {*ranked, forced}})


def exact(first: dict[int, float], second: dict[int, float]) -> float:
    return math.fsum(math.exp(p) * (p - second[token]) for token, p in first.items())


@given(WEIGHTS, WEIGHTS)
def test_exact_with_the_whole_vocabulary(one: list[float], two: list[float]) -> None:
    first, second = distribution(one), distribution(two)
    found = kl_divergence(top(first, 12), top(second, 12))
    assert found == pytest.approx(exact(first, second), rel=1e-9, abs=1e-12)


@given(WEIGHTS, WEIGHTS, st.integers(1, 11), st.integers(0, 11))
def test_never_more_than_the_truth(
    one: list[float], two: list[float], count: int, forced: int
) -> None:
    first, second = distribution(one), distribution(two)
    found = kl_divergence(top(first, count, forced), top(second, count, forced))
    assert 0.0 <= found <= exact(first, second) * (1.0 + 1e-6) + 1e-5


@given(WEIGHTS, st.integers(1, 12))
def test_nothing_for_the_same_distribution(logits: list[float], count: int) -> None:
    one = top(distribution(logits), count)
    assert kl_divergence(one, one) == 0.0


def test_tokens_that_only_one_arm_returned_count() -> None:
    """Two arms whose likely tokens have nothing in common but the forced one."""
    first = distribution([0.0, 5.0, 5.0, 5.0, 0.0, 0.0, 0.0])
    second = distribution([0.0, 0.0, 0.0, 0.0, 5.0, 5.0, 5.0])
    assert kl_divergence(top(first, 3), top(second, 3)) > 0.5 * exact(first, second)


def test_a_shift_of_one_percent_is_far_above_rounding() -> None:
    logits = [0.3 * n for n in range(12)]
    first, second = distribution(logits), distribution([1.01 * value for value in logits])
    assert kl_divergence(top(first, 6), top(second, 6)) > 1e-5


def test_no_number_is_infinitely_far() -> None:
    one = top(distribution([1.0, 2.0, 3.0]), 3)
    broken = Position(math.nan, {0: math.nan, 1: math.nan, 2: math.nan})
    assert kl_divergence(one, broken) == math.inf
    assert kl_divergence(broken, one) == math.inf


def test_a_token_that_the_second_arm_excludes_is_infinitely_far() -> None:
    one = Position(math.log(0.5), {0: math.log(0.5), 1: math.log(0.5)})
    other = Position(0.0, {0: 0.0, 1: -math.inf})
    assert kl_divergence(one, other) == math.inf
    # The other way round it is log 2: the first arm never wants the token.
    assert kl_divergence(other, one) == pytest.approx(math.log(2.0))


def test_preference_lead_and_likelihood() -> None:
    first = Position(-1.0, {7: -0.5, 3: -1.0, 9: -4.0})
    second = Position(-0.8, {7: -0.9, 3: -0.8})
    found = compare(first, second)
    assert not found.agree
    assert found.lead == pytest.approx(0.5)
    assert found.log_likelihood == pytest.approx(0.2)
    assert Position(0.0, {5: 0.0}).lead == math.inf
    assert Position(-0.7, {8: -0.7, 4: -0.7}).best == 4
