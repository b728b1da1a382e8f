"""How the demo reads a server's log and judges answers; the servers themselves are not started."""

from __future__ import annotations

import pytest

from benchmarks.demo import (
    Arm,
    judge,
    lines_with,
    plan_in_log,
    questions,
    show_answers,
    show_summary,
    warnings_in_log,
)
from tests.serving import Completion

PREFIX = "(APIServer pid=7) INFO 11-21 12:54:24 [apply_plan.py:55] "
LOG = f"""\
(APIServer pid=7) INFO 11-21 12:54:24 [model.py:733] Resolved architecture: LlamaForCausalLM
{PREFIX}vllm-amdopt 0.1.0 active on cpu (gfx942)
{PREFIX}vllm-amdopt plan:
{PREFIX}name       state  why
{PREFIX}---------  -----  ---
{PREFIX}attention  on     because
(APIServer pid=7) WARNING 11-21 12:54:24 [apply_plan.py:52] vllm-amdopt: mla was forced on
(Worker pid=9) INFO 11-21 12:54:25 [tensor_parallel.py:58] vllm-amdopt all_reduce: one-shot over 2
(Worker pid=8) INFO 11-21 12:54:25 [tensor_parallel.py:58] vllm-amdopt all_reduce: one-shot over 2
"""


def test_plan_is_the_table_without_vllms_prefixes() -> None:
    assert plan_in_log(LOG) == [
        "name       state  why",
        "---------  -----  ---",
        "attention  on     because",
    ]


@pytest.mark.parametrize("log", ["", "INFO 11-21 12:54:24 [a.py:1] nothing of ours\n"])
def test_log_without_a_plan_has_none(log: str) -> None:
    assert plan_in_log(log) == []


def test_line_of_several_ranks_is_shown_once() -> None:
    assert lines_with(LOG, "all_reduce: one-shot") == ["vllm-amdopt all_reduce: one-shot over 2"]


def test_warnings_are_the_plugins_own() -> None:
    other = "(Worker pid=8) WARNING 11-21 12:54:25 [cpu_worker.py:114] libiomp is not found\n"
    assert warnings_in_log(LOG + other) == ["vllm-amdopt: mla was forced on"]


def answers(wrong: int = 0, other: int = 0) -> list[Completion]:
    """Right answers but for the first `wrong` texts and the first `other` token ids."""
    return [
        Completion(
            text="nonsense" if number < wrong else item.answer,
            token_ids=(0,) if number < other else (1, number),
            logprobs=(),
            finish_reason="stop",
        )
        for number, item in enumerate(questions())
    ]


def arm(*, active: str = "active on cpu", warnings: tuple[str, ...] = (), **numbers: int) -> Arm:
    return Arm(answers(**numbers), block_size="16", active=active, warnings=list(warnings))


def test_same_and_right_passes() -> None:
    outcome = judge("m", arm(), arm(), "", ())
    assert outcome.passed
    assert (outcome.same, outcome.right_plugin, outcome.right_stock) == (8, 8, 8)


@pytest.mark.parametrize(
    ("stock", "plugin", "complaints"),
    [
        pytest.param(arm(), arm(other=1), (), id="one-token-differs"),
        pytest.param(arm(), arm(wrong=1), (), id="plugin-wrong"),
        pytest.param(arm(wrong=1), arm(wrong=1), (), id="both-wrong"),
        pytest.param(arm(), arm(active=""), (), id="plugin-not-active"),
        pytest.param(arm(), arm(warnings=("self-test failed",)), (), id="plugin-warned"),
        pytest.param(arm(), arm(), ("block size 16",), id="complaint"),
    ],
)
def test_anything_else_fails(stock: Arm, plugin: Arm, complaints: tuple[str, ...]) -> None:
    outcome = judge("m", stock, plugin, "", complaints)
    assert not outcome.passed
    assert "FAILED" in show_summary([outcome])


def test_answer_that_does_not_end_is_not_right() -> None:
    endless = arm()
    endless.answers[0] = Completion(questions()[0].answer, (1, 0), (), "length")
    assert judge("m", endless, endless, "", ()).right_plugin == 7


def test_every_question_has_its_line() -> None:
    text = show_answers(arm(), arm(other=1, wrong=2))
    assert len(text.splitlines()) == len(questions()) + 2
    assert text.count("DIFFERENT") == 1
    assert text.count("WRONG") == 2
