"""The order of attention backends, and the guards on block sizes, masks and sparse MLA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policy.situations import (
    CURRENT_AITER,
    NVIDIA,
    VIRTUAL,
    facts,
    instinct,
    plan,
    situation,
)
from vllm_amdopt.policy.plan import make_plan
from vllm_amdopt.policy.selection import planned

WITH_AITER = {"aiter": CURRENT_AITER}
ON_MI300X: dict[str, Any] = {"hardware": instinct("gfx942"), **WITH_AITER}
LLAMA = facts("llama-3.1-8b")
FA_FIRST = "ROCM_AITER_FA,ROCM_AITER_UNIFIED_ATTN"
UNIFIED_FIRST = "ROCM_AITER_UNIFIED_ATTN,ROCM_AITER_FA"

# --- attention_order -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "order", "selected"),
    [
        pytest.param("llama-3.1-8b", {}, FA_FIRST, "ROCM_AITER_FA", id="head 128"),
        pytest.param(
            "llama-3.1-8b", {"hardware": instinct("gfx950")}, FA_FIRST, "ROCM_AITER_FA", id="MI355X"
        ),
        pytest.param("glm-4.5", {}, FA_FIRST, "ROCM_AITER_FA", id="head 128, MoE"),
        pytest.param(
            replace(LLAMA, head_size=80), {}, FA_FIRST, "ROCM_AITER_UNIFIED_ATTN", id="head 80"
        ),
        pytest.param(
            replace(LLAMA, num_heads=32, num_kv_heads=1),
            {},
            UNIFIED_FIRST,
            "ROCM_AITER_UNIFIED_ATTN",
            id="32 query heads to a KV head",
        ),
        pytest.param("gpt-oss-20b", {}, UNIFIED_FIRST, "ROCM_AITER_UNIFIED_ATTN", id="sinks"),
        pytest.param(
            "qwen3-next-80b-a3b", {}, UNIFIED_FIRST, "ROCM_AITER_UNIFIED_ATTN", id="hybrid"
        ),
        pytest.param(
            replace(LLAMA, model_type="minimax_m3_text"),
            {},
            "TRITON_ATTN",
            "TRITON_ATTN",
            id="MiniMax-M3",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"environment": {"VLLM_ROCM_USE_AITER_MHA": "0"}},
            FA_FIRST,
            "ROCM_AITER_UNIFIED_ATTN",
            id="AITER's attention off by the user",
        ),
        pytest.param(
            "llama-3.1-8b", {"kv_offload": True}, FA_FIRST, "ROCM_AITER_FA", id="KV connector"
        ),
    ],
)
def test_order(model: Any, options: dict[str, Any], order: str, selected: str) -> None:
    asked = situation(model, **{**ON_MI300X, **options})
    made = make_plan(asked)
    assert made.decision("attention_order").settings == {"attention_order": order}
    assert "attention_backend" not in made.settings
    assert planned(asked, made).name == selected


def test_order_says_what_it_changes() -> None:
    reason = plan(**ON_MI300X).decision("attention_order").reason
    assert "vLLM would take ROCM_ATTN by itself, and takes ROCM_AITER_FA in this order" in reason
    reason = plan(**ON_MI300X, kv_offload=True).decision("attention_order").reason
    assert "vLLM takes ROCM_AITER_FA for this model in its own order as well" in reason


@pytest.mark.parametrize(
    ("model", "options", "origin", "reason"),
    [
        pytest.param("deepseek-v3", {}, "default", "for it vLLM's own order stands", id="MLA"),
        pytest.param(
            "llama-3.1-8b", {"aiter": None}, "default", "AITER is not in force", id="no AITER"
        ),
        pytest.param(
            "llama-3.1-8b",
            {"environment": {"VLLM_ROCM_USE_AITER": "0"}},
            "default",
            "AITER is not in force",
            id="AITER off by the user",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct("gfx1201")},
            "default",
            "elsewhere vLLM's own order stands",
            id="RDNA4",
        ),
        pytest.param("llama-3.1-8b", {"hardware": NVIDIA}, "default", "AMD GPUs", id="NVIDIA"),
        pytest.param(
            "llama-3.1-8b",
            {"attention_backend": "ROCM_ATTN"},
            "user",
            "you chose --attention-backend ROCM_ATTN, which stays",
            id="the user's backend",
        ),
        pytest.param(
            "gemma-3-27b", {}, "default", "no AITER backend that takes", id="two-way images"
        ),
        pytest.param(
            replace(LLAMA, has_alibi=True), {}, "default", "reported for ALiBi", id="ALiBi"
        ),
        pytest.param(
            replace(LLAMA, encoder_only=True), {}, "default", "reported for encoders", id="encoder"
        ),
        pytest.param(
            "llama-4-scout", {}, "default", "reported for chunked local attention", id="chunked"
        ),
        pytest.param(
            replace(LLAMA, logits_soft_cap=50.0),
            {},
            "default",
            "so exact_attention orders for it",
            id="soft cap",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"dtype": "float32"},
            "default",
            "no AITER backend that takes",
            id="float32",
        ),
    ],
)
def test_order_left_alone(model: Any, options: dict[str, Any], origin: str, reason: str) -> None:
    decision = plan(model, **{**ON_MI300X, **options}).decision("attention_order")
    assert not decision.on
    assert (decision.origin, reason in decision.reason) == (origin, True), decision.reason


# --- exact_attention -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "selected", "what"),
    [
        pytest.param(
            replace(LLAMA, logits_soft_cap=50.0),
            {},
            "ROCM_AITER_UNIFIED_ATTN",
            "a soft cap on its attention logits",
            id="soft cap",
        ),
        pytest.param(
            replace(LLAMA, logits_soft_cap=50.0),
            {"aiter": None},
            "TRITON_ATTN",
            "a soft cap on its attention logits",
            id="soft cap without AITER",
        ),
        pytest.param(
            replace(LLAMA, logits_soft_cap=50.0),
            {"hardware": instinct("gfx1100"), "aiter": None},
            "TRITON_ATTN",
            "a soft cap on its attention logits",
            id="soft cap on RDNA3",
        ),
        pytest.param(
            "gemma-3-27b",
            {"vllm": "0.31.0"},
            "TRITON_ATTN",
            "image tokens that attend in both directions",
            id="two-way images before 0.32",
        ),
    ],
)
def test_masks_are_computed_whole(
    model: Any, options: dict[str, Any], selected: str, what: str
) -> None:
    asked = situation(model, **{**ON_MI300X, **options})
    made = make_plan(asked)
    decision = made.decision("exact_attention")
    assert decision.on, decision.reason
    assert what in decision.reason
    assert planned(asked, made).name == selected


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        pytest.param("llama-3.1-8b", {}, "computes this model's attention", id="plain"),
        pytest.param("gemma-3-27b", {}, "computes this model's attention", id="0.32 refuses it"),
        pytest.param(
            replace(LLAMA, logits_soft_cap=50.0),
            {"attention_backend": "ROCM_ATTN"},
            "you chose --attention-backend ROCM_ATTN, which stays",
            id="the user's backend",
        ),
    ],
)
def test_masks_are_no_matter(model: Any, options: dict[str, Any], reason: str) -> None:
    decision = plan(model, **{**ON_MI300X, **options}).decision("exact_attention")
    assert not decision.on
    assert reason in decision.reason


# --- block_size ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param("llama-3.1-8b", {"block_size": 1}, id="GQA, 1"),
        pytest.param("llama-3.1-8b", {"block_size": 40}, id="GQA, 40"),
        pytest.param("llama-3.1-8b", {"block_size": 8, "aiter": None}, id="GQA without AITER"),
        pytest.param("gpt-oss-20b", {"block_size": 1}, id="sinks"),
        pytest.param("deepseek-v3", {"block_size": 1, "aiter": None}, id="MLA without AITER"),
        pytest.param(
            "deepseek-v3",
            {"block_size": 1, "attention_backend": "TRITON_MLA"},
            id="MLA with a backend of the user's",
        ),
    ],
)
def test_block_size_that_would_raise_is_dropped(model: str, options: dict[str, Any]) -> None:
    asked = situation(model, **{**ON_MI300X, **options})
    made = make_plan(asked)
    assert made.settings["block_size"] == "default"
    (warning,) = made.warnings
    assert f"--block-size {options['block_size']} is dropped" in warning
    assert "VLLM_AMDOPT_BLOCK_SIZE=off keeps your choice" in warning
    assert planned(asked, made).name is not None


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        pytest.param("llama-3.1-8b", {}, "you gave no --block-size", id="nothing given"),
        pytest.param("llama-3.1-8b", {"block_size": 64}, "is taken by ROCM_ATTN", id="64"),
        pytest.param(
            "deepseek-v3", {"block_size": 1}, "is taken by ROCM_AITER_MLA", id="MLA with AITER"
        ),
        pytest.param(
            "deepseek-v3.2",
            {"block_size": 1},
            "is taken by ROCM_AITER_MLA_SPARSE",
            id="sparse MLA",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"block_size": 1, "hardware": VIRTUAL},
            "this only concerns AMD GPUs",
            id="virtual device",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"block_size": 1, "environment": {"VLLM_AMDOPT_ATTENTION": "on"}},
            "our own attention backend takes blocks of any size",
            id="our attention",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"block_size": 1, "environment": {"VLLM_AMDOPT_BLOCK_SIZE": "off"}},
            "switched off by VLLM_AMDOPT_BLOCK_SIZE=off",
            id="switched off",
        ),
    ],
)
def test_block_size_of_the_users_stays(model: str, options: dict[str, Any], reason: str) -> None:
    made = plan(model, **{**ON_MI300X, **options})
    assert reason in made.decision("block_size").reason
    assert made.settings.get("block_size") != "default"


def test_minimax_m3_gets_its_pages_where_vllm_does_not_find_them() -> None:
    model = replace(LLAMA, model_type="minimax_m3_text")
    assert plan(model, **ON_MI300X, vllm="0.30.0").settings["block_size"] == 128
    assert "block_size" not in plan(model, **ON_MI300X, vllm="0.31.0").settings
    assert "block_size" not in plan(model, **ON_MI300X, vllm="0.30.0", block_size=256).settings
    assert "block_size" not in plan(LLAMA, **ON_MI300X, vllm="0.30.0").settings


# --- mla_head_padding ----------------------------------------------------------------------------


def test_padded_heads_and_the_layout_without_them_are_said() -> None:
    made = plan("kimi-k2.5", **ON_MI300X, tensor_parallel_size=8)
    (note,) = [note for note in made.notes if "MLA heads" in note]
    assert "each rank has 8 of the model's MLA heads, which AITER's decode pads to 16" in note
    assert "2 times the attention work" in note
    assert "--tensor-parallel-size 4 --data-parallel-size 2" in note


def test_no_layout_is_promised_where_there_is_none() -> None:
    model = replace(facts("kimi-k2.5"), num_heads=8)
    (note,) = [n for n in plan(model, **ON_MI300X).notes if "MLA heads" in n]
    assert "--tensor-parallel-size" not in note


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        pytest.param(
            "kimi-k2.5", {"tensor_parallel_size": 4}, "16 heads a rank are not fewer", id="TP 4"
        ),
        pytest.param(
            "deepseek-v3", {"tensor_parallel_size": 8}, "16 heads a rank", id="128 heads, TP 8"
        ),
        pytest.param("llama-3.1-8b", {}, "the model has no MLA", id="GQA"),
        pytest.param(
            "kimi-k2.5",
            {"tensor_parallel_size": 8, "aiter": None},
            "TRITON_MLA is selected, which does not pad heads",
            id="no AITER",
        ),
        pytest.param(
            "kimi-k2.5",
            {"tensor_parallel_size": 8, "hardware": instinct("gfx950")},
            "AITER has a kernel for 8 heads on gfx950",
            id="gfx950",
        ),
    ],
)
def test_heads_that_are_not_padded(model: str, options: dict[str, Any], reason: str) -> None:
    decision = plan(model, **{**ON_MI300X, **options}).decision("mla_head_padding")
    assert not decision.on
    assert reason in decision.reason


def test_fp8_cache_pads_heads_on_gfx950_too() -> None:
    options = {"tensor_parallel_size": 8, "hardware": instinct("gfx950"), "kv_cache_dtype": "fp8"}
    assert plan("kimi-k2.5", **{**ON_MI300X, **options}).is_on("mla_head_padding")


# --- sparse_mla_needs_aiter ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param({"aiter": None}, "calls AITER, which is not installed: use a ROCm", id="none"),
        pytest.param(
            {"hardware": instinct("gfx90a")}, "not gfx90a: serve it on MI300X", id="MI250X"
        ),
    ],
)
def test_sparse_mla_is_refused_without_aiter(options: dict[str, Any], sentence: str) -> None:
    made = plan("deepseek-v3.2", **{**ON_MI300X, **options})
    (refusal,) = made.refusals
    assert sentence in refusal


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param("deepseek-v3.2", {}, id="AITER installed"),
        pytest.param(
            "deepseek-v3.2", {"environment": {"VLLM_ROCM_USE_AITER": "0"}}, id="AITER off"
        ),
        pytest.param("deepseek-v3", {"aiter": None}, id="dense MLA"),
        pytest.param("deepseek-v3.2", {"aiter": None, "hardware": NVIDIA}, id="NVIDIA"),
        pytest.param("llama-3.1-8b", {"aiter": None}, id="GQA"),
    ],
)
def test_sparse_mla_is_not_refused(model: str, options: dict[str, Any]) -> None:
    assert not plan(model, **{**ON_MI300X, **options}).refusals
