"""Paired statistics on known answers; how often they are wrong is tested by simulation."""

from __future__ import annotations

import math

import pytest

from vllm_amdopt.bench.statistics import (
    blocks_needed,
    drift,
    effect_of_logs,
    hodges_lehmann,
    holm,
    improvement,
    mean_interval,
    order_effect,
    outlier_indices,
    paired_effect,
    summary,
    verdict,
)

FIVE = [0.01, 0.02, 0.03, 0.04, 0.05]
"""Mean 0.03, standard deviation sqrt(0.00025), standard error sqrt(0.00005)."""


def test_paired_effect_by_hand() -> None:
    a = [100.0, 200.0, 50.0, 80.0, 10.0]
    b = [x * math.exp(log) for x, log in zip(a, FIVE, strict=True)]
    effect = paired_effect(a, b)
    error = math.sqrt(0.00005)
    assert effect.n == 5
    assert effect.ratio == pytest.approx(math.exp(0.03))
    assert effect.low == pytest.approx(math.exp(0.03 - 2.776445 * error), rel=1e-6)
    assert effect.high == pytest.approx(math.exp(0.03 + 2.776445 * error), rel=1e-6)
    # t = 4.2426 with 4 degrees of freedom.
    assert effect.p == pytest.approx(0.0132, abs=1e-4)
    # 80 % power: t(0.975, 4) + t(0.8, 4) = 2.776445 + 0.940965 standard errors.
    assert effect.detectable == pytest.approx(math.exp((2.776445 + 0.940965) * error), rel=1e-5)
    assert effect.shift == pytest.approx(math.exp(0.03))
    assert effect.shift_low is None  # five blocks have no signed-rank interval at 95 %
    assert effect.sign_flip_p == 2 / 32
    assert effect.outliers == ()


def test_level_of_a_machine_does_not_matter_only_the_ratio() -> None:
    assert paired_effect([1, 2, 3], [2, 4, 6]).ratio == pytest.approx(2)
    slow, fast = (
        paired_effect([1, 2, 4], [1.1, 2.3, 4.2]),
        paired_effect([7, 9, 8], [7.7, 10.35, 8.4]),
    )
    assert slow.low == pytest.approx(fast.low)


def test_one_block_has_a_ratio_and_no_interval() -> None:
    effect = paired_effect([100.0], [110.0])
    assert effect.ratio == pytest.approx(1.1)
    assert (effect.low, effect.high, effect.p, effect.detectable) == (None, None, None, None)
    assert verdict(effect, True, 0.01) == "inconclusive"


