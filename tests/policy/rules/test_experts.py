"""Experts: AITER where it takes them, padded or not, Triton where it fails, an end in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policy.situations import CURRENT_AITER, NVIDIA, facts, instinct, plan
from vllm_amdopt.policy.model_facts import ModelFacts

GLM_FP8 = replace(
    facts("glm-4.5"), quantization="fp8", fp8_weights=True, weight_block_size=(128, 128)
)
WIDE_PLAIN = replace(facts("glm-4.5"), moe_intermediate_size=2560)
"""320 on eight ranks, which is not a multiple of AITER's tile."""
MI300X: dict[str, Any] = {"hardware": instinct("gfx942"), "aiter": CURRENT_AITER}
MI355X: dict[str, Any] = {"hardware": instinct("gfx950"), "aiter": CURRENT_AITER}
MOE_OFF = {"env.VLLM_ROCM_USE_AITER_MOE": "0"}


def in_format(model: ModelFacts, method: str) -> ModelFacts:
    return replace(model, quantization=method)


def per_tensor(**changes: Any) -> ModelFacts:
    """FP8 experts with one scale a tensor."""
    return replace(
        facts("qwen3-30b-a3b-fp8"), quantization="fp8", weight_block_size=None, **changes
    )


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param("minimax-m2", {**MI300X, "tensor_parallel_size": 8}, id="192 to 256"),
        pytest.param("qwen3-30b-a3b-fp8", {**MI355X, "tensor_parallel_size": 8}, id="96 to 128"),
        pytest.param(
            "minimax-m2",
            {**MI300X, "tensor_parallel_size": 8, "vllm": "0.31.0"},
            id="as soon as vLLM pads",
        ),
        pytest.param(
            "minimax-m2",
            {
                **MI300X,
                "tensor_parallel_size": 8,
                "environment": {"VLLM_ROCM_USE_AITER": "1"},
            },
            id="the user's own AITER=1",
        ),
        pytest.param(
            "minimax-m2",
            {**MI300X, "tensor_parallel_size": 4, "data_parallel_size": 2},
            id="cut over data-parallel ranks as well",
        ),
    ],
)
def test_narrow_block_fp8_experts_are_padded(model: str, options: dict[str, Any]) -> None:
    environment = {**options.get("environment", {}), "VLLM_AMDOPT_PADDED_EXPERTS": "on"}
    made = plan(model, **{**options, "environment": environment})
    assert made.decision("padded_experts").settings == {"moe_backend": "aiter"}
    assert not made.is_on("aiter_experts_off")
    assert not made.refusals


