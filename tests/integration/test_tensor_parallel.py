"""Two tensor-parallel ranks: our all-reduce alone over HTTP, and what a fault in it costs."""

from __future__ import annotations

import pytest

from tests.integration.offline import GQA, Jobs
from tests.integration.served import PROMPTS, only, serve, states, stock

TWO_RANKS = ("--tensor-parallel-size", "2")
ONE_SHOT = "vllm-amdopt all_reduce: one-shot over 2 ranks"


def test_all_reduce_alone_between_two_ranks(jobs: Jobs) -> None:
    tokens, log = serve(GQA, plugin="all_reduce", arguments=TWO_RANKS)
    assert tokens == stock(jobs, GQA)
    assert states(log) == only("all_reduce")
    assert log.count(ONE_SHOT) == 1
    assert "is switched off" not in log


@pytest.mark.parametrize("hook", ["communicator", "all_reduce"])
def test_a_fault_in_all_reduce_costs_no_request(jobs: Jobs, hook: str) -> None:
    result = jobs.run(
        GQA,
        [PROMPTS],
        environment={"VLLM_AMDOPT": "all_reduce", "VLLM_AMDOPT_INJECT_FAULT": hook},
        arguments={"tensor_parallel_size": 2},
    )
    assert result.error is None, result.log
    assert result.tokens() == jobs.stock(GQA, PROMPTS).tokens()
    warnings = [line for line in result.log.splitlines() if "is switched off" in line]
    # One from each rank, which are processes of their own.
    assert len(warnings) == 2
    assert all("all_reduce" in line and hook in line for line in warnings)