def test_equal_ratios_are_judged_by_their_signs() -> None:
    """No spread says that the clock is coarse, not that the p is 0."""
    effect = paired_effect([100.0] * 6, [110.0] * 6)
    assert effect.low == effect.high == pytest.approx(1.1)
    assert effect.p == 2 / 64
    same = paired_effect([32.0] * 4, [32.0] * 4)
    assert (same.ratio, same.p) == (1.0, 1.0)
    assert verdict(same, True, 0.01) == "equivalent"


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([], [], "from 1"),
        ([1.0], [1.0, 2.0], "as many"),
        ([1.0, 0.0], [1.0, 2.0], "above 0"),
        ([1.0, 1.0], [1.0, -2.0], "above 0"),
    ],
)
def test_what_has_no_ratio_is_refused(a: list[float], b: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        paired_effect(a, b)


def test_improvement_is_defined_as_published_tables_define_it() -> None:
    """The table of `paiton-8b`, batch 32: plugin and stock, as published, and their percents."""
    published = [
        (6.51, 5.89, True, 10.53),
        (164.74, 189.25, False, 12.95),
        (8.48, 9.88, False, 14.17),
        (4.91, 5.43, False, 9.58),
    ]
    for b, a, higher_is_better, percent in published:
        change = improvement(paired_effect([a], [b]), higher_is_better)
        assert 100 * change.value == pytest.approx(percent, abs=0.01)


def test_improvement_of_a_latency_turns_the_interval_round() -> None:
    effect = effect_of_logs([-0.1, -0.12, -0.08])
    change = improvement(effect, higher_is_better=False)
    assert change.low is not None and change.high is not None
    assert 0 < change.low < change.value < change.high
    assert change.low == pytest.approx(1 - effect.high)


@pytest.mark.parametrize(
    ("logs", "better_up", "expected"),
    [
        pytest.param([0.05, 0.06, 0.055], True, "better", id="more throughput"),
        pytest.param([0.05, 0.06, 0.055], False, "regression", id="more latency"),
        pytest.param([-0.05, -0.06, -0.055], True, "regression", id="less throughput"),
        pytest.param([-0.05, -0.06, -0.055], False, "better", id="less latency"),
        pytest.param([0.001, -0.001, 0.0005], True, "equivalent", id="within the margin"),
        pytest.param([0.05, -0.06, 0.02], True, "inconclusive", id="all over the place"),
        pytest.param([-0.006, -0.0058, -0.0062], True, "equivalent", id="worse within the margin"),
        pytest.param([-0.012, -0.008, -0.009], True, "inconclusive", id="worse, perhaps by more"),
    ],
)
def test_verdicts(logs: list[float], better_up: bool, expected: str) -> None:
    assert verdict(effect_of_logs(logs), better_up, 0.01) == expected


def test_one_of_many_claims_needs_its_adjusted_p() -> None:
    effect = effect_of_logs([0.05, 0.06, 0.055])
    assert verdict(effect, True, 0.01, adjusted_p=0.04) == "better"
    assert verdict(effect, True, 0.01, adjusted_p=0.06) == "inconclusive"
    assert verdict(effect, False, 0.01, adjusted_p=0.06) == "inconclusive"


def test_holm_by_hand() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert holm({}) == {}
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_hodges_lehmann_by_hand() -> None:
    # Pairwise means of 1, 2, 6: 1, 1.5, 2, 3.5, 4, 6; their median is 2.75.
    assert hodges_lehmann([1.0, 2.0, 6.0])[0] == 2.75
    # With 6 values only the whole range has 95 % (31/32); with 10 the table says the ninth of 55.
    six = [0.3, 0.1, 0.25, 0.2, 0.15, 0.4]
    assert hodges_lehmann(six)[1:] == (0.1, 0.4)
    ten = [float(value) for value in range(10)]
    means = sorted((ten[i] + ten[j]) / 2 for i in range(10) for j in range(i, 10))
    assert hodges_lehmann(ten) == (4.5, means[8], means[-9])


def test_outliers_are_flagged_and_stay() -> None:
    logs = [0.010, 0.011, 0.009, 0.010, 0.012, -0.3]
    assert outlier_indices(logs) == (5,)
    effect = effect_of_logs(logs)
    assert effect.n == 6
    assert effect.ratio < 1 < effect.ratio_without
    assert outlier_indices([1.0, 1.0, 1.0, 1.0, 9.0]) == (4,)  # most are the same number
    assert outlier_indices([1.0, 1.0, 1.0]) == ()
    assert outlier_indices([1.0, 50.0]) == ()


def test_summary_and_mean_interval() -> None:
    two = summary([9.0, 11.0])
    assert (two.n, two.mean, two.smallest, two.largest) == (2, 10.0, 9.0, 11.0)
    assert two.variation == pytest.approx(math.sqrt(2) / 10)
    assert summary([5.0]).variation is None
    interval = mean_interval([9.0, 11.0])
    assert interval is not None
    assert interval == pytest.approx((10 - 12.706205, 10 + 12.706205), rel=1e-6)
    assert mean_interval([1.0]) is None


def test_drift_exact_for_few_runs() -> None:
    rising = drift([1.0, 2.0, 3.0, 4.0, 5.0])
    assert rising is not None
    assert (rising.correlation, rising.p) == (pytest.approx(1.0), 2 / math.factorial(5))
    # Spearman's table: for n = 5 and rho = 0.9 the two-sided p is 10/120.
    almost = drift([1.0, 2.0, 3.0, 5.0, 4.0])
    assert almost is not None
    assert (almost.correlation, almost.p) == (pytest.approx(0.9), pytest.approx(10 / 120))
    assert drift([1.0, 2.0, 3.0]) is None
    assert drift([7.0] * 8) is None


def test_drift_of_many_runs() -> None:
    falling = drift([10 - 0.1 * index + (0.05 if index % 3 else 0) for index in range(20)])
    assert falling is not None
    assert falling.correlation < -0.9
    assert falling.p < 1e-6
    still = drift([float((7 * index) % 20) for index in range(20)])
    assert still is not None
    assert still.p > 0.05


def test_order_effect() -> None:
    second = [True, False, True, False, True, False]
    found = order_effect([0.05, 0.01, 0.052, 0.008, 0.049, 0.011], second)
    assert found is not None
    assert found.ratio == pytest.approx(math.exp(0.05033333 - 0.00966667), rel=1e-5)
    assert found.p < 0.001
    none = order_effect([0.05, 0.05, 0.06, 0.061, 0.04, 0.041], second)
    assert none is not None
    assert none.p > 0.5
    assert order_effect([0.1, 0.2, 0.3], [True, True, False]) is None


def test_blocks_needed() -> None:
    """The table of docs/statistics.md: paired deviation sqrt(2) * CoV."""
    table = {
        (0.01, 0.01): 11,
        (0.01, 0.02): 5,
        (0.02, 0.01): 34,
        (0.05, 0.03): 24,
        (0.117, 0.03): 120,
    }
    assert {key: blocks_needed(*key) for key in table} == table
    with pytest.raises(ValueError, match="wider"):
        blocks_needed(0.5, 1e-4)
    with pytest.raises(ValueError, match="above 0"):
        blocks_needed(0.5, 0.0)
