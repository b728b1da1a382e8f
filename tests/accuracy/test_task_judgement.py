"""Verdicts on answered items: losses beyond chance and margin fail, few items stay open."""

from __future__ import annotations

from vllm_amdopt.accuracy.task_folder import Sample, Samples, differing_hashes
from vllm_amdopt.accuracy.task_judgement import ALL_TASKS, Verdict, compare, judge

MARGIN = 0.01


def samples(**right: list[bool]) -> Samples:
    return {
        task: {
            number: Sample(one, (f"d{number}", f"p{number}", f"t{number}"), "")
            for number, one in enumerate(answers)
        }
        for task, answers in right.items()
    }


def verdict(first: list[bool], second: list[bool]) -> Verdict:
    return judge(compare(samples(t=first), samples(t=second)), MARGIN)


def test_no_flip_passes_where_the_items_are_enough() -> None:
    assert verdict([True] * 400, [True] * 400).outcome == "passed"
    few = verdict([True] * 100, [True] * 100)
    assert few.outcome == "inconclusive"
    assert "it takes 381 items" in few.sentence


def test_losses_fail_and_gains_do_not() -> None:
    first = [True] * 100
    found = verdict(first, [False] * 8 + [True] * 92)
    assert found.outcome == "failed"
    assert "8 of 100 items were lost and 0 won, p = 0.0039" in found.sentence
    assert verdict([False] * 8 + [True] * 92, first).outcome == "passed"


def test_flips_both_ways_are_no_loss() -> None:
    first = [True, False] * 400
    second = [not one if n < 16 else one for n, one in enumerate(first)]
    assert verdict(first, second).outcome in ("passed", "inconclusive")


def test_a_proven_loss_within_the_margin_passes() -> None:
    first = [True] * 4000
    second = [False] * 8 + [True] * 3992
    found = compare(samples(t=first), samples(t=second))[ALL_TASKS]
    assert found.p_worse < 0.05
    assert judge({"t": found, ALL_TASKS: found}, MARGIN).outcome == "passed"


def test_a_loss_in_one_task_is_not_hidden_by_the_others() -> None:
    good = [True] * 300
    first = samples(a=good, b=good, c=[True] * 30)
    second = samples(a=good, b=good, c=[False] * 9 + [True] * 21)
    compared = compare(first, second)
    assert list(compared) == ["a", "b", "c", ALL_TASKS]
    found = judge(compared, MARGIN)
    assert found.outcome == "failed"
    # Nine losses of three tasks: the p of the task alone is 1/512, times three by Holm.
    assert compared["c"].p_worse == 3 / 512


def test_tasks_that_nobody_can_do_are_named() -> None:
    right, wrong = [True] * 60, [False] * 60
    found = judge(compare(samples(a=right, b=wrong), samples(a=right, b=wrong)), MARGIN)
    assert found.informative == ("a",)


def test_other_questions_are_noticed() -> None:
    one = samples(t=[True, True])
    other = {"t": {0: one["t"][0], 1: Sample(True, ("d1", "another prompt", "t1"), "")}}
    assert differing_hashes(one, one) == ""
    assert differing_hashes(one, other) == "item 1 of t"
    assert differing_hashes(one, {"t": {0: one["t"][0]}}) == "item 1 of t"
    assert differing_hashes(one, {}) == "item 0 of t"
