"""`vllm serve` over HTTP: the plugin on, each feature alone, all off; always stock's tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest

from tests.integration.offline import GQA, MLA, MODELS, Jobs, questions
from tests.models.evaluate import NEEDED_ARGUMENTS
from tests.serving import Server

# Eight and more requests at once, of 64 to 165 tokens; steps of 96 tokens cut the longer ones.
PROMPTS = [item.prompt for item in questions(5)]
CHUNKED = ("--max-num-batched-tokens", "96", "--max-num-seqs", "12")


def serve(
    model: str,
    *,
    plugin: str | None = None,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> tuple[list[tuple[int, ...]], str]:
    """The token ids of all answers, asked for at once, and the server's log."""
    with Server(
        MODELS / model,
        plugin=plugin,
        environment=environment,
        arguments=("--enforce-eager", *needed(model), *arguments),
    ) as server:
        answers = server.complete_together(PROMPTS, max_tokens=8)
        return [answer.token_ids for answer in answers], server.log


def needed(model: str) -> list[str]:
    """What the model needs on both arms, as options of `vllm serve`."""
    options: list[str] = []
    for name, value in NEEDED_ARGUMENTS[model].items():
        options += [f"--{name.replace('_', '-')}", json.dumps(value)]
    return options


def stock(jobs: Jobs, model: str) -> list[tuple[int, ...]]:
    result = jobs.stock(model, PROMPTS)
    assert result.error is None, result.log
    return result.tokens()


def states(log: str) -> dict[str, str]:
    """Feature or default -> on or off, from the plan's table in a server's log."""
    rows: dict[str, str] = {}
    for line in log.splitlines():
        words = line.partition("] ")[2].split()
        if len(words) > 2 and words[1] in ("on", "off"):
            rows[words[0]] = words[1]
    return rows


def only(*names: str) -> dict[str, str]:
    every = ("attention", "mla", "gemm", "all_reduce", "aiter", "mla_block_size", "kv_offload")
    return {name: "on" if name in names else "off" for name in every}


def test_plugin_on_with_chunked_prefill(jobs: Jobs) -> None:
    tokens, log = serve(GQA, plugin="amdopt", arguments=CHUNKED)
    assert tokens == stock(jobs, GQA)
    assert states(log) == only("attention", "gemm")
    assert "Using AMDOPT_ATTN backend" in log
    assert "is switched off" not in log
    assert log.count("vllm-amdopt plan") == 1


def test_plugin_on_compiled(jobs: Jobs) -> None:
    """Without --enforce-eager: our ops stay opaque to torch.compile."""
    with Server(MODELS / GQA, plugin="amdopt") as server:
        answers = server.complete_together(PROMPTS, max_tokens=8)
        log = server.log
    assert [answer.token_ids for answer in answers] == stock(jobs, GQA)
    assert "is switched off" not in log


def test_mla_on_at_block_size_1_with_chunked_prefill(jobs: Jobs) -> None:
    tokens, log = serve(MLA, plugin="amdopt", arguments=CHUNKED)
    assert tokens == stock(jobs, MLA)
    assert states(log) == only("mla", "gemm", "mla_block_size")
    assert "Using AMDOPT_MLA backend" in log
    assert "is switched off" not in log


@pytest.mark.parametrize(
    ("model", "feature", "sign"),
    [
        (GQA, "attention", "Using AMDOPT_ATTN backend"),
        (MLA, "mla", "Using AMDOPT_MLA backend"),
        (GQA, "gemm", None),
    ],
    ids=["attention", "mla", "gemm"],
)
def test_each_feature_alone(jobs: Jobs, model: str, feature: str, sign: str | None) -> None:
    tokens, log = serve(model, environment={"VLLM_AMDOPT": feature})
    assert tokens == stock(jobs, model)
    assert states(log) == only(feature)
    if sign is None:
        assert "AMDOPT_" not in log.replace("VLLM_AMDOPT_", "")
    else:
        assert sign in log
    assert "is switched off" not in log


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
    tokens, log = serve(
        GQA,
        environment={"VLLM_AMDOPT": "all_reduce", "VLLM_AMDOPT_INJECT_FAULT": hook},
        arguments=TWO_RANKS,
    )
    assert tokens == stock(jobs, GQA)
    warnings = [line for line in log.splitlines() if "is switched off" in line]
    # One from each rank, which are processes of their own.
    assert len(warnings) == 2
    assert all("all_reduce" in line and hook in line for line in warnings)


def test_all_off_is_stock_without_a_word(jobs: Jobs) -> None:
    tokens, log = serve(GQA, plugin="off")
    assert tokens == stock(jobs, GQA)
    assert "vllm-amdopt" not in log
    assert "Unknown vLLM environment variable" not in log
    assert "Using AMDOPT" not in log
