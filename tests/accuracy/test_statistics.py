"""Paired statistics: known answers, an independent way to each interval, and exact coverage."""

from __future__ import annotations

import math
import random

import pytest

from vllm_amdopt.accuracy.statistics import (
    NORMAL_95,
    Flips,
    clustered_mean,
    count_flips,
    difference_of_shares,
    items_to_show,
    mcnemar_two_sided,
    mcnemar_worse,
    mean_interval,
    quantile,
)


def flips(items: int, lost: int, won: int) -> Flips:
    return Flips(items, items - lost - won, lost, won)


def test_flips_are_counted() -> None:
    pairs = [(True, True)] * 5 + [(True, False)] * 3 + [(False, True)] * 2 + [(False, False)]
    found = count_flips(pairs)
    assert found == Flips(11, 5, 3, 2)
    assert (found.first_share, found.second_share) == (8 / 11, 7 / 11)
    assert found + found == Flips(22, 10, 6, 4)


@pytest.mark.parametrize(
    ("lost", "won", "worse", "two_sided"),
    [
        pytest.param(0, 0, 1.0, 1.0, id="no flip"),
        pytest.param(5, 0, 1 / 32, 1 / 16, id="only losses"),
        pytest.param(0, 5, 1.0, 1 / 16, id="only gains"),
        pytest.param(10, 2, 79 / 4096, 79 / 2048, id="12 flips"),
        pytest.param(3, 3, 42 / 64, 1.0, id="even"),
    ],
)
def test_exact_mcnemar(lost: int, won: int, worse: float, two_sided: float) -> None:
    assert mcnemar_worse(flips(50, lost, won)) == pytest.approx(worse, rel=1e-12)
    assert mcnemar_two_sided(flips(50, lost, won)) == pytest.approx(two_sided, rel=1e-12)


def test_score_interval_of_the_textbook_survey() -> None:
    """Agresti's approval ratings: 150 against 86 flips of 1600."""
    interval = difference_of_shares(flips(1600, 150, 86))
    assert interval.estimate == -0.04
    # His interval, -0.0587 to -0.0213, is the textbook one; at 1600 items both nearly agree.
    assert (interval.low, interval.high) == pytest.approx((-0.0587, -0.0213), abs=5e-4)


def score_statistic(items: int, lost: int, won: int, difference: float) -> float:
    """The score statistic with the likelihood maximised by search, not by Tango's formula."""
    same = items - lost - won

    def likelihood(losing: float) -> float:
        gaining = losing + difference
        staying = 1.0 - losing - gaining
        total = 0.0
        for count, probability in ((lost, losing), (won, gaining), (same, staying)):
            if probability < 0.0 or (probability == 0.0 and count):
                return -math.inf
            total += count * math.log(probability) if count else 0.0
        return total

    low, high = max(0.0, -difference), (1.0 - difference) / 2.0
    for _ in range(200):  # the likelihood is concave
        left, right = low + (high - low) / 3.0, high - (high - low) / 3.0
        low, high = (left, high) if likelihood(left) < likelihood(right) else (low, right)
    losing = (low + high) / 2.0
    variance = items * (2.0 * losing + difference * (1.0 - difference))
    return (won - lost - items * difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("items", "lost", "won"), [(44, 1, 0), (50, 2, 12), (100, 0, 0), (30, 7, 7), (400, 9, 3)]
)
def test_score_interval_ends_where_the_statistic_is_the_normal_quantile(
    items: int, lost: int, won: int
) -> None:
    interval = difference_of_shares(flips(items, lost, won))
    assert interval.low < interval.estimate < interval.high
    assert score_statistic(items, lost, won, interval.low) == pytest.approx(NORMAL_95, abs=1e-3)
    assert score_statistic(items, lost, won, interval.high) == pytest.approx(-NORMAL_95, abs=1e-3)


@pytest.mark.parametrize(
    ("losing", "gaining"), [(0.02, 0.02), (0.1, 0.05), (0.3, 0.3), (0.01, 0.0)]
)
def test_score_interval_covers_the_truth_as_often_as_it_says(losing: float, gaining: float) -> None:
    """All outcomes of 40 items, each with its exact probability; no simulation."""
    items, covered = 40, 0.0
    for lost in range(items + 1):
        for won in range(items + 1 - lost):
            ways = math.comb(items, lost) * math.comb(items - lost, won)
            staying = 1.0 - losing - gaining
            probability = ways * losing**lost * gaining**won * staying ** (items - lost - won)
            if probability < 1e-9:
                continue
            interval = difference_of_shares(flips(items, lost, won))
            covered += probability * (interval.low <= gaining - losing <= interval.high)
    assert covered > 0.935


def test_items_to_show_is_the_first_number_that_does() -> None:
    for margin in (0.01, 0.05):
        needed = items_to_show(margin)
        assert difference_of_shares(flips(needed, 0, 0)).low > -margin
        assert difference_of_shares(flips(needed - 2, 0, 0)).low < -margin


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert quantile(values, 0.5) == 50.0
    assert quantile(values, 0.99) == 99.0
    assert quantile([3.0], 0.01) == 3.0


def test_clusters_of_one_value_give_the_plain_standard_error() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    mean, error = clustered_mean([[value] for value in values])
    deviation = math.sqrt(sum((v - 4.0) ** 2 for v in values) / 3.0)
    assert mean == 4.0
    assert error == pytest.approx(deviation / 2.0)
    interval = mean_interval([[value] for value in values])
    assert interval is not None
    # Student's 97.5 % quantile with three degrees of freedom is 3.182446.
    assert interval.high - mean == pytest.approx(3.182446 * deviation / 2.0, rel=1e-6)


def test_repeating_values_within_a_cluster_adds_no_certainty() -> None:
    once = clustered_mean([[1.0], [2.0], [4.0]])
    often = clustered_mean([[1.0] * 10, [2.0] * 10, [4.0] * 10])
    assert often == (pytest.approx(once[0]), pytest.approx(once[1]))


def test_one_cluster_has_no_interval() -> None:
    assert clustered_mean([[1.0, 3.0]]) == (2.0, None)
    assert mean_interval([[1.0, 3.0]]) is None


def test_interval_over_clusters_covers_the_truth() -> None:
    """Correlated values within eight clusters: an interval that took them for independent would
    cover about two times in three here."""
    rng = random.Random(1)
    trials, covered = 1000, 0
    for _ in range(trials):
        clusters = []
        for _ in range(8):
            shift = rng.gauss(0.0, 1.0)
            clusters.append([shift + rng.gauss(0.0, 1.0) for _ in range(6)])
        interval = mean_interval(clusters)
        assert interval is not None
        covered += interval.low <= 0.0 <= interval.high
    assert 0.92 < covered / trials < 0.975
