"""The paired statistics are right as often as docs/statistics.md says: a small, fixed simulation.

The bounds are 4 standard errors wide. They fail for a normal instead of a t quantile at 6 blocks
(coverage 0.90), for a one-sided one, for Holm left out, and for a margin of the wrong sign.
"""

from __future__ import annotations

import math
import random

import pytest

from benchmarks.statistics_simulation import (
    Noise,
    coverage,
    drift_false_alarms,
    family_false_alarms,
    order_false_alarms,
    paired_false_alarms,
    power_at_detectable,
    sequential_false_alarms,
    shift_coverage,
    sign_flip_false_alarms,
    unpaired_claims_difference,
    verdicts,
)

TRIALS = 2000
BLOCKS = 6


def noise(heavy: bool = False) -> Noise:
    return Noise(random.Random(20), heavy)


def near(rate: float) -> object:
    return pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / TRIALS))


def test_paired_interval_covers_95_percent() -> None:
    assert coverage(noise(), BLOCKS, TRIALS) == near(0.95)
    assert paired_false_alarms(noise(), BLOCKS, TRIALS) == near(0.05)
    assert coverage(noise(heavy=True), BLOCKS, TRIALS) > 0.945


def test_unpaired_runs_of_one_launch_raise_false_alarms() -> None:
    """Why arms are launched again in every block: if this were 0.05, blocks would be a waste."""
    assert sequential_false_alarms(noise(), BLOCKS, 500, relaunch=False) > 0.3
    same = {"A": [1.0, 1.1, 0.9], "B": [1.05, 0.95, 1.0]}
    assert not unpaired_claims_difference(same)


def test_distribution_free_statements() -> None:
    # Exact for any symmetric noise: 1 - 2/64 is what six blocks can give.
    assert shift_coverage(noise(heavy=True), BLOCKS, TRIALS) == near(1 - 2 / 64)
    assert sign_flip_false_alarms(noise(), BLOCKS, TRIALS) == near(2 / 64)


def test_detectable_effect_is_detected_four_times_in_five() -> None:
    # The formula is the usual approximation of the noncentral t; drift in a block costs some.
    assert power_at_detectable(noise(), 10, TRIALS) == pytest.approx(0.79, abs=0.05)


def test_holm_keeps_the_family() -> None:
    raw, adjusted = family_false_alarms(noise(), BLOCKS, 150)
    assert raw > 0.8
    assert adjusted < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 150)


def test_verdicts_at_the_margin() -> None:
    """A true worsening of exactly the margin is called a regression or equivalent 2.5 % each."""
    quiet = Noise(random.Random(3), scale=0.2)
    found = verdicts(quiet, 10, TRIALS, math.log(0.99), 0.01)
    assert found["equivalent"] < 0.025 + 4 * math.sqrt(0.025 * 0.975 / TRIALS)
    assert found["regression"] < 0.025 + 4 * math.sqrt(0.025 * 0.975 / TRIALS)
    assert found.get("better", 0.0) == 0.0
    same = verdicts(quiet, 10, TRIALS, 0.0, 0.01)
    assert same["equivalent"] > 0.9


def test_drift_and_order_alarms() -> None:
    assert drift_false_alarms(noise(), 20, TRIALS) == near(0.05)
    assert drift_false_alarms(noise(), 8, TRIALS) == near(0.05)
    assert order_false_alarms(noise(), 10, TRIALS) == near(0.05)
