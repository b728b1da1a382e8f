"""The formula against sizes that the models' publishers give."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.situations import config, facts
from vllm_amdopt.policy.model_facts import model_facts

# Billions, as published. The sources: Llama: the Hub's count of the safetensors files. DeepSeek-V3:
# arXiv 2412.19437. Kimi-K2: arXiv 2507.20534. gpt-oss: arXiv 2508.10925. Qwen3: the
# models' cards. Mixtral: mistral.ai/news/mixtral-of-experts. GLM, MiniMax, Llama 4: their cards.
TOTAL = {
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.6,
    "llama-3.1-405b": 405.9,
    "deepseek-v3": 671,
    "deepseek-v2-lite": 15.7,
    "kimi-k2-instruct": 1040,
    "gpt-oss-120b": 116.8,
    "gpt-oss-20b": 20.9,
    "qwen3-8b": 8.2,
    "qwen3-32b": 32.8,
    "qwen3-235b-a22b": 235,
    "qwen3-30b-a3b": 30.5,
    "qwen3-coder-480b-a35b": 480,
    "qwen3-next-80b-a3b": 80,
    "mixtral-8x7b": 46.7,
    "mistral-large-2": 123,
    "gemma-3-27b": 27.0,  # the language model; the vision part is 0.4
    "glm-4.5": 355,
    "minimax-m2": 230,
    "llama-4-scout": 109,
    "llama-4-maverick": 400,
}

# What one token uses, and whether the publisher counts the embedding table with it.
ACTIVE = {
    "deepseek-v3": (37, False),
    "kimi-k2-instruct": (32, False),
    "gpt-oss-120b": (5.1, False),
    "gpt-oss-20b": (3.6, False),
    "qwen3-235b-a22b": (22, True),
    "qwen3-30b-a3b": (3.3, True),
    "mixtral-8x7b": (12.9, True),
    "llama-4-scout": (17, True),
    "llama-4-maverick": (17, True),
}


@pytest.mark.parametrize("name", TOTAL)
def test_total_is_what_is_published(name: str) -> None:
    counted = facts(name).parameters
    assert counted is not None
    assert counted / 1e9 == pytest.approx(TOTAL[name], rel=0.02)


@pytest.mark.parametrize("name", ACTIVE)
def test_what_one_token_uses_is_what_is_published(name: str) -> None:
    published, with_embedding = ACTIVE[name]
    parts = facts(name).parameter_parts
    assert parts is not None
    assert parts.active == facts(name).active_parameters
    counted = parts.active + (parts.embedding if with_embedding else 0)
    assert counted / 1e9 == pytest.approx(published, rel=0.02)


def test_llama_8b_is_exact() -> None:
    """8,030,261,248 weights in the checkpoint; the formula adds norms that Llama lacks."""
    assert facts("llama-3.1-8b").parameters == pytest.approx(8_030_261_248, rel=1e-5)


def test_parts_add_up() -> None:
    parts = facts("deepseek-v3").parameter_parts
    assert parts is not None
    assert parts.total == parts.embedding + parts.output_head + parts.layers
    # 58 layers of 256 experts, three matrices of 7168 x 2048 each.
    assert parts.routed_experts == 58 * 256 * 3 * 7168 * 2048
    assert parts.dense_mlp == 3 * 3 * 7168 * 18432


def test_tied_head_is_counted_once() -> None:
    tied = model_facts({**config("qwen3-8b"), "tie_word_embeddings": True})
    apart = facts("qwen3-8b")
    assert tied.parameters is not None and apart.parameters is not None
    assert apart.parameters - tied.parameters == 151936 * 4096
    assert tied.active_parameters == tied.parameters, "the table is the head, which is multiplied"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"model_type": "surprise"}, "a type that is not on the list", id="type"),
        pytest.param({"vocab_size": None}, "no vocabulary", id="vocabulary"),
        pytest.param({"vocab_size": "many"}, "not a number", id="words"),
        pytest.param({"intermediate_size": None}, "no width", id="width"),
        pytest.param({"num_hidden_layers": 10**9}, "too many layers", id="layers"),
    ],
)
def test_unknown_is_none_and_not_a_guess(change: dict[str, object], reason: str) -> None:
    model = model_facts({**config("llama-3.1-8b"), **change})
    assert model.parameters is None, reason
    assert model.active_parameters is None
    assert model.parameter_parts is None


def test_mla_without_its_widths_is_not_counted() -> None:
    broken = {key: value for key, value in config("deepseek-v3").items() if key != "v_head_dim"}
    assert model_facts(broken).parameters is None


def test_more_experts_a_token_than_there_are_count_as_all() -> None:
    parts = facts("mixtral-8x7b").parameter_parts
    assert parts is not None
    assert replace(parts, experts_per_token=99).active == parts.total - parts.embedding
