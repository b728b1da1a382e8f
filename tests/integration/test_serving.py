"""`vllm serve` over HTTP with the plugin on, as a user has it: stock's tokens."""

from __future__ import annotations

from tests.integration.offline import GQA, MLA, MODELS, Jobs
from tests.integration.served import CHUNKED, PROMPTS, only, serve, states, stock
from tests.serving import Server
from vllm_amdopt.bench.treatment import read_treatment


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
    # What `bench` takes for the proof that the treatment was there.
    treatment = read_treatment(log)
    assert treatment.working == {"attention", "gemm"} and "mla" in treatment.off


def test_mla_on_at_block_size_1_with_chunked_prefill(jobs: Jobs) -> None:
    tokens, log = serve(MLA, plugin="amdopt", arguments=CHUNKED)
    assert tokens == stock(jobs, MLA)
    assert states(log) == only("mla", "gemm", "mla_block_size")
    assert "Using AMDOPT_MLA backend" in log
    assert "is switched off" not in log
