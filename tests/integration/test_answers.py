"""The plugin gives stock vLLM's greedy tokens on every engine, for every model, in hard batches."""

from __future__ import annotations

import pytest

from tests.integration.offline import GQA, MLA, MOE, Jobs, questions

QUESTIONS = questions(6)
PROMPTS = [item.prompt for item in QUESTIONS]

# 64 tokens per step cut every prompt of 64 to 165 tokens into chunks, which share their steps with
# the decodes of requests that are further on.
CHUNKED = {"max_num_batched_tokens": 64, "max_num_seqs": 12}

FEATURES_OF = {GQA: ("attention", "gemm"), MLA: ("mla", "gemm"), MOE: ("attention", "gemm")}
KERNELS_OF = {
    GQA: ("write_heads_kernel", "cdna_split_kernel", "prefill_kernel", "gemm_kernel"),
    MLA: ("write_latent_kernel", "cdna_latent_split_kernel", "gemm_kernel"),
    MOE: ("write_heads_kernel", "cdna_split_kernel", "prefill_kernel", "gemm_kernel"),
}


def test_stock_vllm_answers_rightly(jobs: Jobs) -> None:
    """Otherwise equality with stock would say little."""
    for model in (GQA, MLA, MOE):
        stock = jobs.stock(model, PROMPTS)
        assert stock.error is None, stock.log
        right = [
            answer.text.strip() == item.answer
            for answer, item in zip(stock.rounds[0], QUESTIONS, strict=True)
        ]
        assert sum(right) >= 0.95 * len(right), f"{model}: {sum(right)} of {len(right)}"


@pytest.mark.parametrize("engine", ["gfx942", "gfx950"])
@pytest.mark.parametrize("model", [GQA, MLA, MOE])
def test_emulated_machine_code_gives_stocks_tokens(jobs: Jobs, model: str, engine: str) -> None:
    plugin = jobs.run(
        model,
        [PROMPTS],
        environment={"VLLM_AMDOPT": "1", "VLLM_AMDOPT_CPU_ENGINE": engine},
        arguments=CHUNKED,
    )
    assert plugin.error is None, plugin.log
    assert plugin.disabled == {}
    assert all(plugin.is_on(feature) for feature in FEATURES_OF[model])
    for kernel in KERNELS_OF[model]:
        assert plugin.launches.get(kernel, 0) > 0, (kernel, plugin.launches)
    assert plugin.tokens() == jobs.stock(model, PROMPTS).tokens()


@pytest.mark.parametrize("model", [GQA, MLA])
def test_interpreter_gives_stocks_tokens_in_float32(jobs: Jobs, model: str) -> None:
    """Stock's MLA is the backend that vLLM takes by itself on CPUs without AMX: the one for AMX,
    which it prefers where it can, takes no float32."""
    stock = {"dtype": "float32"} | ({"attention_backend": "CPU_MLA"} if model == MLA else {})
    prompts = PROMPTS[4:8]  # of both tasks
    plugin = jobs.run(
        model,
        [prompts],
        environment={"VLLM_AMDOPT": "1", "VLLM_AMDOPT_CPU_ENGINE": "interpreter"},
        arguments={"dtype": "float32"},
    )
    assert plugin.error is None, plugin.log
    assert plugin.disabled == {}
    assert plugin.is_on(FEATURES_OF[model][0])
    expected = jobs.stock(model, prompts, arguments=stock)
    assert expected.error is None, expected.log
    assert plugin.tokens() == expected.tokens()


def test_an_fp8_cache_is_written_and_read_by_the_kernels(jobs: Jobs) -> None:
    """Its answers are those of stock vLLM with a bfloat16 cache: the model is sure of them."""
    prompts = PROMPTS[:8]
    plugin = jobs.run(
        GQA,
        [prompts],
        environment={"VLLM_AMDOPT": "1", "VLLM_AMDOPT_CPU_ENGINE": "gfx942"},
        arguments={"kv_cache_dtype": "fp8"},
    )
    assert plugin.error is None, plugin.log
    assert plugin.disabled == {}
    for kernel in ("write_heads_kernel", "cdna_split_kernel", "prefill_kernel"):
        assert plugin.launches.get(kernel, 0) > 0, (kernel, plugin.launches)
    assert plugin.tokens() == jobs.stock(GQA, prompts).tokens()


def test_references_give_stocks_tokens(jobs: Jobs) -> None:
    plugin = jobs.run(
        GQA,
        [PROMPTS],
        environment={"VLLM_AMDOPT": "1", "VLLM_AMDOPT_CPU_ENGINE": "reference"},
        arguments=CHUNKED,
    )
    assert plugin.error is None, plugin.log
    assert plugin.tokens() == jobs.stock(GQA, PROMPTS).tokens()


@pytest.mark.parametrize("model", [GQA, MLA])
def test_prefix_cache_is_used_and_changes_nothing(jobs: Jobs, model: str) -> None:
    """The second round finds its prompts in the cache, in blocks of 32 tokens or, for MLA, of 1.

    At block size 1 the first round finds something too: the bracket that all prompts begin with.
    """
    prompts = PROMPTS[:4]
    arguments = {} if model == MLA else {"block_size": 32}
    plugin = jobs.run(
        model, [prompts, prompts], environment={"VLLM_AMDOPT": "1"}, arguments=arguments
    )
    assert plugin.error is None, plugin.log
    assert plugin.tokens(1) == plugin.tokens(0) == jobs.stock(model, prompts).tokens()
    shared = 1 if model == MLA else 0
    assert all(answer.cached_tokens <= shared for answer in plugin.rounds[0])
    assert all(answer.cached_tokens >= 32 for answer in plugin.rounds[1])


def test_mla_runs_at_block_size_1_and_keeps_a_users_size(jobs: Jobs) -> None:
    prompts = PROMPTS[:4]
    ours = jobs.run(MLA, [PROMPTS[:4], PROMPTS[:4]], environment={"VLLM_AMDOPT": "1"})
    assert ours.block_size == 1
    assert ours.chunked_prefill
    assert ours.tokens() == jobs.stock(MLA, prompts).tokens()
    users = jobs.run(MLA, [prompts], environment={"VLLM_AMDOPT": "1"}, arguments={"block_size": 64})
    assert users.error is None, users.log
    assert users.block_size == 64
    assert not users.is_on("mla_block_size")
    assert users.tokens() == jobs.stock(MLA, prompts).tokens()


def test_switched_off_is_stock_to_the_log(jobs: Jobs) -> None:
    """With VLLM_AMDOPT=0 nothing of ours speaks, and vLLM's own platform runs."""
    stock = jobs.stock(GQA, PROMPTS)
    assert "vllm-amdopt" not in stock.log
    assert "Unknown vLLM environment variable" not in stock.log
    assert stock.plan is None
