"""Recipes for single families: where each fires, where not, and that the user's choice stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policy.situations import CURRENT_AITER, NVIDIA, facts, instinct, plan
from vllm_amdopt.policy.rules.models import ENCODERS_BY_DATA

MI300X: dict[str, Any] = {"hardware": instinct("gfx942"), "aiter": CURRENT_AITER}
MI355X: dict[str, Any] = {"hardware": instinct("gfx950"), "aiter": CURRENT_AITER}
MINIMAX_M3 = replace(
    facts("minimax-m2"), architecture="MiniMaxM3SparseForCausalLM", model_type="minimax_m3_text"
)
FLYDSL = {"VLLM_AMDOPT_KIMI_K25_EXPERTS": "on"}


@pytest.mark.parametrize(
    ("name", "model", "options", "settings"),
    [
        pytest.param(
            "vision_encoder",
            "kimi-k2.5",
            {**MI300X, "tensor_parallel_size": 8},
            {"mm_encoder_tp_mode": "data"},
            id="vision tower",
        ),
        pytest.param(
            "vision_encoder",
            "llama-4-scout",
            {**MI300X, "tensor_parallel_size": 2},
            {"mm_encoder_tp_mode": "data"},
            id="vision tower of Llama-4",
        ),
        pytest.param(
            "minimax_m3_queues", MINIMAX_M3, MI300X, {"env.GPU_MAX_HW_QUEUES": "2"}, id="M3 gfx942"
        ),
        pytest.param(
            "minimax_m3_shared_expert",
            MINIMAX_M3,
            MI355X,
            {"env.VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS": "1"},
            id="M3 gfx950",
        ),
        pytest.param(
            "kimi_k25_experts",
            "kimi-k2.5",
            {**MI355X, "environment": FLYDSL},
            {"moe_backend": "flydsl"},
            id="FlyDSL",
        ),
        pytest.param(
            "gpt_oss_fusion",
            "gpt-oss-20b",
            {**MI355X, "tensor_parallel_size": 8},
            {"fuse_allreduce_rms": False},
            id="gpt-oss gfx950",
        ),
    ],
)
def test_recipe_fires(
    name: str, model: Any, options: dict[str, Any], settings: dict[str, Any]
) -> None:
    decision = plan(model, **options).decision(name)
    assert decision.on, decision.reason
    assert dict(decision.settings) == settings


@pytest.mark.parametrize(
    ("name", "model", "options", "reason"),
    [
        pytest.param("vision_encoder", "kimi-k2.5", MI300X, "size is 1", id="one GPU"),
        pytest.param(
            "vision_encoder",
            "gemma-3-27b",
            {**MI300X, "tensor_parallel_size": 8},
            "no vision tower that vLLM runs data-parallel",
            id="a tower that vLLM cuts",
        ),
        pytest.param(
            "vision_encoder",
            "kimi-k2.5",
            {"hardware": NVIDIA, "tensor_parallel_size": 8},
            "AMD",
            id="NVIDIA",
        ),
        pytest.param(
            "vision_encoder",
            "kimi-k2.5",
            {**MI300X, "tensor_parallel_size": 8, "mm_encoder_tp_mode": "weights"},
            "you gave --mm-encoder-tp-mode weights, which stays",
            id="the user's mode",
        ),
        pytest.param("minimax_m3_queues", MINIMAX_M3, MI355X, "gfx942", id="M3 queues on gfx950"),
        pytest.param("minimax_m3_queues", "minimax-m2", MI300X, "MiniMaxM2For", id="M2 queues"),
        pytest.param(
            "minimax_m3_queues",
            MINIMAX_M3,
            {**MI300X, "environment": {"GPU_MAX_HW_QUEUES": "4"}},
            "you set GPU_MAX_HW_QUEUES=4, which stays",
            id="the user's queues",
        ),
        pytest.param(
            "minimax_m3_shared_expert",
            MINIMAX_M3,
            {**MI355X, "tensor_parallel_size": 8, "expert_parallel": True},
            "not folded in",
            id="M3 with expert parallelism",
        ),
        pytest.param(
            "minimax_m3_shared_expert",
            MINIMAX_M3,
            {**MI355X, "environment": {"VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS": "0"}},
            "which stays",
            id="the user's shared expert",
        ),
        pytest.param(
            "minimax_m3_shared_expert",
            MINIMAX_M3,
            {"hardware": instinct("gfx950")},
            "AITER is off",
            id="M3 without AITER",
        ),
        pytest.param("kimi_k25_experts", "kimi-k2.5", MI355X, "opt-in", id="FlyDSL not asked"),
        pytest.param(
            "kimi_k25_experts",
            "kimi-k2.5",
            {**MI355X, "environment": FLYDSL, "lora": True},
            "do not take LoRA",
            id="FlyDSL with LoRA",
        ),
        pytest.param(
            "kimi_k25_experts",
            "kimi-k2.5",
            {**MI300X, "environment": FLYDSL},
            "gfx950",
            id="FlyDSL on gfx942",
        ),
        pytest.param(
            "kimi_k25_experts",
            "kimi-k2.5",
            {**MI355X, "environment": FLYDSL, "moe_backend": "triton"},
            "you gave --moe-backend triton",
            id="the user's backend",
        ),
        pytest.param(
            "gpt_oss_fusion",
            "gpt-oss-20b",
            {**MI355X, "tensor_parallel_size": 8, "fuse_allreduce_rms": True},
            "which stays",
            id="the user's fusion",
        ),
        pytest.param(
            "gpt_oss_fusion",
            "deepseek-v3",
            {**MI355X, "tensor_parallel_size": 8},
            "this is for GptOssFor",
            id="another model",
        ),
    ],
)
def test_recipe_does_not_fire(name: str, model: Any, options: dict[str, Any], reason: str) -> None:
    decision = plan(model, **options).decision(name)
    assert not decision.on
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        pytest.param("gpt-oss-20b", MI355X, True, id="gfx950"),
        pytest.param("gpt-oss-20b", MI300X, False, id="gfx942"),
        pytest.param(
            "gpt-oss-20b",
            {**MI355X, "environment": {"VLLM_ROCM_USE_AITER_MOE": "0"}},
            False,
            id="AITER off for experts",
        ),
        pytest.param("deepseek-v3", MI355X, False, id="another model"),
    ],
)
def test_gpt_oss_answers_are_to_be_read(model: str, options: dict[str, Any], said: bool) -> None:
    notes = plan(model, **options).notes
    assert bool([note for note in notes if "amd/skills#72" in note]) is said


def test_encoders_are_named_once() -> None:
    assert list(ENCODERS_BY_DATA) == sorted(set(ENCODERS_BY_DATA))
