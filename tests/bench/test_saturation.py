"""Saturation, knee and the highest load under a limit, on curves whose answer is known."""

from __future__ import annotations

import math

import pytest

from vllm_amdopt.bench.saturation import (
    Highest,
    highest_load,
    highest_load_under,
    knee,
    saturation_point,
)

DOUBLING = [(10, 100.0), (20, 200.0), (40, 400.0), (80, 800.0)]
FLAT_AFTER_80 = [*DOUBLING, (160, 820.0), (320, 825.0)]
FALLING_AFTER_80 = [*DOUBLING, (160, 700.0), (320, 500.0)]


def test_saturation_is_where_the_gain_ends() -> None:
    assert saturation_point(FLAT_AFTER_80) == 80
    assert saturation_point(FALLING_AFTER_80) == 80
    assert saturation_point(list(reversed(FLAT_AFTER_80))) == 80


def test_a_curve_that_still_rises_is_not_saturated() -> None:
    assert saturation_point(DOUBLING) is None
    assert saturation_point([(16, 500.0)]) is None


def test_gain_is_counted_per_doubling() -> None:
    """From 100 to 400 are two doublings: 8 % more is less than 5 % for each."""
    assert saturation_point([(100, 1000.0), (400, 1080.0)]) is None  # 92.6 % of the peak
    assert saturation_point([(100, 1000.0), (400, 1050.0)]) == 100
    assert saturation_point([(100, 1000.0), (110, 1020.0), (121, 1500.0)]) is None


def test_knee_is_where_two_lines_meet() -> None:
    lines = [(2.0**x, min(x, 5) * 100.0) for x in range(9)]
    assert knee(lines) == pytest.approx(32)
    assert knee(lines[:3]) is None
    assert knee([(2.0**x, float(x * x)) for x in range(6)]) is None  # it bends upwards


def test_highest_load_is_interpolated_on_logarithmic_axes() -> None:
    curve = [(16.0, 10.0), (32.0, 20.0), (64.0, 40.0)]  # 0.625 ms for each
    assert highest_load_under(curve, 30.0).load == pytest.approx(48)
    assert highest_load_under(curve, 20.0).load == pytest.approx(32)
    assert highest_load_under(curve, 30.0).bound == ""


def test_edges_of_the_measured_loads_are_bounds_not_answers() -> None:
    curve = [(16.0, 10.0), (32.0, 20.0)]
    assert highest_load_under(curve, 25.0) == Highest(32.0, ">=")
    assert highest_load_under(curve, 9.0) == Highest(16.0, "<")
    assert str(highest_load_under(curve, 25.0)) == ">= 32"
    assert str(Highest(256.4)) == "256"
    assert str(Highest(48.27)) == "48.3"


def test_first_crossing_counts() -> None:
    curve = [(16.0, 10.0), (32.0, 100.0), (64.0, 20.0)]
    found = highest_load_under(curve, 31.6227766)
    assert found.load == pytest.approx(16 * math.sqrt(2))


def test_interval_over_blocks() -> None:
    curves = [[(16.0, 10.0 * k), (64.0, 40.0 * k)] for k in (1.0, 1.1, 0.9)]
    found = highest_load(curves, 30.0)
    assert found.n == 3
    assert found.middle.load == pytest.approx(48 / (1.1 * 0.9) ** (1 / 3))
    assert found.low is not None and found.high is not None
    assert found.low.load < found.middle.load < found.high.load
    one = highest_load(curves[:1], 30.0)
    assert (one.low, one.high) == (None, None)


def test_blocks_that_never_crossed_have_no_mean() -> None:
    curves = [[(16.0, 10.0), (64.0, value)] for value in (20.0, 40.0, 45.0)]
    found = highest_load(curves, 30.0)
    assert found.high == Highest(64.0, ">=")
    assert found.middle.bound == ""
    assert found.low is not None and found.low.load < found.middle.load
    never = highest_load(curves, 5.0)
    assert (never.low, never.middle, never.high) == (Highest(16.0, "<"),) * 3


@pytest.mark.parametrize("curve", [[], [(0.0, 1.0)], [(1.0, 1.0), (1.0, 2.0)]])
def test_what_is_no_curve_is_refused(curve: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="curve"):
        saturation_point(curve)
