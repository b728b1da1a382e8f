"""An fp8 cache of latents in real vLLM: the model still answers, and by our kernels."""

from __future__ import annotations

import pytest

from tests.integration.offline import MLA, Jobs, questions

QUESTIONS = questions(3)
PROMPTS = [item.prompt for item in QUESTIONS]


@pytest.mark.parametrize("engine", ["gfx942", "gfx950"])
def test_a_model_answers_from_an_fp8_cache(jobs: Jobs, engine: str) -> None:
    """The chips hold different e4m3; stock vLLM has no fp8 latents on a CPU to compare with."""
    plugin = jobs.run(
        MLA,
        [PROMPTS],
        environment={"VLLM_AMDOPT": "1", "VLLM_AMDOPT_CPU_ENGINE": engine},
        arguments={"kv_cache_dtype": "fp8"},
    )
    assert plugin.error is None, plugin.log
    assert plugin.disabled == {}
    assert plugin.is_on("mla")
    assert plugin.block_size == 1
    # vLLM's prefill on CPUs reads no context from an fp8 cache, so a prompt is computed whole.
    assert not plugin.chunked_prefill
    for kernel in ("write_latent_kernel", "cdna_latent_split_kernel"):
        assert plugin.launches.get(kernel, 0) > 0, (kernel, plugin.launches)
    right = [
        answer.text.strip() == item.answer
        for answer, item in zip(plugin.rounds[0], QUESTIONS, strict=True)
    ]
    assert all(right)
