"""From a record to its verdict: what counts, what is paired with what, what cannot be judged."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from vllm_amdopt.bench.analysis import analyse, exit_code
from vllm_amdopt.bench.levels import level_of, levels_of
from vllm_amdopt.bench.metrics import ALL
from vllm_amdopt.run_record import Arm, Judgement, RecordError, Row, RunRecord, new_record

OUTPUT = ALL["output_throughput"]


def level(load: int, **more: Any) -> dict[str, Any]:
    return {"dataset": "random", "input_len": 8, "output_len": 4, "concurrency": load, **more}


def rows(
    ratios: Iterable[float], load: int = 16, metric: str = "output_throughput", **more: Any
) -> list[Row]:
    """One block for each ratio B/A; A is 100 plus the block."""
    found = []
    for block, ratio in enumerate(ratios):
        a, b = 100.0 + block, (100.0 + block) * ratio
        fields = level(load, **more)
        order = ("AB", "BA")[block % 2]
        found.append(Row(block, "stock", fields, "ok", order, block % 2, metrics={metric: a}))
        found.append(Row(block, "plugin", fields, "ok", order, 1 - block % 2, metrics={metric: b}))
    return found


def record(found: list[Row], kind: str = "serving_ab", **judged: Any) -> RunRecord:
    return new_record(
        kind, (Arm("stock"), Arm("plugin")), rows=tuple(found), judgement=Judgement(**judged)
    )


FASTER = (1.05, 1.06, 1.04, 1.055, 1.045, 1.05)
SAME = (1.001, 0.999, 1.0005, 0.9995, 1.001, 0.999)
SLOWER = tuple(1 / ratio for ratio in FASTER)
NOISY = (1.2, 0.8, 1.1, 0.9, 1.15, 0.85)


@pytest.mark.parametrize(
    ("ratios", "outcome", "code"),
    [
        (FASTER, "better", 0),
        (SAME, "equivalent", 0),
        (SLOWER, "regression", 1),
        (NOISY, "inconclusive", 0),
        (FASTER[:1], "inconclusive", 0),
    ],
)
def test_outcomes_and_exit_codes(ratios: tuple[float, ...], outcome: str, code: int) -> None:
    found = analyse(record(rows(ratios)))
    assert (found.outcome, exit_code(found)) == (outcome, code)
    assert exit_code(found, require_conclusive=True) == (3 if outcome == "inconclusive" else code)


def test_overall_effect_is_the_geometric_mean_in_each_block() -> None:
    found = analyse(record([*rows(FASTER, 16), *rows(SAME, 32)]))
    (cell,) = found.comparisons[0].primary
    assert cell.level is None and cell.effect is not None
    logs = [(math.log(a) + math.log(b)) / 2 for a, b in zip(FASTER, SAME, strict=True)]
    assert cell.effect.log_ratios == pytest.approx(logs)


def test_a_load_in_the_judgement_picks_its_level() -> None:
    found = analyse(record([*rows(FASTER, 16), *rows(SLOWER, 32)], primary="output_throughput@16"))
    assert found.outcome == "better"
    assert [cell.level.label for cell in found.comparisons[0].primary if cell.level] == [
        "random 8/4, concurrency 16"
    ]


def test_a_regression_of_a_gate_is_one_whatever_the_primary_says() -> None:
    both = [
        replace(row, metrics={**row.metrics, "p99_itl_ms": 10.0 * (1.1 + 0.001 * row.block)})
        if row.arm == "plugin"
        else replace(row, metrics={**row.metrics, "p99_itl_ms": 10.0})
        for row in rows(FASTER)
    ]
    assert analyse(record(both)).outcome == "better"
    found = analyse(record(both, gated=("p99_itl_ms@16",)))
    assert found.outcome == "regression"
    assert {cell.gated for cell in found.comparisons[0].gates} == {True}


def test_gated_cells_are_judged_by_holm() -> None:
    """p of about 0.03 for one claim is no proof among two."""
    weak = (1.05, 1.02, 1.08, 1.012, 1.07, 0.999)
    alone = analyse(record(rows(weak))).comparisons[0]
    assert alone.primary[0].effect is not None
    p = alone.primary[0].effect.p
    assert p is not None and 0.025 < p < 0.05
    assert alone.outcome == "better"
    two = analyse(record([*rows(weak), *rows(NOISY, 32)], primary="output_throughput@16"))
    assert two.outcome == "better"
    gated = analyse(
        record(
            [*rows(weak), *rows(NOISY, 32)],
            primary="output_throughput@16",
            gated=("output_throughput@32",),
        )
    )
    assert gated.outcome == "inconclusive"
    assert gated.comparisons[0].primary[0].adjusted_p == pytest.approx(2 * p)


def test_only_ok_rows_in_both_arms_make_a_pair() -> None:
    found = rows(FASTER)
    found[1] = Row(0, "plugin", level(16), "error", reason="the server died")
    found[2] = replace(found[2], status="tainted", reason="somebody else was on the GPU")
    analysis = analyse(record(found))
    assert analysis.comparisons[0].blocks == 4
    assert [row.status for row in analysis.set_aside] == ["error", "tainted"]


def test_repetitions_are_averaged_inside_the_launch() -> None:
    found = rows((1.0, 1.0))
    again = replace(found[1], repetition=1, metrics={"output_throughput": 110.0})
    analysis = analyse(record([*found, again]))
    assert analysis.values["plugin", analysis.levels[0].key, "output_throughput"][0] == 105.0
    assert analysis.comparisons[0].blocks == 2


@pytest.mark.parametrize(
    ("found", "judged", "why"),
    [
        ([], {}, "output_throughput was not measured in both arms"),
        (rows(FASTER), {"primary": "output_throughput@99"}, "@99 was not measured"),
        (rows(FASTER), {"gated": ("p99_itl_ms",)}, "p99_itl_ms was not measured"),
        (
            [replace(row, metrics={"output_throughput": 0.0}) for row in rows(FASTER)],
            {},
            "no block in which both arms have a value above 0",
        ),
        (
            [row for row in rows(FASTER) if row.arm == "stock"],
            {},
            "no block in which both arms",
        ),
    ],
)
def test_what_was_not_measured_cannot_be_judged(
    found: list[Row], judged: dict[str, Any], why: str
) -> None:
    analysis = analyse(record(found, **judged))
    assert (analysis.outcome, exit_code(analysis)) == ("invalid", 4)
    assert why in analysis.comparisons[0].invalid


def test_a_judgement_of_an_unknown_metric_is_refused_in_words() -> None:
    with pytest.raises(RecordError, match="cannot be judged: 'speed' is no metric"):
        analyse(record(rows(FASTER), primary="speed"))


def test_a_stage_that_vanishes_has_a_difference_and_no_ratio() -> None:
    found = [
        replace(row, metrics={"compile_s": 0.0 if row.arm == "plugin" else 27.0 + row.block})
        for row in rows(FASTER)
    ]
    cell = analyse(record(found)).comparisons[0].cells[level_of(level(16)).key, "compile_s"]
    assert cell.effect is None
    assert cell.difference is not None and cell.difference.high is not None
    assert cell.difference.difference == -29.5
    assert cell.difference.high < -27


def test_three_arms_are_each_compared_with_the_first() -> None:
    found = rows(FASTER)
    third = [replace(row, arm="other") for row in rows(SLOWER) if row.arm == "plugin"]
    analysis = analyse(
        new_record(
            "serving_ablation",
            (Arm("stock"), Arm("plugin"), Arm("other")),
            rows=(*found, *third),
        )
    )
    assert [one.outcome for one in analysis.comparisons] == ["better", "regression"]
    assert analysis.outcome == "regression"


def test_drift_and_order_are_seen() -> None:
    rising = [
        replace(
            row, metrics={"output_throughput": 100.0 * 1.01**row.block * (1 + 0.02 * row.position)}
        )
        for row in rows([1.0] * 8)
    ]
    comparison = analyse(record(rising)).comparisons[0]
    assert set(comparison.drifts) == {"stock", "plugin"}
    assert comparison.drifts["stock"].correlation > 0.9
    assert comparison.order is not None and comparison.order.ratio > 1.03


def test_levels_are_grouped_by_workload_and_sorted_by_load() -> None:
    mixed = [
        Row(0, "a", level(64, prompts=640), "ok"),
        Row(0, "a", {"dataset": "sharegpt", "request_rate": 2.5, "prompts": 10}, "ok"),
        Row(0, "a", level(16, prompts=160), "ok"),
    ]
    found = levels_of(mixed)
    assert [one.label for one in found] == [
        "random 8/4, concurrency 16",
        "random 8/4, concurrency 64",
        "sharegpt, requests/s 2.5",
    ]
    assert found[0].group == found[1].group != found[2].group


def test_one_load_for_a_short_and_a_long_time_are_two_workloads() -> None:
    twice = [
        Row(0, "a", {"request_rate": rate, "prompts": count}, "ok")
        for rate, count in ((1, 30), (2, 60), (1, 300), (2, 600))
    ]
    found = levels_of(twice)
    assert len({one.group for one in found}) == 2
    assert [one.load for one in found] == [1, 2, 1, 2]
    assert "300 prompts for each request/s" in found[2].label
