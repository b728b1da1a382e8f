"""Student's t and the exact null distributions, against published tables and by counting."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from vllm_amdopt.bench.distributions import (
    rank_distance_counts,
    sign_flip_p,
    signed_rank_counts,
    t_cumulative,
    t_quantile,
    two_sided_p,
)


# Any statistics book's table of Student's t.
@pytest.mark.parametrize(
    ("probability", "freedom", "t"),
    [
        (0.975, 1, 12.706205),
        (0.975, 2, 4.302653),
        (0.975, 4, 2.776445),
        (0.975, 5, 2.570582),
        (0.975, 9, 2.262157),
        (0.95, 9, 1.833113),
        (0.8, 9, 0.883404),
        (0.995, 30, 2.749996),
        (0.975, 120, 1.979930),
        (0.9995, 3, 12.923979),
    ],
)
def test_t_quantiles_are_those_of_the_tables(probability: float, freedom: int, t: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(t, abs=2e-6)
    assert t_quantile(1 - probability, freedom) == pytest.approx(-t, abs=2e-6)
    assert two_sided_p(t, freedom) == pytest.approx(2 * (1 - probability), rel=1e-5)


def test_t_with_one_and_two_degrees_has_its_closed_form() -> None:
    for t in (-30.0, -2.0, -0.1, 0.0, 0.3, 1.0, 5.0, 1e4):
        cauchy = 0.5 + math.atan(t) / math.pi
        assert t_cumulative(t, 1) == pytest.approx(cauchy, abs=1e-13)
        assert t_cumulative(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-13)


def test_small_p_keeps_its_digits() -> None:
    # For 2 degrees of freedom p = 1 - t / sqrt(2 + t²), about 1 / t² for large t.
    assert two_sided_p(1e6, 2) == pytest.approx(1e-12, rel=1e-5)
    assert two_sided_p(math.inf, 3) == 0.0
    assert t_cumulative(math.inf, 3) == 1.0
    assert t_cumulative(-math.inf, 3) == 0.0


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, 1.1])
def test_no_quantile_outside_of_probabilities(probability: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        t_quantile(probability, 3)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9])
def test_sign_flip_counts_what_counting_all_signs_counts(n: int) -> None:
    source = random.Random(n)
    for shift in (0.0, 0.5, 2.0):
        values = [source.gauss(shift, 1) for _ in range(n)]
        observed = abs(sum(values))
        by_hand = sum(
            abs(sum(sign * value for sign, value in zip(signs, values, strict=True)))
            >= observed - 1e-12
            for signs in itertools.product((1, -1), repeat=n)
        )
        assert sign_flip_p(values) == by_hand / 2**n


def test_sign_flip_has_a_floor_and_copes_with_ties_and_zeros() -> None:
    assert sign_flip_p([1.0] * 5) == 2 / 32  # five blocks cannot reach 0.05
    assert sign_flip_p([0.1] * 6) == 2 / 64  # 0.1 + 0.1 + ... in another order is still the same
    assert sign_flip_p([0.0] * 4) == 1.0
    assert sign_flip_p([0.1] * 30) == 2 / 2**30


def test_signed_rank_distribution() -> None:
    assert signed_rank_counts(3) == (1, 1, 1, 2, 1, 1, 1)
    for n in (1, 6, 12):
        counts = signed_rank_counts(n)
        assert sum(counts) == 2**n
        assert len(counts) == n * (n + 1) // 2 + 1
        assert counts == counts[::-1]


def test_rank_distances_of_three() -> None:
    assert rank_distance_counts(3) == {0: 1, 2: 2, 6: 2, 8: 1}