def test_nobody_has_measured_padding_so_it_waits_to_be_asked() -> None:
    made = plan("minimax-m2", **MI300X, tensor_parallel_size=8)
    reason = made.decision("padded_experts").reason
    assert reason.startswith("opt-in: VLLM_AMDOPT_PADDED_EXPERTS=on uses it; with AITER on vLLM")
    assert made.is_on("aiter")
    assert made.settings["env.VLLM_ROCM_USE_AITER_MOE"] == "0"


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        pytest.param("deepseek-v3", {**MI300X, "tensor_parallel_size": 8}, "finds", id="256"),
        pytest.param(
            "minimax-m2",
            {**MI300X, "tensor_parallel_size": 8, "expert_parallel": True},
            "vLLM finds a kernel",
            id="experts kept whole",
        ),
        pytest.param("llama-3.1-8b", MI300X, "the model has no experts", id="dense"),
        pytest.param(
            "minimax-m2",
            {"hardware": instinct(), "tensor_parallel_size": 8},
            "AITER is off",
            id="no AITER",
        ),
        pytest.param(
            "minimax-m2",
            {
                **MI300X,
                "tensor_parallel_size": 8,
                "environment": {"VLLM_ROCM_USE_AITER_MOE": "0"},
            },
            "VLLM_ROCM_USE_AITER_MOE=0 keeps AITER from the experts",
            id="the user keeps AITER from them",
        ),
        pytest.param(
            "minimax-m2",
            {**MI300X, "tensor_parallel_size": 8, "moe_backend": "triton"},
            "you gave --moe-backend triton, which stays",
            id="the user chose",
        ),
        pytest.param(
            "minimax-m2",
            {**MI300X, "tensor_parallel_size": 8, "lora": True},
            "pure TP, and no LoRA",
            id="LoRA",
        ),
        pytest.param(
            replace(GLM_FP8, moe_intermediate_size=512),
            {**MI300X, "tensor_parallel_size": 8},
            "64 would be padded to 128, more than by a third",
            id="to double the width",
        ),
        pytest.param(
            "minimax-m2",
            {"hardware": NVIDIA, "tensor_parallel_size": 8},
            "this only concerns AMD GPUs",
            id="NVIDIA",
        ),
    ],
)
def test_experts_are_not_padded(model: Any, options: dict[str, Any], reason: str) -> None:
    decision = plan(model, **options).decision("padded_experts")
    assert not decision.on
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        pytest.param(
            "minimax-m2",
            {**MI300X, "tensor_parallel_size": 8, "vllm": "0.30.0"},
            "vLLM would end with: FP8 MoE backend AITER does not support",
            id="a vLLM that does not pad",
        ),
        pytest.param(
            "minimax-m2",
            {**MI300X, "tensor_parallel_size": 8, "lora": True},
            "vLLM would end with",
            id="LoRA",
        ),
        pytest.param(
            replace(GLM_FP8, moe_intermediate_size=512),
            {**MI300X, "tensor_parallel_size": 8},
            "vLLM would end with",
            id="padding would double them",
        ),
        pytest.param(
            per_tensor(moe_intermediate_size=1536),
            {**MI355X, "tensor_parallel_size": 8},
            "ROCm/aiter#3202",
            id="one scale a tensor, 192 wide",
        ),
        pytest.param(
            replace(GLM_FP8, num_experts=288, moe_intermediate_size=2048),
            {**MI355X, "tensor_parallel_size": 8},
            "ROCm/aiter#5049",
            id="288 experts on gfx950",
        ),
        pytest.param(
            replace(GLM_FP8, model_type="glm_moe_dsa", moe_intermediate_size=2048),
            {**MI300X, "tensor_parallel_size": 8},
            "ROCm/aiter#4783",
            id="GLM-5 on gfx942",
        ),
        pytest.param(
            WIDE_PLAIN,
            {**MI300X, "tensor_parallel_size": 8, "vllm": "0.31.0"},
            "vllm#55368",
            id="unquantized shards off the tile",
        ),
        pytest.param(
            "minimax-m2",
            {
                **MI300X,
                "vllm": "0.30.0",
                "tensor_parallel_size": 8,
                "environment": {"VLLM_ROCM_USE_AITER": "1", "VLLM_ROCM_USE_AITER_MOE": "1"},
            },
            "vLLM would end with",
            id="repairs the user's own variable",
        ),
    ],
)
def test_experts_fall_back_to_triton(model: Any, options: dict[str, Any], reason: str) -> None:
    made = plan(model, **options)
    decision = made.decision("aiter_experts_off")
    assert decision.on, decision.reason
    assert dict(decision.settings) == MOE_OFF
    assert reason in decision.reason
    assert not made.refusals
    assert bool(made.warnings) is ("environment" in options)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param("deepseek-v3", {**MI300X, "tensor_parallel_size": 8}, id="AITER takes them"),
        pytest.param(WIDE_PLAIN, {**MI300X, "tensor_parallel_size": 8}, id="0.32 pads to the tile"),
        pytest.param(
            per_tensor(moe_intermediate_size=14336),
            {**MI300X, "tensor_parallel_size": 8},
            id="one scale a tensor, 1792 wide",
        ),
        pytest.param(
            replace(GLM_FP8, num_experts=288, moe_intermediate_size=2048),
            {**MI300X, "tensor_parallel_size": 8},
            id="288 experts on gfx942",
        ),
        pytest.param(
            replace(GLM_FP8, num_experts=288, moe_intermediate_size=2048),
            {**MI355X, "tensor_parallel_size": 8, "moe_backend": "aiter"},
            id="the user asked for AITER by name",
        ),
    ],
)
def test_experts_stay_with_aiter(model: Any, options: dict[str, Any]) -> None:
    assert not plan(model, **options).is_on("aiter_experts_off")


@pytest.mark.parametrize(
    ("model", "options", "refusal"),
    [
        pytest.param(
            in_format(facts("minimax-m2"), "compressed-tensors"),
            {**MI300X, "tensor_parallel_size": 8},
            "192 is not divisible by weight quantization block_n = 128; "
            "use --enable-expert-parallel or --tensor-parallel-size 4",
            id="compressed-tensors neither refines nor pads",
        ),
        pytest.param(
            in_format(facts("minimax-m2"), "quark"),
            {"hardware": instinct(), "tensor_parallel_size": 8},
            "use --enable-expert-parallel or --tensor-parallel-size 4",
            id="Quark, without AITER as well",
        ),
        pytest.param(
            "minimax-m2",
            {**MI300X, "tensor_parallel_size": 8, "moe_backend": "aiter", "vllm": "0.30.0"},
            "leave out --moe-backend aiter",
            id="the user's backend does not take them",
        ),
        pytest.param(
            "minimax-m2",
            {**MI300X, "moe_backend": "flydsl"},
            "moe_backend='flydsl' is not supported for FP8 MoE",
            id="a backend for other formats",
        ),
        pytest.param(
            "minimax-m2",
            {**MI300X, "tensor_parallel_size": 7},
            "width 1536 does not divide by 7 ranks",
            id="seven ranks",
        ),
    ],
)
def test_what_cannot_load_is_refused_in_words(
    model: Any, options: dict[str, Any], refusal: str
) -> None:
    made = plan(model, **options)
    assert len(made.refusals) == 1
    assert refusal in made.refusals[0]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param("minimax-m2", {**MI300X, "tensor_parallel_size": 8}, id="padded"),
        pytest.param(
            "minimax-m2", {"hardware": instinct(), "tensor_parallel_size": 8}, id="refined"
        ),
        pytest.param(
            in_format(facts("minimax-m2"), "compressed-tensors"),
            {**MI300X, "tensor_parallel_size": 4},
            id="compressed-tensors that divides",
        ),
        pytest.param("kimi-k2.5", {**MI300X, "tensor_parallel_size": 8}, id="int4"),
        pytest.param("gpt-oss-20b", {**MI300X, "tensor_parallel_size": 8}, id="mxfp4"),
        pytest.param("minimax-m2", {"hardware": NVIDIA, "tensor_parallel_size": 7}, id="NVIDIA"),
    ],
)
def test_what_loads_is_not_refused(model: Any, options: dict[str, Any]) -> None:
    assert not plan(model, **options).refusals
