"""`vllm serve` over HTTP: the plugin on, each feature alone, all off; always stock's tokens."""

from __future__ import annotations

import pytest

from tests.integration.offline import GQA, MLA, MODELS, Jobs
from tests.integration.served import CHUNKED, PROMPTS, only, serve, states, stock
from tests.serving import Server


def test_plugin_on_compiled_with_chunked_prefill(jobs: Jobs) -> None:
    """As a user has it, without --enforce-eager: our ops stay opaque to torch.compile."""
    with Server(MODELS / GQA, plugin="amdopt", arguments=CHUNKED) as server:
        answers = server.complete_together(PROMPTS, max_tokens=8)
        log = server.log
    assert [answer.token_ids for answer in answers] == stock(jobs, GQA)
    assert states(log) == only("attention", "gemm")
    assert "Using AMDOPT_ATTN backend" in log
    assert "is switched off" not in log
    assert log.count("vllm-amdopt plan") == 1


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


def test_all_off_is_stock_without_a_word(jobs: Jobs) -> None:
    tokens, log = serve(GQA, plugin="off")
    assert tokens == stock(jobs, GQA)
    assert "vllm-amdopt" not in log
    assert "Unknown vLLM environment variable" not in log
    assert "Using AMDOPT" not in log
